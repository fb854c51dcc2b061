"""The experiments of docs/articles/01-network.md."""

from docs.experiments import Experiment, Picture

COMMAND = "python -m makemore.scratch.spirals --out spirals.npz"
LAST_LINE = r"^ *\d+ +{} +{} +[\d.]+$"  # step, perceptron, two layers, loss
NUMBER, ANY = r"([\d.]+)", r"[\d.]+"

EXPERIMENTS = [
    Experiment("spirals-perceptron", COMMAND, LAST_LINE.format(NUMBER, ANY), 0.30, 0.75, "of the points"),
    Experiment("spirals-network", COMMAND, LAST_LINE.format(ANY, NUMBER), 0.98, 1.00, "of the points"),
]
PICTURES = [Picture("spirals", of=("spirals-network",))]
