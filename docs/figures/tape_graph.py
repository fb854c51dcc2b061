"""The graph of `b = a + a; c = b + b`, as the tape of makemore/scratch/tape.py has it: `python -m
docs.figures.tape_graph`."""

from docs import figures
from makemore.scratch.tape import Tensor

PLACES = {"a": 0, "b": 1, "c": 2}


def main(argv: list[str]) -> None:
    _, out = figures.arguments(__spec__.name, __doc__, argv, runs=0)
    a = Tensor(1.0)
    b = a + a
    c = b + b
    c.backward()
    figure = figures.new(7, 2.6)
    axes = figure.subplots()
    tensors = dict(zip(PLACES, (a, b, c), strict=True))
    for name, tensor in tensors.items():
        x, grad = PLACES[name], "" if tensor.grad is None else f"{float(tensor.grad):g}"
        axes.text(
            x, 0, f"{name} = {float(tensor.value):g}", ha="center", va="center", size=13,
            bbox={"boxstyle": "round,pad=0.5", "fc": "#deebf7", "ec": "#3182bd"},
        )  # fmt: skip
        axes.text(x, -0.62, f"d c / d {name} = {grad}", ha="center", color="#b2182b", size=11)
        for n, parent in enumerate(tensor.parents):
            before = next(PLACES[key] for key, value in tensors.items() if value is parent)
            bend = 0.25 * (1 - 2 * n)
            curve = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={-bend}", "shrinkA": 30, "shrinkB": 30}
            axes.annotate("", (x, 0), (before, 0), arrowprops=curve | {"color": "#3182bd"})
            axes.text(
                (x + before) / 2, 0.95 * bend + 0.12 * (1 - 2 * n), grad, ha="center", va="center", color="#b2182b"
            )
    axes.text(0.5, 0.55, "b = a + a", ha="center", size=10)
    axes.text(1.5, 0.55, "c = b + b", ha="center", size=10)
    axes.set(xlim=(-0.45, 2.45), ylim=(-0.75, 0.65))
    axes.axis("off")
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
