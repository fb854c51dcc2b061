"""The experiments of docs/articles/15-encoder-decoder.md."""

from docs.experiments import Experiment, Picture

REVERSE = "python -m finetune.translate --data reverse --steps 1000 --eval-interval 500"
DATES = "python -m finetune.translate --steps 600 --eval-interval 300"
LONGER, ALL = r"^9 to 14 letters +(\d\.\d+)", r"^all +(\d\.\d+)"
RIGHT = "of the translations exactly right"

EXPERIMENTS = [
    Experiment("reverse-vector", f"{REVERSE} --align none --out vector", LONGER, 0.0, 0.2, unit=RIGHT),
    Experiment("reverse-luong", f"{REVERSE} --out luong", LONGER, 0.93, 1.0, unit=RIGHT),
    Experiment("dates-vector", f"{DATES} --align none --out dates-vector", ALL, 0.8, 0.97, unit=RIGHT),
    Experiment("dates-luong", f"{DATES} --out dates-luong", ALL, 0.98, 1.0, unit=RIGHT),
]
PICTURES = [
    Picture("reversed_by_length", of=("reverse-vector", "reverse-luong")),
    Picture("date_map", of=("dates-luong",)),
]
