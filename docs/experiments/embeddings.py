"""The experiments of docs/articles/09-embeddings.md."""

from docs.experiments import Experiment, Picture

SCORE = r"^speakers among the 10 nearest of a speaker: ([\d.]+)"

EXPERIMENTS = [
    Experiment(
        "skipgram", "python -m makemore.scratch.skipgram --out vectors.npz", SCORE, 0.30, 0.40, "of the nearest words"
    ),
    Experiment("glove", "python -m makemore.scratch.glove", SCORE, 0.39, 0.47, "of the nearest words"),
    Experiment("letters", "python train.py --model mlp --steps 1000 --out runs/mlp", "val_loss", 2.36, 2.41),
]
PICTURES = [Picture("word_planes", of=("skipgram", "letters"))]
