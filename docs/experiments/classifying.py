"""The experiments of docs/articles/18-classifying.md."""

from docs.experiments import Experiment, Picture

MACRO_F1 = r"^this model .* macro-F1 (\S+)"

EXPERIMENTS = [
    Experiment(
        "classify-last", "python -m finetune.classify --ngrams 0 --steps 400", MACRO_F1, 0.63, 0.75, unit="macro-F1"
    ),
    Experiment(
        "classify-mean",
        "python -m finetune.classify --ngrams 0 --pooling mean --steps 400",
        MACRO_F1,
        0.45,
        0.60,
        unit="macro-F1",
    ),
    Experiment(
        "classify-from-names",
        "python train.py --model gru --steps 400 --out runs/names\n"
        "python -m finetune.classify --init runs/names --lr 3e-3 --steps 400",
        MACRO_F1,
        0.56,
        0.70,
        unit="macro-F1",
    ),
    Experiment("classify-bag", "python -m finetune.classify --steps 400", MACRO_F1, 0.69, 0.80, unit="macro-F1"),
]
PICTURES = [Picture("confusion", of=("classify-bag",))]
