"""Possible futures of series, drawn from a model."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from data.series.bins import Scale
from engine.config.sections import MAX_SEED
from engine.run.run import Run
from engine.run.samples import Drawing, seeded


class Window(NamedTuple):
    """Where a forecast begins: after the `history` (T,) of a column of the scale."""

    column: int
    history: np.ndarray


def draw_paths(
    run: Run, scale: Scale, windows: Sequence[Window], ahead: int, samples: int, seed: int
) -> list[np.ndarray]:
    """For each window `samples` paths of the next `ahead` values, (samples, ahead). The model reads as much of the
    history as lies with the forecast in its context: a Transformer whose context is full would forget half of it.
    Windows have noise of their own, so that their errors are not alike."""
    drawing = Drawing(
        run.model, run.tokenizer, run.suppressed, run.device, run.request(max_new_tokens=ahead, seed=seed)
    )
    context = run.config.net.context
    read = None if context is None else max(context - ahead + 1, context // 2, 1)
    prompts = []
    for n, window in enumerate(windows):
        text = scale.write(window.history if read is None else window.history[-read:], window.column)
        prompt = drawing.prompt("", run.tokenizer.encode(text).tolist(), samples, None)
        prompt.generator = seeded((seed + n) % (MAX_SEED + 1), run.device)
        prompts.append(prompt)
    drawn = drawing.draw(prompts)
    return [np.stack([scale.read(each.new, w.column) for each in islice(drawn, samples)]) for w in windows]
