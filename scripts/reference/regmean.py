"""Pins RegMean (Jin et al. 2023, arXiv 2212.09849): NumPy in float64 on the linear layers' inputs in transformers.

Writes regmean.json. Expert k is the tiny untied model plus `values(f"expert {k} {name}", count, 0.05)`; it reads its own 8
sequences of 16 tokens. Gram matrices are divided by the number of tokens and their off-diagonals scaled; `weights` weigh them.
For every linear layer the norm, the first and the last values of the merged weight are kept.
"""

import numpy as np
import torch

from common import CONFIG, tensor, tiny_model, tokens, values, write_golden

EXPERTS, SEQUENCES, LENGTH, SCALE, MOVE = 3, 8, 16, 0.9, 0.05
WEIGHTS = [0.5, 0.3, 0.2]

experts, grams = [], []
for k in range(EXPERTS):
    model = tiny_model(tied=False, float64=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            moved = tensor(name, parameter.shape)
            moved = moved + values(f"expert {k} {name}", parameter.numel(), MOVE).reshape(parameter.shape)
            parameter.copy_(torch.from_numpy(moved))
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, args, __, name=name: inputs.__setitem__(f"{name}.weight", args[0].detach().flatten(0, 1).numpy())
            )
    with torch.no_grad():
        model(torch.from_numpy(tokens(SEQUENCES * LENGTH, 10000 * k).reshape(SEQUENCES, LENGTH)))
    experts.append({name: parameter.detach().numpy() for name, parameter in model.named_parameters()})
    grams.append({name: x.T @ x / len(x) for name, x in inputs.items()})


def shrink(gram):
    return SCALE * gram + (1 - SCALE) * np.diag(np.diag(gram))


def regmean(name):
    """W* = (sum w_i W_i G_i) (sum w_i G_i)^-1 with W as [out, in]."""
    above = sum(w * e[name] @ shrink(g[name]) for w, e, g in zip(WEIGHTS, experts, grams))
    below = sum(w * shrink(g[name]) for w, g in zip(WEIGHTS, grams))
    return np.linalg.solve(below, above.T).T


merged = {name: regmean(name) for name in sorted(grams[0])}
write_golden(
    "regmean",
    ["numpy", "torch", "transformers"],
    {
        "config": CONFIG | {"tie_word_embeddings": False},
        "sequences": SEQUENCES,
        "length": LENGTH,
        "scale": SCALE,
        "move": MOVE,
        "weights": WEIGHTS,
        "grams": {name: grams[1][name].flatten()[:8].tolist() for name in merged},
        "merged": {
            name: {"norm": np.linalg.norm(w), "head": w.flatten()[:8].tolist(), "tail": w.flatten()[-8:].tolist()}
            for name, w in merged.items()
        },
    },
)
