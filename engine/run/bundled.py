"""The small run that comes with the program: what is sampled and served where none is named. Imports no torch."""

import sys
from pathlib import Path

from data.program import command, recorded
from engine.run.results import read_summary

BUNDLED = Path(__file__).resolve().parents[1] / "bundled/names"
# How it was trained; of what that left, engine/bundled has what is needed to use it.
RECIPE = recorded("train") + (
    " --model transformer --activation relu2 --data names --n-layer 3 --n-head 4 --n-embd 32 --dropout 0.05"
    " --batch-size 128 --steps 10000 --eval-interval 500 --seed 1 --threads 1"
)


def bundled() -> Path:
    """The folder of that run, which is said to be taken."""
    summary = read_summary(BUNDLED)
    size = f"{summary['model']}, {summary['params']:,} parameters, loss {summary['val_loss']:.2f}"
    note = (
        f"no run is named: this is the one that comes with it, of given names ({size}); {command('train')} makes others"
    )
    print(note, file=sys.stderr)
    return BUNDLED
