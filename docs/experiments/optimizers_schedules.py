"""The experiments of docs/articles/06-optimizers-schedules.md."""

from docs.experiments import Experiment, Picture

NET = "python train.py --model mlp --steps 300 --eval-interval 25 --optimizer"
COMPARED = "python -m makemore.scratch.compare --model transformer --n-layer 1 --n-embd 32 --steps 100"
OPTIMIZERS = [
    Experiment("opt-sgd", f"{NET} sgd", "val_loss", 2.44, 2.51),
    Experiment("opt-momentum", f"{NET} momentum", "val_loss", 2.42, 2.49),
    Experiment("opt-adagrad", f"{NET} adagrad", "val_loss", 2.41, 2.48),
    Experiment("opt-rmsprop", f"{NET} rmsprop", "val_loss", 2.42, 2.49),
    Experiment("opt-adam", f"{NET} adam", "val_loss", 2.41, 2.48),
    Experiment("opt-adamw", f"{NET} adamw", "val_loss", 2.41, 2.48),
    Experiment("opt-muon", f"{NET} muon", "val_loss", 2.37, 2.43),
]
EXPERIMENTS = [
    *OPTIMIZERS,
    Experiment("lr-constant", f"{NET} adamw --lr 0.03 --warmup 0 --schedule constant", "val_loss", 2.50, 2.80),
    Experiment("lr-warmup", f"{NET} adamw --lr 0.03 --warmup 100 --schedule constant", "val_loss", 2.48, 2.76),
    Experiment("lr-warmup-cosine", f"{NET} adamw --lr 0.03 --warmup 100 --schedule cosine", "val_loss", 2.36, 2.45),
    Experiment("twin-losses", COMPARED, r"losses in float32: .* at most (\S+) apart", 0, 1e-5, unit="nats a token"),
    Experiment("twin-weights", COMPARED, r"weights: at most (\S+) apart", 1e-5, 0.1, "between the weights", 4),
]
PICTURES = [Picture("loss_curves", of=tuple(each.key for each in OPTIMIZERS))]
