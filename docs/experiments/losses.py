"""The experiments of docs/articles/04-losses.md."""

from docs.experiments import Experiment, Picture

COUNTS = "python train.py --model bigram --counts --out runs/counts"
TOYS = "python -m makemore.scratch.toys --out toys.npz"
RIGHT = "of the points right"
EXPERIMENTS = [
    Experiment("loss-nats", COUNTS, "val_loss", 2.59, 2.60),
    Experiment("loss-bits", COUNTS, "val_bits_per_char", 3.73, 3.76, unit="bits a character"),
    Experiment(
        "loss-name",
        f"{COUNTS}\npython sample.py runs/counts --score marianna",
        r"^([\d.]+) bits per character",
        3.00, 3.02, unit="bits a character",
    ),
    Experiment("loss-two-layers", TOYS, r"^  two layers +([\d.]+)", 0.009, 0.03, unit="mean squared error"),
    Experiment("loss-squared", TOYS, r"^  squared error +([\d.]+)", 0.8, 0.93, unit=RIGHT),
    Experiment("loss-hinge", TOYS, r"^  hinge +([\d.]+)", 0.96, 1, unit=RIGHT),
    Experiment("loss-cross-entropy", TOYS, r"^  cross-entropy +([\d.]+)", 0.96, 1, unit=RIGHT),
]  # fmt: skip
PICTURES = [Picture("losses", of=("loss-name", "loss-hinge"))]
