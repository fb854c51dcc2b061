"""What a perceptron and two layers say of the whole plane, over the steps: `python -m docs.figures.spirals FILE`, the
file being the --out of makemore.scratch.spirals."""

import numpy as np

from docs import figures

SHOWN = (0, 1, 2, 10)  # of the moments in the file
DRAWN = 150  # points


def main(argv: list[str]) -> None:
    (path,), out = figures.arguments(__spec__.name, __doc__, argv)
    with np.load(path) as file:
        steps, accuracy, planes = file["steps"], file["accuracy"], file["planes"]
        points, arms, edge = file["points"], file["arms"], float(file["edge"])
    some = np.random.default_rng(0).permutation(len(points))[:DRAWN]
    points, arms = points[some], arms[some]
    shown = [i for i in SHOWN if i < len(steps)]
    figure = figures.new(8, 4.6)
    grid = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for row, name in enumerate(("perceptron", "two layers")):
        for axes, i in zip(grid[row], shown, strict=True):
            area = {"extent": (-edge, edge) * 2, "origin": "lower", "interpolation": "none"}
            axes.imshow(planes[i, row], cmap="Pastel1", vmin=0, vmax=8, **area)
            for arm in np.unique(arms):
                axes.plot(*points[arms == arm].T, "o", ms=2, color=("#b2182b", "#2166ac", "#1b7837")[arm % 3])
            axes.set(xticks=[], yticks=[], xlabel=f"{accuracy[i, row]:.2f} right")
            if row == 0:
                axes.set_title(f"step {steps[i]}", size=10)
        grid[row][0].set_ylabel(name)
    figures.save(figure, out)


if __name__ == "__main__":
    figures.run(main)
