"""Pins the derivatives of a merge's loss by its weights: torch's automatic differentiation through a weighted average.

Writes derivatives.json. Expert k is the tiny tied model plus `values(f"expert {k} {name}", count, 0.05)`; documents are cut
into lm-evaluation-harness's windows. `slopes` and `curvature` are first and second derivatives of the mean loss by the
weights of the experts at the uniform merge, in float64 throughout.
"""

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import CONFIG, rolling_windows, tensor, tiny_model, tokens, values, write_golden

EXPERTS, LENGTHS, WINDOW, PREFIX = 3, [5, 24, 31, 60], 24, 0
MOVE = 0.05


def expert(k, name, shape):
    moved = tensor(name, shape) + values(f"expert {k} {name}", shape.numel(), MOVE).reshape(shape)
    return torch.from_numpy(moved).double()


model = tiny_model(tied=True, float64=True)
shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
experts = [{name: expert(k, name, shape) for name, shape in shapes.items()} for k in range(EXPERTS)]
documents = [(1 + tokens(length, 10000 * d, vocab=96)).tolist() for d, length in enumerate(LENGTHS)]


def loss(weights):
    merged = {name: sum(w * e[name] for w, e in zip(weights, experts)) for name in shapes}
    total = 0.0
    for document in documents:
        for inputs, scored in rolling_windows(document, WINDOW, PREFIX):
            logits = functional_call(model, merged, (torch.tensor([inputs]),)).logits[0, -len(scored) :]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(scored), reduction="sum")
    return total / sum(LENGTHS)


with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
    base = torch.full((EXPERTS,), 1 / EXPERTS, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(loss, base)
    curvature = torch.autograd.functional.hessian(loss, base)
    probes = [[1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [0.0, 0.4, 0.6]]
    losses = [loss(torch.tensor(weights, dtype=torch.float64)).item() for weights in probes]

write_golden(
    "derivatives",
    ["torch", "transformers", "lm-eval"],
    {
        "config": CONFIG | {"tie_word_embeddings": True},
        "window": WINDOW,
        "prefix_token": PREFIX,
        "move": MOVE,
        "documents": documents,
        "base": base.tolist(),
        "loss": loss(base).item(),
        "slopes": slopes.tolist(),
        "curvature": curvature.tolist(),
        "probes": [{"weights": w, "loss": value} for w, value in zip(probes, losses)],
    },
)
