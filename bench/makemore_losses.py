"""Test loss of every family on makemore's own split of the names, at makemore's default settings: 5,000 steps,
batch 32.

    CHARLM_DATA=DIR python -m bench.makemore_losses [--makemore CHECKOUT] [--models gru transformer ...]

makemore's split is `torch.manual_seed(3407)`, `randperm`, the last 1,000 lines. 153 of them also stand in its training
half (the names have duplicates), so the loss over the other 847 stands beside. With --makemore its own runs are made
too (its last printed test loss); otherwise figures measured earlier are shown. `ngram6` is `--order 6`.

Both sides keep the learning rate constant, which leaves about 0.008 of noise in a last loss.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import torch

from bench import peers
from data.sources import resolve

THEIRS = {
    "bigram": 2.501,
    "mlp": 2.086,
    "rnn": 2.114,
    "gru": 2.076,
    "transformer": 2.013,
}  # one seed; its spread is 0.01
MODELS = ("bigram", "ngram6", "mlp", "cnn", "rnn", "lstm", "gru", "transformer")


def write_split(folder: Path) -> dict[str, Path]:
    """The files of makemore's two halves, 'train' and 'test', and of the test names that are not in its training half,
    'unseen'."""
    words = [word.strip() for word in resolve("names32k").files[0].read_text("utf-8").splitlines()]
    torch.manual_seed(3407)
    order = torch.randperm(len(words)).tolist()
    train, test = [words[i] for i in order[:-1000]], [words[i] for i in order[-1000:]]
    halves = {"train": train, "test": test, "unseen": [word for word in test if word not in set(train)]}
    for name, rows in halves.items():
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n", "utf-8")
    return {name: folder / f"{name}.txt" for name in halves}


def run(flags: list[str], split: dict[str, Path], out: Path) -> tuple[dict, float]:
    """Train on the split, in `out`; returns the summary, and the loss over the test names not seen in training."""
    _train(*flags, "--data", split["train"], "--val-data", split["test"], "--kind", "lines", "--out", out)
    printed = _train("--eval-only", "--out", out, "--val-data", split["unseen"], "--kind", "lines")
    return json.loads((out / "summary.json").read_text()), json.loads(printed)["val_loss"]


def _train(*flags: str | Path) -> str:
    """Run train.py; returns its output."""
    return peers.output([sys.executable, str(peers.ROOT / "train.py"), *map(str, flags)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.makemore_losses", description=__doc__.splitlines()[0])
    parser.add_argument("--makemore", type=peers.checkout("makemore.py"), help="a checkout of makemore to run beside")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    args = parser.parse_args()
    print("| family | makemore | ours, 1,000 names | ours, 847 unseen | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = write_split(folder)
        for model in args.models:
            theirs = THEIRS.get(model)
            if args.makemore and theirs:
                names = resolve("names32k").files[0]
                printed = peers.makemore(args.makemore, names, "--type", model, "--max-steps", "5001")
                theirs = float(re.findall(r"test loss: ([\d.]+)", printed)[-1])
            ngram = model == "ngram6"
            flags = ["--model", "ngram", "--order", "6"] if ngram else ["--model", model, "--preset", "makemore"]
            summary, unseen = run(flags, split, folder / model)
            print(
                f"| {model} | {f'{theirs:.3f}' if theirs else ''} | {summary['val_loss']:.3f} | {unseen:.3f} "
                f"| {summary['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
