"""The experiments of docs/articles/14-gru.md."""

from docs.experiments import Experiment, Picture

IN_NUMPY = "python -m makemore.scratch.train --model gru"
IN_TORCH = f"""{IN_NUMPY}
python sample.py runs/gru-names-1 --num 8 --seed 1
python train.py --model gru --init runs/gru-names-1 --steps 100"""
COMPARED = "python -m makemore.scratch.compare --model gru"

EXPERIMENTS = [
    Experiment("gru-numpy", IN_NUMPY, "val_loss", 2.28, 2.31),
    Experiment("gru-torch", IN_TORCH, r"^step +0 +val ([\d.]+)", 2.28, 2.31),
    Experiment("gru-float64", COMPARED, r"losses in float64: .* at most (\S+) apart", 0, 1e-9, unit="nats a token"),
    Experiment("gru-float32", COMPARED, r"losses in float32: .* at most (\S+) apart", 0, 1e-5, unit="nats a token"),
]
PICTURES = [Picture("gru_gates", of=("gru-numpy",))]
