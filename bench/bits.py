"""Whether two checkouts of this project train the same weights, to the bit: for a change that is to change no numbers.

python -m bench.bits OTHER_CHECKOUT [--steps 200] [--only lstm instruct]
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.peers import ROOT
from engine.config.families import FAMILIES
from engine.run import checkpoint

STREAM = ["--data", "stdlib", "--context", "32", "--batch-size", "8"]
RUNS: dict[str, list[str]] = {
    **{model: ["train.py", "--model", model, "--dropout", "0.1"] for model in FAMILIES if "gram" not in model},
    "bigram": ["train.py", "--model", "bigram"],
    "bigram counted": ["train.py", "--model", "bigram", "--counts"],
    "ngram": ["train.py", "--model", "ngram"],
    "rnn written": ["train.py", "--model", "rnn", "--cells", "written", "--activation", "silu", "--norm", "batch"],
    "lstm carried": ["train.py", "--model", "lstm", *STREAM, "--carry-state", "--optimizer", "adam"],
    "transformer gpt2": ["train.py", "--preset", "gpt2", *STREAM, "--grad-accum", "2"],
    "transformer llama": [
        "train.py", *STREAM, "--norm", "rms", "--activation", "swiglu", "--n-kv-head", "2", "--window", "9",
        "--no-tie-head",
    ],
    "alibi": ["train.py", "--positions", "alibi", "--weight-init", "orthogonal", "--label-smoothing", "0.1"],
    "hashed": ["train.py", "--model", "gru", "--hash-ngrams", "4", "--norm", "layer"],
    "mixture": ["train.py", "--mix-ngram", "4", "--hash-ngrams", "3"],
    "classify": ["-m", "finetune.classify", "--class-weights", "0.5"],
    "classify last": ["-m", "finetune.classify", "--init", "{parent}", "--train", "last:1", "--lm-weight", "0.5"],
    "classify lora": ["-m", "finetune.classify", "--init", "{parent}", "--train", "lora"],
    "instruct": ["-m", "finetune.instruct", "--max-answer", "2"],
    "instruct lora": ["-m", "finetune.instruct", "--init", "{answers}", "--train", "lora", "--max-answer", "2"],
}  # fmt: skip
PARENTS = {  # the runs that others start from, of this checkout
    "parent": ["train.py", "--model", "transformer", "--tokenizer", "byte"],
    "answers": ["-m", "finetune.instruct", "--max-answer", "2"],
}
SHORT = ["--eval-interval", "100", "--eval-tokens", "2000"]


def train(checkout: Path, words: list[str], steps: int, out: Path) -> None:
    """One run, on one thread; what counts takes no steps, and fine-tuning evaluates on all examples."""
    short = SHORT if words[0] == "train.py" else SHORT[:2]
    short = [] if "ngram" in words or "--counts" in words else [*short, "--steps", str(steps)]
    command = [sys.executable, *words, *short, "--out", str(out)]
    completed = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if completed.returncode:
        raise SystemExit(f"{' '.join(command)} in {checkout}\n{completed.stderr}")


def digest(run: Path) -> str:
    """The SHA-256 of the run's last weights, by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(checkpoint.load(run / "last", ("model",))[0]["model"].items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    args = parser.parse_args()
    differ = []
    with tempfile.TemporaryDirectory() as folder:
        parents = {}
        for name, words in PARENTS.items():
            parents[name] = Path(folder, name)
            train(args.other, words, 20, parents[name])
        for name in args.only:
            words = [word.format(**parents) for word in RUNS[name]]
            digests: list[str] = []
            for checkout in (args.other.resolve(), ROOT):
                out = Path(folder, f"{name}-{len(digests)}")
                train(checkout, words, args.steps, out)
                digests.append(digest(out))
            same = digests[0] == digests[1]
            print(f"{name:18} {'the same' if same else 'DIFFERENT'} {digests[1][:12]}", flush=True)
            differ += [] if same else [name]
    sys.exit(f"different: {', '.join(differ)}" if differ else 0)


if __name__ == "__main__":
    main()
