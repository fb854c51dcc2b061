"""What a body learns from texts without labels, for a classifier of few labels: hidden letters, next letters, nothing;
"both" is nothing, too, in a body that reads both ways as one of hidden letters does.

python -m bench.masked --data surnames_folder [--model lstm] [--labels 300,2000] [--seeds 5] [--mask-rate 0.3 ...]

A fifth of the texts is the test, as many texts as --val are for validation; the others are what the bodies are trained
on, and the labels are those of the first so many of them. Seeds differ in the split, in the bodies and in the
classifiers. Further flags are those of train.py for the bodies.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from bench.peers import run
from data.errors import run_command
from data.examples import read_sides
from data.labelled.example import Columns, Example

BODY = ["--preset", "modern", "--kind", "lines", "--batch-size", "64"]
BODIES = {"next": ["--objective", "next"], "masked": ["--objective", "masked"]}
CLASSIFIER = ["--pooling", "mean", "--ngrams", "0", "--no-baseline", "--eval-interval", "50"]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.masked", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="labelled texts, as finetune.classify takes them")
    parser.add_argument("--model", default="transformer", help="the family of the bodies")
    parser.add_argument("--labels", default="300,2000", help="how many labels, with commas between")
    parser.add_argument("--val", type=int, default=500, help="how many texts are for validation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", default="1000", help="of a body")
    parser.add_argument("--tune-steps", default="800", help="of a classifier")
    parser.add_argument("--tune-lr", default="3e-3", help="of every classifier, whatever it begins with")
    parser.add_argument("--bodies", default="nothing,both,next,masked")
    args, flags = parser.parse_known_args()
    _, sides = read_sides(args.data, Columns())
    examples = [each for side in sides.values() for each in side]
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in range(args.first, args.first + args.seeds):
        for key, score in of_seed(args, flags, examples, seed).items():
            scores.setdefault(key, []).append(score)
    for (body, labels), found in scores.items():
        spread = f", deviation {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        print(f"{body}, {labels} labels: accuracy {statistics.mean(found):.4f}{spread} of {len(found)} seeds")
    return 0


def of_seed(args: argparse.Namespace, flags: list[str], examples: list[Example], seed: int) -> dict:
    """The accuracy on the test texts by body and number of labels."""
    different = [*{one_line(each.text).lower(): each for each in examples}.values()]  # no text on two sides
    shuffled = random.Random(seed).sample(different, len(different))
    n_test = len(shuffled) // 5
    test, val, rest = shuffled[:n_test], shuffled[n_test : n_test + args.val], shuffled[n_test + args.val :]
    firsts = [*{each.label: each for each in reversed(rest)}.values()]  # every label occurs
    rest = [*firsts, *(each for each in rest if each not in firsts)]
    scores = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Path(folder, "texts.txt").write_text("".join(f"{one_line(each.text)}\n" for each in rest), encoding="utf-8")
        Path(folder, "held.txt").write_text("".join(f"{one_line(each.text)}\n" for each in val), encoding="utf-8")
        write(folder / "val.tsv", val)
        write(folder / "test.tsv", test)
        for body in args.bodies.split(","):
            if body in BODIES:
                text = ["--data", f"{folder}/texts.txt", "--val-data", f"{folder}/held.txt"]
                more = [*BODY, *flags] if args.model == "transformer" else [*BODY[2:], *flags]
                more = [*more, "--steps", args.steps, "--eval-interval", args.steps]
                wanted = [*text, "--model", args.model, *BODIES[body], *more, "--seed", str(seed)]
                run(["train.py", *wanted, "--out", f"{folder}/{body}"])
            for labels in args.labels.split(","):
                write(folder / "train.tsv", rest[: int(labels)])
                scores[body, labels] = classify(folder, body, args, seed, f"{body}-{labels}")
                print(f"seed {seed}, {body}, {labels} labels: {scores[body, labels]:.4f}", flush=True)
    return scores


def classify(folder: Path, body: str, args: argparse.Namespace, seed: int, out: str) -> float:
    """The test accuracy of a classifier that begins with this body."""
    sides = [word for side in ("val", "test") for word in (f"--{side}-data", f"{folder}/{side}.tsv")]
    both = ["--objective", "masked"] if body == "both" else []
    new = ["--model", args.model, *both]
    start = ["--init", f"{folder}/{body}", "--extend-vocabulary"] if body in BODIES else new
    command = ["-m", "finetune.classify", "--data", f"{folder}/train.tsv", *sides, *start, *CLASSIFIER]
    run([*command, "--lr", args.tune_lr, "--steps", args.tune_steps, "--seed", str(seed), "--out", f"{folder}/{out}"])
    return json.loads(Path(folder, out, "summary.json").read_text())["test"]["accuracy"]


def write(path: Path, examples: list[Example]) -> None:
    """A table of texts and labels."""
    rows = [f"{one_line(each.text)}\t{each.label}\n" for each in examples]
    path.write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")


def one_line(text: str) -> str:
    """A text without line ends, tabs and quotes, which a table would have to escape."""
    return " ".join(text.replace('"', "'").split())


if __name__ == "__main__":
    sys.exit(run_command(main))
