"""The experiments of docs/articles/23-smaller.md."""

from docs.experiments import Experiment, Picture

TEACHER = "python train.py --steps 1500 --out teacher"
STUDENT = "python train.py --model gru --n-hidden 32 --n-embd 16 --lr 5e-3 --steps {} --out {}"
TAUGHT = f"{TEACHER}\n{STUDENT.format(2000, 'taught')} --teacher teacher"
ROUNDED = f"{TEACHER}\npython -m export teacher --to int4 rounded"

EXPERIMENTS = [
    Experiment("smaller-teacher", TEACHER, "val_loss", 2.25, 2.33),
    Experiment("smaller-alone", STUDENT.format(2000, "alone"), "val_loss", 2.38, 2.42),
    Experiment("smaller-taught", TAUGHT, "val_loss", 2.36, 2.4),
    Experiment("smaller-longer", STUDENT.format(9000, "longer"), "val_loss", 2.35, 2.39),
    Experiment("smaller-rounded", ROUNDED, r"^int4 .* ([+-]\S+)$", 0.0, 0.02, unit="nats more", digits=4),
]
PICTURES = [Picture("smaller", of=("smaller-teacher", "smaller-alone", "smaller-taught"))]
