"""How likely each letter of a name is to a model that sees both sides of it, and to one that sees what comes before:
`python -m docs.figures.hidden_letters MASKED NEXT`."""

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run
from engine.run.run import Run

NAMES = ("alexandra", "johanna")


def of_both_sides(run: Run, name: str) -> list[float]:
    """The probability of each letter where it alone is hidden."""
    special = run.tokenizer.special
    ids = torch.tensor([special.bos, *run.tokenizer.encode(name).tolist()])
    rows = ids.repeat(len(name), 1)
    places = torch.arange(1, len(ids))
    rows[places - 1, places] = special.unk
    with torch.inference_mode():
        p = run.model(rows).logits.softmax(-1)
    return p[places - 1, places, ids[1:]].tolist()


def of_what_comes_before(run: Run, name: str) -> list[float]:
    """The probability of each letter after those before it."""
    return [float(np.exp(token.logprob)) for token in run.token_scores(name)[:-1]]


def main(argv: list[str]) -> None:
    folders, out = figures.arguments(__spec__.name, __doc__, argv, runs=2)
    masked, causal = (load_run(folder, device="cpu") for folder in folders)
    figure = figures.new(7, 4.6)
    for axes, name in zip(figure.subplots(2, 1), NAMES, strict=True):
        places = np.arange(len(name))
        axes.bar(places - 0.2, of_both_sides(masked, name), 0.4, color="#3f72af", label="both sides are seen")
        axes.bar(places + 0.2, of_what_comes_before(causal, name), 0.4, color="#d1495b", label="what comes before")
        axes.set_xticks(places, [*name])
        axes.set(ylabel="probability", ylim=(0, 1))
    figure.axes[-1].set_xlabel("the letter that is asked for")
    figure.axes[0].legend(loc="upper left", ncols=2, frameon=False)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
