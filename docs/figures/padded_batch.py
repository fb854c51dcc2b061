"""Rows of a run's first batch, with their padding: `python -m docs.figures.padded_batch RUN`."""

import numpy as np

from data.batches import IGNORE
from docs import figures
from engine.run.load import load_run
from engine.texts import make_loader, prepare_text

ROWS = 12


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv)
    run = load_run(folder, device="cpu")
    batch = make_loader(run.config, prepare_text(run.config, run.tokenizer)).next()
    special = run.tokenizer.special
    signs = {special.bos: "bos", special.eos: "eos", special.pad: "pad", IGNORE: "-1"}
    share = 1 - batch.n_tokens / batch.targets.size
    figure = figures.new(9, 3.8)
    figure.suptitle(f"{ROWS} of {len(batch.tokens)} rows; {share:.0%} of the whole batch is padding", fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    scored = batch.targets[:ROWS] != IGNORE
    for axes, ids, name in zip(panels, (batch.tokens, batch.targets), ("tokens", "targets"), strict=True):
        axes.imshow(np.where(scored, 0.25, 0.0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), token in np.ndenumerate(ids[:ROWS]):
            sign = signs.get(int(token)) or run.tokenizer.decode([int(token)])
            color = "black" if scored[row, column] else "0.6"
            axes.text(column, row, sign, ha="center", va="center", color=color, fontsize=6.5 if len(sign) > 1 else 10)
        axes.set(title=name, xlabel="position", xticks=range(0, ids.shape[1], 2), yticks=range(len(ids[:ROWS])))
        axes.title.set_fontsize(10)
        axes.tick_params(length=0)
    panels[0].set(ylabel="row")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
