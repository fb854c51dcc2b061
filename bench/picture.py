"""The README's picture: a run's loss curve beside its samples. `python -m bench.picture RUN docs/names.png`"""

import argparse
from pathlib import Path

from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    curve, samples = figure.subplots(1, 2, width_ratios=[2.2, 1])
    curve.imshow(image.imread(args.run / "loss.png"))
    lines = (args.run / "samples.txt").read_text("utf-8").splitlines()[:20]
    samples.text(0, 1, "\n".join(lines), family="monospace", size=9, va="top", linespacing=1.35)
    for axes in (curve, samples):
        axes.axis("off")
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
