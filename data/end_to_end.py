"""A padded batch without its padding: its rows laid end to end in one.

Done on the CPU, where the lengths of the rows are known without a wait for a GPU.
"""

import numpy as np

from data.batches import IGNORE, Array, Batch

MIN_STEP = 128  # positions; a GPU computes on tiles of so many
STEPS_AN_OCTAVE = 8  # sizes between one power of two and the next: at most an eighth more than is needed


def end_to_end(batch: Batch[Array]) -> Batch[Array]:
    """The rows of `batch`, each up to its last target, laid end to end: tokens and targets (1, R), and
    `starts`. R is rounded up, so that few sizes occur; the positions past the last row hold token 0 and predict
    nothing. The batch itself where this would save nothing."""
    valid = batch.targets != IGNORE
    B, T = valid.shape
    lengths = np.where(valid.any(1), T - valid[:, ::-1].argmax(1), 0)
    starts = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    total = rounded_up(int(starts[-1]))
    if total >= B * T:
        return batch
    kept = np.arange(T) < lengths[:, None]

    def lay(x: Array, filler: int) -> Array:
        laid = np.full((1, total), filler, x.dtype)
        laid[0, : starts[-1]] = x[kept]
        return laid

    return batch._replace(
        tokens=lay(batch.tokens, 0),
        targets=lay(batch.targets, IGNORE),
        weight=None if batch.weight is None else lay(batch.weight, 1),
        position=None,
        starts=starts,
    )


def rounded_up(count: int) -> int:
    """The next of the sizes that occur: multiples of an eighth of the power of two below, but of 128 at least."""
    step = max(MIN_STEP, (1 << count.bit_length() >> 1) // STEPS_AN_OCTAVE)
    return -(-count // step) * step
