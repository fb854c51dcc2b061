"""The experiments of docs/articles/13-lstm.md."""

from docs.experiments import Experiment, Picture

COMPARED = "python -m makemore.scratch.compare --model lstm"

EXPERIMENTS = [
    Experiment("lstm-numpy", "python -m makemore.scratch.train --model lstm", "val_loss", 2.28, 2.31),
    Experiment("lstm-torch", "python train.py --model lstm", "val_loss", 2.28, 2.31),
    Experiment("lstm-float64", COMPARED, r"losses in float64: .* at most (\S+) apart", 0, 1e-9, unit="nats a token"),
]
PICTURES = [Picture("lstm_gates", of=("lstm-numpy",))]
