"""Pins the learning-rate factors of 100 steps, with torch's own schedulers checked against the closed form.

Writes schedule.json. Step s is 0-based: (s + 1) / 10 while s < 10, then 1, or a cosine from 1 towards 0.1.
"""

import numpy as np
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from common import write_golden

STEPS, WARMUP, FLOOR = 100, 10, 0.1


def factors(after_warmup):
    """The factors of a linear warm-up followed by the scheduler that `after_warmup` makes."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup = LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
    schedule = SequentialLR(optimizer, [warmup, after_warmup(optimizer)], milestones=[WARMUP])
    found = []
    for _ in range(STEPS):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


constant = factors(lambda optimizer: ConstantLR(optimizer, factor=1.0))
cosine = factors(lambda optimizer: CosineAnnealingLR(optimizer, T_max=STEPS - WARMUP, eta_min=FLOOR))

step = np.arange(STEPS)
rise = (step + 1) / WARMUP
fall = FLOOR + (1 - FLOOR) * 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))
np.testing.assert_allclose(constant, np.minimum(1, rise), rtol=1e-12)
np.testing.assert_allclose(cosine, np.where(step < WARMUP, rise, fall), rtol=1e-12)

write_golden(
    "schedule",
    ["torch"],
    {"steps": STEPS, "warmup_steps": WARMUP, "floor": FLOOR, "constant": constant, "cosine": cosine},
)
