"""Pins what sequences contribute to a step: torch's gradients, one sequence at a time, and Hessian-vector products.

Writes attribution.json, float64 throughout, on the tiny model, tied and untied: a step on four sequences, two losses on
others. `first` is -rate · clip / 4 · <grad L, g_i>, `second` is half of u_i' H (u_1 + ... + u_4); with `adam`, u_i is
multiplied by 1 / (sqrt(v) + eps), v the bias-corrected second moment after a fourth AdamW step, from given moments. `less`
holds, for each sequence, the direction of a fourth step with its gradient alone, unclipped, and cosines with the losses'
gradients.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from common import CONFIG, tiny_model, tokens, values, write_golden

SEQUENCES, LOSSES, LENGTH = 4, 2, 16
RATE, CLIP, BETA1, BETA2, EPS, STEP = 1e-2, 1.0, 0.9, 0.95, 1e-8, 4


def sequence(index):
    ids = torch.cat([torch.zeros(1, dtype=torch.long), torch.from_numpy(tokens(LENGTH, 1000 * index))])
    return ids[:-1][None], ids[1:]


def case(tied):
    model = tiny_model(tied, float64=True)
    names, parameters = zip(*sorted(model.named_parameters()))

    def loss(index):
        inputs, targets = sequence(index)
        return cross_entropy(model(inputs).logits[0], targets)

    def gradient(value, **options):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, **options)])

    g = [gradient(loss(i)) for i in range(SEQUENCES)]
    mean = sum(g) / SEQUENCES
    clip = min(1.0, CLIP / (mean.norm().item() + 1e-6))
    moment1 = torch.cat([torch.from_numpy(values(f"first {n}", p.numel(), 0.02)).double() for n, p in zip(names, parameters)])
    moment2 = torch.cat([torch.from_numpy(values(f"second {n}", p.numel(), 0.02)).double() for n, p in zip(names, parameters)])
    moment2 = moment2.square()
    v = (BETA2 * moment2 + (1 - BETA2) * (clip * mean).square()) / (1 - BETA2**STEP)
    scales = {"sgd": torch.ones_like(mean), "adam": 1 / (v.sqrt() + EPS)}
    valued = {}
    for update, scale in scales.items():
        u = [-RATE * clip / SEQUENCES * scale * x for x in g]
        first, second = [], []
        for index in range(SEQUENCES, SEQUENCES + LOSSES):
            slope = gradient(loss(index), create_graph=True)
            bend = gradient(slope @ sum(u))
            first.append([(slope.detach() @ x).item() for x in u])
            second.append([(bend @ x).item() / 2 for x in u])
        valued[update] = {"first": first, "second": second}
    slopes = [gradient(loss(index)) for index in range(SEQUENCES, SEQUENCES + LOSSES)]
    less = []
    for x in g:
        m = (BETA1 * moment1 + (1 - BETA1) * x) / (1 - BETA1**STEP)
        v = (BETA2 * moment2 + (1 - BETA2) * x.square()) / (1 - BETA2**STEP)
        direction = m / (v.sqrt() + EPS)
        cosine = [torch.nn.functional.cosine_similarity(direction, s, dim=0).item() for s in slopes]
        less.append({"norm": direction.norm().item(), "head": direction[:8].tolist(), "cosines": cosine})
    return {"clip": clip, "valued": valued, "less": less}


with sdpa_kernel(SDPBackend.MATH):  # the only one that can be differentiated twice
    cases = {name: case(tied) for name, tied in (("tied", True), ("untied", False))}

settings = {"sequences": SEQUENCES, "losses": LOSSES, "length": LENGTH, "rate": RATE, "clip": CLIP, "beta1": BETA1,
            "beta2": BETA2, "eps": EPS, "step": STEP}
write_golden("attribution", ["torch", "transformers"], {"config": CONFIG, "settings": settings, "cases": cases})
