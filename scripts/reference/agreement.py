"""Pins the measures of agreement between predicted (x) and true (y) losses, with SciPy's correlations.

Writes agreement.json; null stands for undefined.
- decision_accuracy: the share of pairs that x orders as y does; pairs tied in y are skipped, and a pair tied only
  in x counts one half.
- top_k: the share of the k smallest of y among the k smallest of x, ties broken by index; null where k > length.
- regret: y at the first smallest x, less the smallest y.
"""

import warnings

import numpy as np
from scipy import stats

from common import write_golden

warnings.simplefilter("ignore")  # SciPy warns where a correlation is undefined
rng = np.random.default_rng(11)


def noisy(x, noise):
    return x + noise * rng.standard_normal(len(x))


def cases():
    """Names and pairs of vectors, drawn in this order."""
    x = rng.standard_normal(60)
    yield "close", x, noisy(x, 0.2)
    x = rng.standard_normal(25)
    yield "negative", x, noisy(-x, 0.5)
    yield "unrelated", rng.standard_normal(40), rng.standard_normal(40)
    yield "two agree", np.array([1.0, 2.0]), np.array([3.0, 3.5])
    yield "two disagree", np.array([1.0, 2.0]), np.array([3.5, 3.0])
    yield "three", np.array([0.3, 0.1, 0.2]), np.array([2.0, 1.0, 4.0])
    x = rng.integers(0, 4, 50)
    yield "heavy ties", x, x + rng.integers(0, 3, 50)
    yield "ties in x", rng.integers(0, 5, 20), rng.standard_normal(20)
    yield "ties in y", rng.standard_normal(20), rng.integers(0, 5, 20)
    yield "constant x", np.full(8, 2.5), rng.standard_normal(8)
    yield "constant y", rng.standard_normal(8), np.full(8, 2.5)
    yield "constant both", np.ones(5), np.ones(5)
    yield "smallest tied", np.array([1.0, 1.0, 1.0, 2.0, 3.0, 3.0]), np.array([5.0, 4.0, 4.0, 4.0, 9.0, 6.0])
    x = 1e9 + rng.integers(0, 1000, 30)
    yield "large offset", x, noisy(x, 300)
    x = rng.standard_normal(12)
    yield "large scale", 1e200 * x, 1e200 * noisy(x, 1)
    x = np.sort(rng.standard_normal(15))
    yield "monotone", x, np.exp(3 * x)


def decision_accuracy(x, y):
    first, second = np.triu_indices(len(x), 1)
    told, true = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    credit = np.where(told == 0, 0.5, told == true)[true != 0]
    return credit.mean() if len(credit) else None


def top_k(x, y, k):
    best = [set(np.argsort(v, kind="stable")[:k].tolist()) for v in (x, y)]
    return len(best[0] & best[1]) / k if k <= len(x) else None


def measures(x, y):
    found = {
        "pearson": stats.pearsonr(x, y).statistic,
        "spearman": stats.spearmanr(x, y).statistic,
        "kendall": stats.kendalltau(x, y, variant="b").statistic,
        "decision_accuracy": decision_accuracy(x, y),
        "top_1": top_k(x, y, 1),
        "top_3": top_k(x, y, 3),
        "top_5": top_k(x, y, 5),
        "regret": y[np.argmin(x)] - y.min(),
    }
    return {name: None if v is None or np.isnan(v) else float(v) for name, v in found.items()}


def case(name, x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    vectors = {"x": x.tolist(), "y": y.tolist(), "ranks_x": stats.rankdata(x).tolist()}
    return {"name": name} | vectors | measures(x, y)


write_golden("agreement", ["numpy", "scipy"], {"cases": [case(*each) for each in cases()]})
