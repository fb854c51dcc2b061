"""How far back CNNs see, by the gradient of their losses: `python -m docs.figures.receptive_field RUN RUN RUN`."""

import numpy as np
import torch

from docs import figures
from docs.sources import ROOT
from engine.run.load import load_run
from engine.run.run import Run

LETTERS, ROWS = 80, 40


def gradients(run: Run, text: str) -> np.ndarray:
    """The length of the gradient of the last prediction's loss by the embedding 0, 1, 2, ... letters before it,
    (LETTERS,): the mean over ROWS pieces of `text`."""
    ids = run.tokenizer.encode(text[: ROWS * LETTERS])
    tokens = torch.tensor(ids.astype(np.int64)).view(ROWS, LETTERS)
    seen: list[torch.Tensor] = []
    with run.model.wte.register_forward_hook(lambda module, args, x: seen.append(x)):
        logits = run.model(tokens).logits
    assert logits is not None
    last = logits[:, -1].log_softmax(-1)
    (dx,) = torch.autograd.grad(last.amax(-1).sum(), seen[0])  # (B, T, C): of the likeliest token's log-probability
    return dx.norm(dim=-1).mean(0).flip(0).numpy()


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=3, model="cnn")
    text = "".join((ROOT / "data/names.txt").read_text("utf-8").split()[::7])
    figure = figures.new(7, 4)
    axes = figure.subplots()
    for folder in folders:
        run = load_run(folder, device="cpu")
        lengths = gradients(run, text)
        (reached,) = np.nonzero(lengths)
        n_layer = run.config.net.n_layer
        label = f"{n_layer} layer{'s' if n_layer > 1 else ''}: {len(reached)} letters"
        axes.plot(reached + 1, lengths[reached], "o-", markersize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**i for i in range(7)]
    axes.set_xticks(ticks, map(str, ticks))
    axes.set(xlabel="letters back (1: the last one read)", ylabel="length of the gradient")
    axes.grid(color="0.9")
    axes.legend()
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
