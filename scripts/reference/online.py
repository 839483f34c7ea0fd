"""Pins the online methods: alignments of gradients by torch, the updates of DGA and ODM in NumPy.

Writes online.json. The tiny tied model; domain i is the batch of tokens from 1000 (i + 1), the target that from 500: each
two sequences of 16. `alignments` are inner products of float64 gradients. `dga` is the paper's update (arXiv 2410.02498)
from a uniform start, its alignments drawn once and given. `odm` is Exp3 as in arXiv 2312.02406, and the rule its public
code ends with, on given losses; domains that a step did not draw have none.
"""

import numpy as np
import torch

from common import CONFIG, batch, tiny_model, write_golden

DOMAINS = 4


def flat_gradient(model, start):
    inputs, targets = batch(start)
    model.zero_grad()
    logits = model(inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def dga(alignments, rate, ema):
    alpha = np.full(len(alignments[0]), 1 / len(alignments[0]))
    for a in alignments:
        moved = alpha * np.exp(rate * np.asarray(a))
        alpha = (1 - ema) * alpha + ema * moved / moved.sum()
        yield alpha.tolist()


def epsilon(k, t):
    return 1 / k if t == 0 else min(1 / k, np.sqrt(np.log(k) / (k * t)))


def odm_paper(losses, smoothing):
    """Weights of steps 1, 2, ...: pi_t, then the rewards of what it drew."""
    k = len(losses[0])
    reward = np.zeros(k)
    for t, step in enumerate(losses, start=1):
        gibbs = np.exp(epsilon(k, t - 1) * reward)
        pi = (1 - k * epsilon(k, t)) * gibbs / gibbs.sum() + epsilon(k, t)
        yield pi.tolist()
        for i, loss in enumerate(step):
            if loss is not None:
                reward[i] = smoothing * reward[i] + (1 - smoothing) * loss / pi[i]


def odm_code(losses, smoothing):
    """The rule of the public code for steps that mix domains; before anything is known, uniform."""
    k = len(losses[0])
    reward = np.zeros(k)
    for t, step in enumerate(losses, start=1):
        share = reward / reward.sum() if reward.sum() > 0 else np.full(k, 1 / k)
        yield ((1 - k * epsilon(k, t)) * share + epsilon(k, t)).tolist()
        for i, loss in enumerate(step):
            if loss is not None:
                reward[i] = smoothing * reward[i] + (1 - smoothing) * np.exp(loss)


model = tiny_model(tied=True, float64=True)
target_loss, wanted = flat_gradient(model, 500)
domains = [flat_gradient(model, 1000 * (i + 1)) for i in range(DOMAINS)]

draw = np.random.default_rng(3)
given = draw.normal(0.02, 0.05, (8, DOMAINS)).tolist()
losses = [[round(float(x), 3) if draw.random() < 0.7 else None for x in draw.normal([5, 4, 3, 5.5], 0.2)]
          for _ in range(40)]

write_golden(
    "online",
    ["torch", "transformers", "numpy"],
    {
        "config": CONFIG | {"tie_word_embeddings": True},
        "target_loss": target_loss,
        "losses": [loss for loss, _ in domains],
        "alignments": [torch.dot(gradient, wanted).item() for _, gradient in domains],
        "norms": [wanted.norm().item()] + [gradient.norm().item() for _, gradient in domains],
        "dga": {"rate": 12.0, "ema": 0.1, "alignments": given, "weights": list(dga(given, 12.0, 0.1))},
        "odm": {
            "smoothing": 0.9,
            "losses": losses,
            "loss": list(odm_paper(losses, 0.9)),
            "perplexity": list(odm_code(losses, 0.9)),
        },
    },
)
