"""Pins GradEx's parts: log-odds and their gradient by torch, the logistic regression by scikit-learn's liblinear.

Writes gradex.json. The output of a sequence is the mean over its tokens of ln(p / (1 - p)), with p lowered by 0.01 above 0.9
and raised by 0.01 below 0.001; the constants carry no gradient. Weights are scaled by `gain` so that both happen.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from common import CONFIG, batch, tiny_model, values, write_golden

GAIN = 60.0  # of the output matrix: predictions from 1e-9 to nearly 1
COLUMNS, ROWS = 6, 40


def outputs(model, inputs, targets):
    p = torch.softmax(model(inputs).logits, dim=-1).gather(-1, targets[..., None])[..., 0]
    clipped = p - 0.01 * (p > 0.9) + 0.01 * (p < 0.001)
    return p, torch.log(clipped / (1 - clipped)).mean(dim=1)


def log_odds():
    model = tiny_model(tied=False, float64=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(GAIN)
    inputs, targets = batch()
    with torch.no_grad():  # one token of each sequence is what the model predicts
        targets[:, 3] = model(inputs).logits[:, 3].argmax(-1)
    p, f = outputs(model, inputs, targets)
    assert (p > 0.9).any() and (p < 0.001).any() and ((p > 0.001) & (p < 0.9)).any()
    sequences = []
    for index in range(len(inputs)):
        model.zero_grad()
        f[index].backward(retain_graph=True)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        sequences.append(
            {
                "output": f[index].item(),
                "norms": {name: gradient.norm().item() for name, gradient in gradients.items()},
                "heads": {name: gradient.flatten()[:4].tolist() for name, gradient in gradients.items()},
            }
        )
    return {"targets": targets.tolist(), "inputs": inputs.tolist(), "sequences": sequences}


def regressions():
    rows = values("gradex rows", ROWS * COLUMNS, 6.0).reshape(ROWS, COLUMNS).astype(np.float64)
    labels = values("gradex labels", ROWS, 1.0) < 0.2
    weights = values("gradex weights", ROWS, 2.0).astype(np.float64) + 1.0
    signed = np.where(labels[:, None], rows, -rows)
    found = []
    for c in (1e-4, 0.1, 10.0):
        fit = LogisticRegression(C=c, solver="liblinear", tol=1e-12, max_iter=10_000)
        fit.fit(signed, labels, sample_weight=weights)
        found.append({"c": c, "coefficients": fit.coef_[0].tolist(), "intercept": fit.intercept_[0]})
    return {"rows": ROWS, "columns": COLUMNS, "found": found}


write_golden(
    "gradex",
    ["torch", "transformers", "scikit-learn", "numpy"],
    {"config": CONFIG | {"tie_word_embeddings": False}, "gain": GAIN, "log_odds": log_odds(), "regression": regressions()},
)
