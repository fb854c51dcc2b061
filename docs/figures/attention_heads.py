"""The attention of a Transformer's heads over a line: `python -m docs.figures.attention_heads RUN`."""

from typing import Any

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run
from nanogpt.maps import attention_maps

TEXT = "my lord, the king"


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="transformer")
    run = load_run(folder, device="cpu")
    model: Any = run.model
    maps = attention_maps(model, torch.from_numpy(run.tokenizer.encode(TEXT, "mask").astype(np.int64))).numpy()
    blocks = {1: maps[0], len(maps): maps[-1]}  # the first and the last, by number: (H, T, T)
    letters = ["␣" if letter == " " else letter for letter in TEXT]
    later = np.triu(np.ones((len(TEXT), len(TEXT)), bool), 1)
    figure = figures.new(8, 4.6)
    grid = figure.subplots(len(blocks), maps.shape[1], sharex=True, sharey=True, squeeze=False)
    for row, (number, p) in zip(grid, blocks.items(), strict=True):
        for head, axes in enumerate(row):
            shown = axes.imshow(np.ma.masked_where(later, p[head]), cmap="Blues", vmin=0, vmax=0.6)
            axes.set_title(f"block {number}, head {head + 1}", fontsize=9)
            axes.set_xticks(range(len(letters)), letters, fontsize=8)
            axes.set_yticks(range(len(letters)), letters, fontsize=8)
            axes.tick_params(length=0)
    figure.supxlabel("letter looked at", fontsize=9)
    figure.supylabel("letter that looks", fontsize=9)
    figure.colorbar(shown, ax=grid, shrink=0.6, extend="max", label="weight")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
