"""The experiments of docs/articles/11-cnn.md."""

from docs.experiments import Experiment, Picture

COMPARED = "python -m makemore.scratch.compare --model cnn"

EXPERIMENTS = [
    Experiment("cnn-1", "python train.py --model cnn --n-layer 1 --steps 1000", "val_loss", 2.48, 2.54),
    Experiment("cnn-3", "python train.py --model cnn --n-layer 3 --steps 1000", "val_loss", 2.35, 2.41),
    Experiment("cnn", "python train.py --model cnn --steps 1000", "val_loss", 2.35, 2.41),
    Experiment("cnn-float32", COMPARED, r"losses in float32: .* at most (\S+) apart", 0, 0.05, "nats a token", 4),
    Experiment("cnn-reversed", COMPARED, r"rows of each batch reversed: at most (\S+)", 0, 0.05, "nats a token", 4),
]
PICTURES = [Picture("receptive_field", of=("cnn-1", "cnn-3", "cnn"))]
