"""The experiments of docs/articles/10-mlp.md."""

from docs.experiments import Experiment, Picture

EXPERIMENTS = [
    Experiment("mlp-window-3", "python train.py --model mlp --order 3", "val_loss", 2.40, 2.44),
    Experiment("mlp", "python train.py --model mlp", "val_loss", 2.32, 2.37),
    Experiment("mlp-batch", "python train.py --model mlp --norm batch", "val_loss", 2.32, 2.37),
    Experiment("mlp-plane", "python train.py --model mlp --n-embd 2", "val_loss", 2.46, 2.53),
]
PICTURES = [Picture("embedding_plane", of=("mlp-plane",))]
