"""The experiments of docs/articles/16-transformer.md."""

from docs.experiments import Experiment, Picture

COMPARED = "python -m makemore.scratch.compare --model transformer --steps 20"
APART = r"losses in float64: .* at most (\S+) apart"
OF_SHAKESPEARE = "--data shakespeare --eval-tokens 20000 --eval-interval 100"
BIGRAM = f"python train.py --model bigram {OF_SHAKESPEARE} --steps 400"
RNN = f"python train.py --model rnn {OF_SHAKESPEARE} --steps 1000 --batch-size 16 --n-embd 64 --n-hidden 128"
TRANSFORMER = f"python train.py --model transformer {OF_SHAKESPEARE} --steps 600 --batch-size 16 --n-embd 64"

EXPERIMENTS = [
    Experiment("transformer-float64", COMPARED, APART, 0, 1e-9, unit="nats a token"),
    Experiment("shakespeare-bigram", BIGRAM, "val_loss", 2.48, 2.51),
    Experiment("shakespeare-rnn", RNN, "val_loss", 1.93, 1.98),
    Experiment("shakespeare-transformer", TRANSFORMER, "val_loss", 1.82, 1.90),
]
PICTURES = [
    Picture("loss_against_seconds", of=("shakespeare-bigram", "shakespeare-rnn", "shakespeare-transformer")),
    Picture("attention_heads", of=("shakespeare-transformer",)),
]
