"""The learning rate over the steps, as a factor of its peak."""

import math

WSD_DECAY = 0.2  # the last part of warmup-stable-decay (Hu et al. 2024)


def lr_factor(schedule: str, step: int, steps: int, warmup: int, floor: float) -> float:
    """The factor at `step` (0-based) of `steps`: up over `warmup` steps, then 'constant', 'linear' or 'cosine' down to
    `floor`, 'step' (a tenth after each third) or 'wsd' (constant, then linear down to `floor` over the last fifth)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))  # 0 .. 1 after the warm-up
    if schedule == "linear":
        return 1 + (floor - 1) * progress
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return 0.1 ** min(2, int(3 * progress))
    if schedule == "wsd":
        return 1 + (floor - 1) * max(0.0, (progress - 1 + WSD_DECAY) / WSD_DECAY)
    return 1.0
