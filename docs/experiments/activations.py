"""The experiments of docs/articles/03-activations.md."""

from docs.experiments import Experiment, Picture

NET = "python train.py --model mlp --n-layer 4 --n-hidden 64 --steps 300 --activation"
EXPERIMENTS = [
    Experiment("act-sigmoid", f"{NET} sigmoid", "val_loss", 2.72, 2.81),
    Experiment("act-tanh", f"{NET} tanh", "val_loss", 2.48, 2.54),
    Experiment("act-relu", f"{NET} relu", "val_loss", 2.46, 2.54),
    Experiment("act-leaky-relu", f"{NET} leaky_relu", "val_loss", 2.46, 2.54),
    Experiment("act-gelu", f"{NET} gelu", "val_loss", 2.46, 2.54),
    Experiment("act-gelu-tanh", f"{NET} gelu_tanh", "val_loss", 2.46, 2.54),
    Experiment("act-silu", f"{NET} silu", "val_loss", 2.46, 2.56),
    Experiment("act-relu2", f"{NET} relu2", "val_loss", 2.50, 2.59),
    Experiment(
        "dead-relu",
        f"{NET} relu --lr 0.1 --out runs/fast\npython -m docs.units runs/fast",
        r"^share of dead units in all layers: ([\d.]+)",
        0.4, 0.95, unit="of the units", digits=2,
    ),
]  # fmt: skip
PICTURES = [Picture("activations", of=("act-relu", "dead-relu"))]
