"""The experiments of docs/articles/22-masked.md."""

from docs.experiments import Experiment, Picture

MASKED = "python train.py --objective masked --steps 1000 --out masked"
NEXT = "python train.py --steps 1000 --out next"
LABELS = "python -m finetune.classify {} --pooling mean --ngrams 0 --steps 400 --lr 3e-3 --no-baseline --out labels"
MACRO_F1 = r"^this model .* macro-F1 (\S+)"

EXPERIMENTS = [
    Experiment("masked-loss", MASKED, "val_loss", 2.4, 2.7, unit="nats a hidden letter"),
    Experiment("masked-next-loss", NEXT, "val_loss", 2.25, 2.4, unit="nats a letter"),
    Experiment(
        "masked-gap", f"{MASKED}\npython sample.py masked --fill 'alex?ndra'", r"^ +-\S+ +\S+ +(\d+\.\d)%", 10, 99,
        unit="% for what was put in", digits=1,
    ),
    Experiment("masked-labels", f"{MASKED}\n{LABELS.format('--init masked')}", MACRO_F1, 0.52, 0.7, unit="macro-F1"),
    Experiment("masked-next-labels", f"{NEXT}\n{LABELS.format('--init next')}", MACRO_F1, 0.4, 0.56, unit="macro-F1"),
    Experiment(
        "masked-both", LABELS.format("--model transformer --objective masked"), MACRO_F1, 0.52, 0.7, unit="macro-F1"
    ),
    Experiment("masked-nothing", LABELS.format("--model transformer"), MACRO_F1, 0.4, 0.56, unit="macro-F1"),
]  # fmt: skip
PICTURES = [Picture("hidden_letters", of=("masked-loss", "masked-next-loss"))]
