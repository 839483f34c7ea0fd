"""Pins percentile bootstrap intervals of the agreement statistics, with scipy.stats.bootstrap.

Writes bootstrap.json: per case and statistic the mean of the interval's ends over several runs, each of RESAMPLES
resamples, and the standard deviation of one run, which is the Monte-Carlo error of whoever does the same.
The case of two eval sets resamples the candidates of both together and takes the mean of the statistic over the two.
"""

import numpy as np
from scipy import stats

from common import write_golden

RESAMPLES, RUNS, LEVEL = 4000, 6, 0.95
rng = np.random.default_rng(23)


def decision_accuracy(x, y):
    first, second = np.triu_indices(len(x), 1)
    told, true = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    return np.where(told == 0, 0.5, told == true)[true != 0].mean()


def top_overlap(x, y):
    k = (len(x) + 2) // 4
    best = [set(np.argsort(v, kind="stable")[:k].tolist()) for v in (x, y)]
    return len(best[0] & best[1]) / k


STATISTICS = {
    "pearson": lambda x, y: stats.pearsonr(x, y).statistic,
    "spearman": lambda x, y: np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1],
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
    "decision_accuracy": decision_accuracy,
    "top_overlap": top_overlap,
    "regret": lambda x, y: y[np.argmin(x)] - y.min(),
}


def interval(statistic, predicted, truth):
    """Mean and standard deviation over runs of the ends of the interval."""
    n_evals = len(predicted)

    def overall(*columns):
        pairs = zip(columns[:n_evals], columns[n_evals:])
        return np.mean([statistic(x, y) for x, y in pairs])

    ends = []
    for seed in range(RUNS):
        found = stats.bootstrap(
            (*predicted, *truth), overall, paired=True, vectorized=False, n_resamples=RESAMPLES,
            confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed),
        )
        ends.append([found.confidence_interval.low, found.confidence_interval.high])
    return {"mean": np.mean(ends, 0).tolist(), "deviation": np.std(ends, 0, ddof=1).tolist()}


def case(name, n, noises):
    truth = [rng.standard_normal(n) for _ in noises]
    predicted = [y + noise * rng.standard_normal(n) for y, noise in zip(truth, noises)]
    intervals = {key: interval(statistic, predicted, truth) for key, statistic in STATISTICS.items()}
    vectors = {"predicted": [x.tolist() for x in predicted], "truth": [y.tolist() for y in truth]}
    return {"name": name} | vectors | {"intervals": intervals}


cases = [case("one eval set", 24, [0.6]), case("two eval sets", 15, [0.3, 1.0])]
write_golden("bootstrap", ["numpy", "scipy"], {"resamples": RESAMPLES, "runs": RUNS, "level": LEVEL, "cases": cases})
