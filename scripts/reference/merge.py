"""Pins the weighted average of models: summed in float64 over the members in order, rounded once to float32.

Writes merge.json: `bits` are the float32 results, `f64` the sums before rounding.
Member k holds value("member{k}.w", i) for i in 0..64.
"""

import numpy as np

from common import values, write_golden

MEMBERS, SIZE = 5, 64
WEIGHTS = {
    "one": [1.0, 0.0, 0.0, 0.0, 0.0],
    "uniform": [1 / MEMBERS] * MEMBERS,
    "graded": [0.1, 0.2, 0.3, 0.25, 0.15],
    "dirichlet": np.random.default_rng(7).dirichlet(np.ones(MEMBERS)).tolist(),
}

members = [values(f"member{k}.w", SIZE).astype(np.float64) for k in range(MEMBERS)]


def merged(weights):
    total = np.zeros(SIZE)
    for weight, member in zip(weights, members):
        total += weight * member
    rounded = total.astype(np.float32)
    return {"weights": weights, "bits": rounded.view(np.uint32).tolist(), "f64": total.tolist()}


write_golden(
    "merge",
    ["numpy"],
    {"members": [f"member{k}.w" for k in range(MEMBERS)], "size": SIZE}
    | {"cases": [{"name": name} | merged(weights) for name, weights in WEIGHTS.items()]},
)
