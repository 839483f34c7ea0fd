"""Pins training with adapters: W = W0 + s B A on queries, keys and values, by torch's autograd and AdamW.

Writes adapter.json: losses of three steps, and the factors after them. Step k trains on the tokens from 1000 k on; only the
factors are trained, from hash-made values, in float64.
"""

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from common import CONFIG, batch, tiny_model, values, write_golden

RANK, SCALE, STEPS = 3, 2.0, 3
SETTINGS = {"learning_rate": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}

model = tiny_model(tied=True, float64=True)
weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
targets_of_adapters = [name for name in weights if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")]


def factor(name, shape):
    flat = torch.from_numpy(values(name, shape[0] * shape[1])).double()
    return flat.reshape(shape).requires_grad_()


factors = {}
for name in targets_of_adapters:
    out, inner = weights[name].shape
    for part, shape in (("lora_A", (RANK, inner)), ("lora_B", (out, RANK))):
        own = name.replace(".weight", f".{part}.weight")
        factors[own] = factor(own, shape)


def merged():
    adapted = dict(weights)
    for name in targets_of_adapters:
        a, b = (factors[name.replace(".weight", f".{part}.weight")] for part in ("lora_A", "lora_B"))
        adapted[name] = weights[name] + SCALE * b @ a
    return adapted


optimizer = torch.optim.AdamW(
    factors.values(),
    lr=SETTINGS["learning_rate"],
    betas=SETTINGS["betas"],
    eps=SETTINGS["eps"],
    weight_decay=SETTINGS["weight_decay"],
)
losses = []
for step in range(STEPS):
    inputs, targets = batch(1000 * step)
    logits = functional_call(model, merged(), (inputs,)).logits
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    if step == 0:
        gradients = {name: value.grad.norm().item() for name, value in factors.items()}
    torch.nn.utils.clip_grad_norm_(factors.values(), SETTINGS["clip_norm"])
    optimizer.step()
    losses.append(loss.item())

write_golden(
    "adapter",
    ["torch", "transformers"],
    {
        "config": CONFIG | {"tie_word_embeddings": True},
        "settings": SETTINGS,
        "rank": RANK,
        "scale": SCALE,
        "losses": losses,
        "gradient_norms": gradients,
        "factors": {
            name: {"norm": value.norm().item(), "head": value.detach().flatten()[:6].tolist()}
            for name, value in factors.items()
        },
    },
)
