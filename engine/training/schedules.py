"""The learning rate over the steps or the time, as a fraction of its peak."""

import math

WSD_DECAY = 0.2  # the part of warmup-stable-decay that is the decay (Hu et al. 2024)


def lr_factor(schedule: str, step: int, steps: int | None, warmup: int, floor: float, time_used: float = 0.0) -> float:
    """The factor at `step` (0-based) of `steps`: rising over `warmup` steps, then 'constant', 'linear' or 'cosine' down
    to `floor`, 'step' (a tenth after each third) or 'wsd' (constant, then linear down to `floor` over the last fifth).

    `time_used`: the part of the time limit that is used. The schedule follows the steps or the time, whichever is
    further; during the warm-up the factor is at most that of the time. `steps` None: time alone."""
    time_used = min(1.0, time_used)
    if step < warmup:
        return min((step + 1) / (warmup + 1), _fall(schedule, time_used, floor))
    by_steps = 0.0 if steps is None else min(1.0, (step - warmup) / max(1, steps - warmup))
    return _fall(schedule, max(by_steps, time_used), floor)


def _fall(schedule: str, progress: float, floor: float) -> float:
    """The factor after the warm-up, at `progress` from 0 to 1."""
    if schedule == "linear":
        return 1 + (floor - 1) * progress
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 0.1 ** min(2, int(3 * progress))
    if schedule == "wsd":
        return 1 + (floor - 1) * max(0.0, (progress - 1 + WSD_DECAY) / WSD_DECAY)
    return 1.0
