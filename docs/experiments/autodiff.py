"""The experiments of docs/articles/02-autodiff.md."""

from docs.experiments import Experiment, Picture

TAPE = "python -m makemore.scratch.train --engine tape --model mlp --steps 200 --out runs/tape"
HAND = "python -m makemore.scratch.train --model mlp --steps 200 --out runs/hand"

EXPERIMENTS = [
    Experiment("tape-mlp", TAPE, "val_loss", 2.44, 2.47, digits=4),
    Experiment("hand-mlp", HAND, "val_loss", 2.44, 2.47, digits=4),
]
PICTURES = [Picture("tape_graph")]
