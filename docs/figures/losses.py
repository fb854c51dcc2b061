"""Three losses over the margin, the borders they draw, and a name's loss: `python -m docs.figures.losses RUN TOYS`.

RUN is a model of names, TOYS the file that `python -m makemore.scratch.toys --out TOYS` writes.
"""

import numpy as np
import torch

from docs import figures
from engine.run.load import load_run
from makemore.scratch.functions import Array
from makemore.scratch.toys import LOSSES

NAME = "marianna"


def main(argv: list[str]) -> None:
    (run, toys), out = figures.arguments(__spec__.name, __doc__, argv, runs=2)
    figure = figures.new(7, 6.4)
    (over_margin, derivatives), (borders, letters) = figure.subplots(2, 2)
    margin = np.linspace(-3, 4, 141)
    for i, (name, loss) in enumerate(LOSSES.items()):
        values, slopes = zip(*(of_margin(loss, m) for m in margin), strict=True)
        over_margin.plot(margin, values, color=f"C{i}", label=name)
        derivatives.plot(margin, slopes, color=f"C{i}")
    over_margin.set(title="loss over the margin", xlabel="right score less the wrong one", ylim=(-0.1, 4))
    over_margin.legend(fontsize=8)
    derivatives.set(title="its derivative", xlabel="right score less the wrong one", ylim=(-2.1, 1.1))
    with np.load(toys) as arrays:
        points, classes = arrays["clouds"], arrays["classes"]
        for value, color in ((0, "0.75"), (1, "0.4")):
            borders.scatter(*points[classes == value].T, s=6, color=color, label=f"class {value}")
        for i, name in enumerate(LOSSES):
            W, b = np.split(arrays[name.replace(" ", "_").replace("-", "_")], [2], 1)
            (across, up), shift = W[1] - W[0], (b[1] - b[0]).item()
            y = np.array([-1.2, 1.2])
            borders.plot(-(shift + up * y) / across, y, color=f"C{i}", linestyle="--" if name == "hinge" else "-")
    borders.set(title="where each loss puts the border", xlim=(-2.2, 7.2), ylim=(-1.2, 1.2))
    borders.legend(fontsize=8, loc="lower right")
    nats = of_letters(load_run(run, device="cpu"))
    letters.bar(range(len(nats)), nats, color="C2")
    letters.axhline(nats.mean(), color="0.4", linestyle="--", linewidth=1)
    letters.set_xticks(range(len(nats)), [*NAME, "end"])
    letters.set(title=f"{NAME}, by the counted bigram", ylabel="nats; dashed: their mean")
    figures.save(figure, out)


def of_margin(loss, margin: float) -> tuple[float, float]:
    """A loss of two scores around 1/2 whose difference is `margin`, and its derivative by that."""
    value, back = loss(np.array([[0.5 + margin / 2, 0.5 - margin / 2]]), np.array([0]))
    return float(value), float(back()[0] @ [0.5, -0.5])


def of_letters(run) -> Array:
    """The negative log-likelihood of each letter of NAME and of its end, in nats."""
    special = run.tokenizer.special
    ids = torch.tensor([special.bos, *run.tokenizer.encode(NAME).tolist(), special.eos])
    with torch.inference_mode():
        nats, _ = run.model.token_nll(ids[:-1], ids[1:])
    return nats.numpy()


if __name__ == "__main__":
    figures.run(main)
