"""The experiments of docs/articles/08-bigram-ngram.md."""

from docs.experiments import Experiment, Picture

EXPERIMENTS = [
    Experiment("bigram-counts", "python train.py --model bigram --counts", "val_loss", 2.59, 2.60),
    Experiment("bigram-gradient", "python train.py --model bigram", "val_loss", 2.59, 2.61),
    Experiment("ngram-3", "python train.py --model ngram --order 3", "val_loss", 2.46, 2.48),
    Experiment("ngram-4", "python train.py --model ngram --order 4", "val_loss", 2.33, 2.36),
    Experiment("ngram-6", "python train.py --model ngram --order 6", "val_loss", 2.25, 2.28),
    Experiment("ngram-chosen", "python train.py --model ngram", "val_loss", 2.25, 2.28),
]
PICTURES = [Picture("bigram_table", of=("bigram-counts",))]
