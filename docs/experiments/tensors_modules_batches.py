"""The experiments of docs/articles/07-tensors-modules-batches.md."""

from docs.experiments import Experiment, Picture

COMPARED = "python -m makemore.scratch.compare --model mlp"
WHOLE = "python train.py --model mlp --schedule constant --steps 300 --out runs/whole"
PARTS = """
python train.py --model mlp --schedule constant --steps 100 --out runs/parts
python train.py --resume --steps 300 --out runs/parts
"""

EXPERIMENTS = [
    Experiment("same-float64", COMPARED, r"losses in float64: .* at most (\S+) apart", 0, 1e-9, unit="nats a token"),
    Experiment("same-float32", COMPARED, r"losses in float32: .* at most (\S+) apart", 0, 1e-5, unit="nats a token"),
    Experiment("training-whole", WHOLE, "val_loss", 2.42, 2.47, digits=6),
    Experiment("training-in-parts", PARTS, "val_loss", 2.42, 2.47, digits=6),
]
PICTURES = [Picture("padded_batch", of=("training-whole",))]
