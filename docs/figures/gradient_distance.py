"""How much a letter some steps back still moves an RNN's loss: `python -m docs.figures.gradient_distance RUN`."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from docs import figures
from docs.sources import ROOT
from engine.registry import build_model
from engine.run.load import load_run
from makemore.base import LanguageModel
from makemore.layers import initialise

LETTERS = 12


def gradients(model: LanguageModel, tokens: Tensor, targets: Tensor) -> np.ndarray:
    """The length of the gradient of a position's loss by the embedding 0, 1, 2, ... positions before it, (T,): the mean
    over the positions and rows of `tokens` (B, T)."""
    B, T = tokens.shape
    found: list[list[float]] = [[] for _ in range(T)]
    seen: list[Tensor] = []
    hook = model.wte.register_forward_hook(lambda module, args, x: seen.append(x))
    logits = model(tokens).logits
    hook.remove()
    assert logits is not None
    for t in range(T):
        loss = cross_entropy(logits[:, t], targets[:, t], reduction="sum")  # of each row apart, so no mean
        (dx,) = torch.autograd.grad(loss, seen[0], retain_graph=True)
        for distance in range(t + 1):
            found[distance] += dx[:, t - distance].norm(dim=-1).tolist()
    return np.array([np.mean(each) for each in found])


def main(argv: list[str]) -> None:
    (folder,), out = figures.arguments(__spec__.name, __doc__, argv, model="rnn")
    run = load_run(folder, device="cpu")
    names = [name for name in (ROOT / "data/names.txt").read_text("utf-8").split() if len(name) >= LETTERS]
    rows = torch.tensor([run.prompt_ids(name)[: LETTERS + 1] for name in names[:200]])  # (B, LETTERS + 1)
    tokens, targets = rows[:, :-1], rows[:, 1:]
    torch.manual_seed(run.config.run.seed)
    untrained, orthogonal = (build_model(run.config, run.tokenizer.vocab_size, run.tokenizer.special) for _ in range(2))
    initialise(orthogonal, "orthogonal")
    shown = {"before training": untrained, "before training, U orthogonal": orthogonal, "after training": run.model}
    figure = figures.new(7, 4)
    axes = figure.subplots()
    for label, model in shown.items():
        lengths = gradients(model, tokens, targets)
        axes.plot(lengths / lengths[0], "o-", label=label)
    axes.set_yscale("log")
    axes.set(xlabel="how many steps back the letter was read", ylabel="length of the gradient (last letter: 1)")
    axes.grid(color="0.9")
    axes.legend()
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
