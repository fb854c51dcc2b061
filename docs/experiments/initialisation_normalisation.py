"""The experiments of docs/articles/05-initialisation-normalisation.md."""

from docs.experiments import Experiment, Picture

NET = "python train.py --model mlp --n-layer 6 --n-hidden 64 --steps 300"
SMALL = f"{NET} --norm none --weight-init normal"
EXPERIMENTS = [
    Experiment("init-default", f"{NET} --norm none", "val_loss", 2.49, 2.56),
    Experiment("init-small", SMALL, "val_loss", 2.66, 2.79),
    Experiment("init-kaiming", f"{NET} --norm none --weight-init kaiming", "val_loss", 2.45, 2.53),
    Experiment("norm-batch", f"{NET} --norm batch", "val_loss", 2.43, 2.50),
    Experiment("norm-layer", f"{NET} --norm layer", "val_loss", 2.43, 2.50),
    Experiment("norm-small", f"{NET} --norm layer --weight-init normal", "val_loss", 2.48, 2.56),
    Experiment(
        "std-small",
        f"{SMALL} --out runs/small\npython -m docs.units runs/small --initial",
        r"^ +6 +([\d.e-]+)",
        1e-7, 3e-6, unit="as the deviation of a unit of layer 6",
    ),
]  # fmt: skip
PICTURES = [Picture("layer_spreads", of=tuple(each.key for each in EXPERIMENTS[:-1]))]
