"""Pins mixtures of predictions: their loss by SciPy's logsumexp in float64, and the best weights by SciPy's SLSQP.

Writes ensemble.json. Expert k has −ln p = nll(k) below, the same float32 values in Rust; every problem takes some of the tokens
and says in its own way how good the experts are there.
- `losses`: −mean ln Σ w p for some weights.
- `best`: the weights of least loss on the simplex, and that loss; each is checked here by its optimality gap.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from common import values, write_golden

TOKENS = 600


def nll(name, experts, contrast):
    """−ln p: about 2 nats, less for token t under expert t mod (experts + 1), so that one kind of token has no expert."""
    base = 2 + 10 * np.stack([values(f"{name}{k}", TOKENS) for k in range(experts)])
    kind = np.arange(TOKENS) % (experts + 1) == np.arange(experts)[:, None]
    return np.where(kind, base * np.float32(contrast), base).astype(np.float32)


def loss(weights, nll):
    with np.errstate(divide="ignore"):
        return float(-logsumexp(np.log(weights)[:, None] - nll.astype(np.float64), axis=0).mean())


def best(nll):
    p = np.exp(-nll.astype(np.float64))
    experts = len(p)
    slope = lambda w: -(p / (w @ p)).mean(axis=1)
    found = minimize(
        lambda w: -np.log(w @ p).mean(),
        np.full(experts, 1 / experts),
        jac=slope,
        method="SLSQP",
        bounds=[(1e-300, 1)] * experts,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(experts)},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0, None) / np.clip(found.x, 0, None).sum()
    gap = (-slope(weights)).max() - 1
    assert gap < 1e-7, gap
    return {"weights": weights.tolist(), "loss": loss(weights, nll), "gap": gap}


def problem(name, experts, contrast):
    table = nll(name, experts, contrast)
    rng = np.random.default_rng(experts)
    weights = [np.full(experts, 1 / experts), np.eye(experts)[1], *rng.dirichlet(np.full(experts, 0.5), 4)]
    losses = [{"weights": w.tolist(), "loss": loss(w, table)} for w in weights]
    return {"name": name, "experts": experts, "contrast": contrast, "losses": losses, "best": best(table)}


write_golden(
    "ensemble",
    ["numpy", "scipy"],
    {"tokens": TOKENS, "problems": [problem("alike", 3, 0.9), problem("apart", 5, 0.25), problem("sharp", 12, 0.02)]},
)
