"""The experiments of docs/articles/12-rnn.md."""

from docs.experiments import Experiment, Picture

EXPERIMENTS = [
    Experiment("rnn", "python train.py --model rnn --cells written", "val_loss", 2.33, 2.38),
    Experiment("rnn-numpy", "python -m makemore.scratch.train --model rnn", "val_loss", 2.33, 2.38),
    Experiment(
        "rnn-orthogonal",
        "python train.py --model rnn --cells written --weight-init orthogonal",
        "val_loss",
        2.33,
        2.38,
    ),
]
PICTURES = [Picture("gradient_distance", of=("rnn",))]
