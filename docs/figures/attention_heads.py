"""The attention of a Transformer's heads over a line: `python -m docs.figures.attention_heads RUN`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from docs import figures
from engine.run.load import load_run

TEXT = "my lord, the king"


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="transformer")
    run = load_run(folder, device="cpu")
    layers: Any = run.model.h
    blocks = {1: layers[0], len(layers): layers[-1]}  # the first and the last, by number
    read: list[tuple[Tensor, ...]] = []  # queries, keys and values of each, (1, H, T, D)

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs)

    for block in blocks.values():
        block.attn.attend.register_forward_pre_hook(keep)
    with torch.inference_mode():
        run.model(torch.from_numpy(run.tokenizer.encode(TEXT, "mask").astype(np.int64))[None])
    letters = ["␣" if letter == " " else letter for letter in TEXT]
    later = np.triu(np.ones((len(TEXT), len(TEXT)), bool), 1)
    n_head = read[0][0].shape[1]
    figure = figures.new(8, 4.6)
    grid = figure.subplots(len(blocks), n_head, sharex=True, sharey=True, squeeze=False)
    for row, number, (q, k, *_) in zip(grid, blocks, read, strict=True):
        scores = (q @ k.transpose(-1, -2))[0] * q.shape[-1] ** -0.5  # (H, T, T)
        p = scores.masked_fill(torch.from_numpy(later), -torch.inf).softmax(-1).numpy()
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
