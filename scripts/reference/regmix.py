"""Fits SciPy, scikit-learn and LightGBM models to the RegMix tables in tests/golden/regmix and scores them.

Writes regmix/reference.json. Every model is fitted on the 512 mixtures for 1M parameters, one per loss, and scored by
Spearman's rho on the 256 unseen mixtures, against the measured losses at 1M and at 60M parameters.
- transfer: the measured 1M losses as predictors of the 60M losses.
- linear: least squares with an intercept; compare predictions, the coefficients are ill-determined.
- law: c + exp(ln k + t r), c >= 0, mean Huber loss, the best of several starts.
- trees: LightGBM with the settings of RegMix, a fixed 1000 rounds without early stopping.
Predictions are rounded to 9 decimals before ranking: where the law is flat they differ by rounding errors alone.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy, so that sums have one order

import lightgbm
import numpy as np
from scipy import optimize, stats
from sklearn.linear_model import LinearRegression

from common import GOLDEN, write_golden

TABLES = GOLDEN / "regmix"
DELTA = 0.02
STARTS = 24
TREES = dict(n_estimators=1000, learning_rate=0.01, num_leaves=31, min_child_samples=20)


def table(name):
    """Column names without `index`, and the rows in order of `index`."""
    with open(TABLES / name) as file:
        header = file.readline().strip().split(",")
    rows = np.loadtxt(TABLES / name, delimiter=",", skiprows=1)
    assert header[0] == "index"
    return header[1:], rows[np.argsort(rows[:, 0])][:, 1:]


def spearman(predicted, truth):
    return float(stats.spearmanr(np.round(predicted, 9), truth).statistic)


def scores(predicted):
    """Spearman's rho per loss at both sizes."""
    per = {size: [spearman(p, y) for p, y in zip(predicted.T, truth.T)] for size, truth in TRUTHS.items()}
    return {f"spearman_{size}": values for size, values in per.items()}


def transfer():
    pairs = list(zip(TRUTHS["1m"].T, TRUTHS["60m"].T))
    return {
        "pearson": [float(stats.pearsonr(x, y).statistic) for x, y in pairs],
        "spearman": [float(stats.spearmanr(x, y).statistic) for x, y in pairs],
        "kendall": [float(stats.kendalltau(x, y).statistic) for x, y in pairs],
    }


def linear():
    model = LinearRegression().fit(WEIGHTS, LOSSES)
    parameters = {"intercept": model.intercept_.tolist(), "coefficients": model.coef_.tolist()}
    return parameters | scores(model.predict(TEST))


def huber(theta, losses):
    """The mean Huber loss of a law and its gradient; theta is c, ln k, t."""
    term = np.exp(np.minimum(theta[1] + WEIGHTS @ theta[2:], 60))
    residual = theta[0] + term - losses
    size = np.abs(residual)
    value = np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2)).mean()
    slope = np.clip(residual, -DELTA, DELTA) / len(losses)
    return value, np.r_[slope.sum(), slope @ term, (slope * term) @ WEIGHTS]


def fit_law(losses, rng):
    bounds = [(0, None)] + [(None, None)] * (WEIGHTS.shape[1] + 1)
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-9, "maxcor": 30}
    best = None
    for _ in range(STARTS):
        floor = rng.uniform(0, losses.min())
        start = np.r_[floor, np.log(losses.mean() - floor), rng.standard_normal(WEIGHTS.shape[1])]
        found = optimize.minimize(huber, start, (losses,), "L-BFGS-B", jac=True, bounds=bounds, options=options)
        best = found if best is None or found.fun < best.fun else best
    return best


def law():
    rng = np.random.default_rng(3)
    fits = [fit_law(losses, rng) for losses in LOSSES.T]
    predicted = np.column_stack([fit.x[0] + np.exp(fit.x[1] + TEST @ fit.x[2:]) for fit in fits])
    return {"delta": DELTA, "objective": [float(fit.fun) for fit in fits]} | scores(predicted)


def trees():
    settings = TREES | dict(n_jobs=1, deterministic=True, force_row_wise=True, verbosity=-1)
    models = [lightgbm.LGBMRegressor(**settings).fit(WEIGHTS, losses) for losses in LOSSES.T]
    return scores(np.column_stack([model.predict(TEST) for model in models]))


_, WEIGHTS = table("train_mixture_1m.csv")
NAMES, LOSSES = table("train_pile_loss_1m.csv")
_, TEST = table("test_mixture_1m.csv")
TRUTHS = {size: table(f"test_pile_loss_{size}.csv")[1] for size in ("1m", "60m")}

content = {"losses": NAMES, "transfer": transfer(), "linear": linear(), "law": law(), "trees": trees()}
write_golden("regmix/reference", ["numpy", "scipy", "scikit-learn", "lightgbm"], content)
