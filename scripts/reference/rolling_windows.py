"""Pins how a document is cut into windows, with lm-evaluation-harness's own functions.

Writes rolling_windows.json: token ids are 1..=length and the prefix is 0, so `first_input_token` tells where a
window's input starts. The last `n_scored` of a window's `input_len` predictions are scored.
"""

from common import rolling_windows, write_golden

PREFIX = 0
WINDOWS = [7, 16, 128]
LENGTHS = [1, 2, 3, 6, 7, 8, 13, 14, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 130, 255, 256, 257, 300, 384, 385]
LENGTHS += [511, 512, 513, 639, 640, 641, 699, 700]


def case(window, length):
    document = list(range(1, length + 1))
    windows = [[inputs[0], len(inputs), len(scored)] for inputs, scored in rolling_windows(document, window, PREFIX)]
    return {"window": window, "length": length, "windows": windows}


write_golden(
    "rolling_windows",
    ["lm-eval"],
    {
        "prefix_token": PREFIX,
        "columns": ["first_input_token", "input_len", "n_scored"],
        "cases": [case(window, length) for window in WINDOWS for length in LENGTHS],
    },
)
