"""The report at the end of a run: samples, marked where the data has them, the summary, and the picture of its loss."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.disk import replace_file
from data.eval_batches import eval_batches
from data.series.bins import Scale
from data.store import Store
from data.terminal import show
from engine import flops
from engine.config.sections import Config
from engine.run import results
from engine.run.filling import fill
from engine.run.load import Run
from engine.run.novelty import KnownLines, longest_copied
from engine.run.weights import load_best
from engine.run.writing import until_end
from engine.texts import masking_of
from engine.training.metrics import Metrics
from engine.training.progress import Progress
from makemore.base import LanguageModel, count_parameters

N_LINES, N_DOCUMENTS = 20, 5
N_CHARACTERS = 500
N_VALUES = 24  # of a series
SAMPLE_SEED = 42
UNKNOWN = "\ufffd"  # what `<unk>` is decoded to


def finish(
    model: LanguageModel,
    progress: Progress,
    config: Config,
    store: Store,
    device: torch.device,
    path: Path,
    metrics: Metrics,
    world: int = 1,
) -> None:
    """Write samples of the best weights, the summary and the picture of the loss. `world`: the processes that
    trained."""
    of_gpu = results.of_memory(device)  # before the peak is measured, which takes memory
    of_gpu |= flops.of_gpu(model, progress, config, device, world)
    facts = load_best(model, path, progress.best_step)
    best = Run(path, model.eval(), store.tokenizer, config, store.meta["start"], facts, device)
    text, copied = samples(best, store)
    replace_file(path / "samples.txt", (text + "\n").encode("utf-8"))
    summary = results.describe(config.model, count_parameters(model), progress) | copied
    summary |= of_gpu | results.by_the_byte(store, progress.best_bits)
    results.draw_loss(metrics, path)
    results.write_summary(path, summary)  # the last file: a run that has it is complete
    show(f"\n{text}\n")
    print(
        f"val loss {summary['val_loss']:.4f} ({summary['val_bits_per_char']:.3f} bits a {store.unit}) at step "
        f"{summary['best_step']}; {summary['seconds']:.1f} s of training{_speed(summary)}, loss curve in "
        f"{path / 'loss.png'}"
    )


def _speed(summary: dict[str, Any]) -> str:
    """What is said of the speed on a GPU."""
    if "mfu" not in summary:
        return ""
    return f" ({summary['tokens_per_second']:,} tokens/s, MFU {summary['mfu']:.0%})"


def samples(run: Run, store: Store) -> tuple[str, dict[str, int]]:
    """Samples of the model as text, and their entries of the summary: 20 lines or 5 documents, each marked 'in train',
    'in val' or 'new'; of a stream 500 tokens, or 5 documents of at most as many, and the length of the longest
    substring copied from the training text; of series some values. Of a model that fills gaps some of the validation
    text, filled."""
    if run.is_series:
        return _values(run, store), {}
    if run.fills:
        return fillings(run, store), {}
    if not run.is_lines:
        number = N_DOCUMENTS if run.has_ends else 1
        texts = [each.text for each in run.samples(num=number, max_new_tokens=N_CHARACTERS, seed=SAMPLE_SEED)]
        shown = "\n---\n".join(text.strip("\n") for text in texts)
        return shown, {"longest_copied": max(longest_copied(text, store) for text in texts)}
    number = N_DOCUMENTS if run.is_documents else N_LINES
    rows = torch.stack(list(run.generate_ids(num=number, seed=SAMPLE_SEED)), 1).tolist()
    sides = {"in train": KnownLines(store.train), "in val": KnownLines(store.val)}
    lines = []
    for row in (until_end(row, run.tokenizer.special.eos) for row in rows):
        mark = next((name for name, side in sides.items() if side.has(row)), "new")
        text = run.tokenizer.decode(row)
        lines.append(f"--- {mark}\n{text}\n" if run.is_documents else f"{text:<24} {mark}")
    return "\n".join(lines).rstrip("\n"), {}


def _values(run: Run, store: Store) -> str:
    """A series that the model makes up, as numbers of the first column."""
    scale = Scale.from_json(store.meta["series"], str(store.folder))
    drawn = next(run.samples(run.start, max_new_tokens=N_VALUES, seed=SAMPLE_SEED))
    numbers = " ".join(f"{value:.4g}" for value in scale.read(drawn.new, 0))
    return f"{N_VALUES} values of {scale.columns[0]}, made up: {numbers}"


def fillings(run: Run, store: Store) -> str:
    """The first rows of the validation text, each with its gaps, as they were filled, and as it was where that is
    another."""
    masking = masking_of(run.config, store)
    assert masking is not None  # the run fills
    shown, special = [], store.tokenizer.special
    most, between = (N_LINES, "\n") if run.is_lines else (N_DOCUMENTS, "\n---\n")
    batch = next(eval_batches(store.val, run.config.net.context, N_CHARACTERS)())
    masked = next(masking.of_evaluation([batch])).tokens
    for before, row in zip(batch.tokens[:most], masked[:most], strict=True):
        there = row != special.pad
        gaps = np.flatnonzero((row == special.unk) & (before != special.unk))
        tokens, _ = fill(run.model, torch.from_numpy(row[there]).to(run.device), gaps.tolist(), 0, [*special])
        open_, filled, was = (run.tokenizer.decode(ids) for ids in (row[there], tokens, before[there]))
        open_ = open_.replace(UNKNOWN, "_")
        if run.is_lines:
            shown.append(f"{open_} -> {filled}" + (f"   (was {was})" if filled != was else ""))
        else:
            shown.append(f"{open_}\n->\n{filled}")
    return between.join(shown)
