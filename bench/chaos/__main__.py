"""Random kills, double starts, torn files and disk errors: does every run end with the bits of an undisturbed one?

    python -m bench.chaos --rounds 200 --seed 1 [--only N] [--commands ...] [--mishaps ...]

A round draws a command (start, resume or overwrite, of train.py, finetune.classify or finetune.instruct) and a fault
(mishaps.py). Then it checks: no traceback; exit code 0, 2 or that of the signal; a saved checkpoint can be sampled
from, or is refused with one message where a file was damaged; resuming ends with exactly the files of an undisturbed
run; no temporary file is left. The same seed and number draw the same round again, except for its timing. Ends with a
table, and with exit code 1 where a round failed, whose folder is kept.
"""

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # a forked child must not inherit a pool of threads

import collections
import gc
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure
import torch
import torch._dynamo  # noqa: F401  as the next two: imported once, so that forked commands start at once
import tyro  # noqa: F401

import engine.pretraining  # noqa: F401
from bench.chaos.mishaps import MISHAPS, SHARES
from bench.chaos.processes import Command, Failed
from bench.chaos.quiet import Quiet
from bench.chaos.rounds import Round
from data.errors import UserError, run_command

NAMES = """emma olivia ava isabella sophia charlotte mia amelia harper evelyn abigail emily ella elizabeth camila luna
sofia avery mila aria scarlett penelope layla chloe victoria madison eleanor grace nora riley zoey hannah hazel lily
ellie violet lillian zoe stella aurora natalie emilia everly leah aubrey willow addison lucy audrey bella""".split()
LINES, STREAM = "--data names.txt --kind lines", "--data text.txt --context 12"
SIZES, RECURRENT = "--n-layer 2 --n-head 2 --n-embd 16", "--n-embd 8 --n-hidden 12"
BRIEF = "--steps 6 --eval-interval 2 --batch-size 4"
SHORT = f"{BRIEF} --eval-tokens 200 --warmup 2"
CLASSIFY, INSTRUCT = "-m finetune.classify", "-m finetune.instruct"
COMMANDS = {
    "bigram": f"train.py --model bigram {LINES} {SHORT}",
    "mlp": f"train.py --model mlp --order 3 --n-embd 8 --n-hidden 16 {LINES} --dropout 0.2 {SHORT}",
    "cnn": f"train.py --model cnn --n-layer 3 --n-embd 8 {STREAM} --norm batch {SHORT}",
    "lstm": f"train.py --model lstm {RECURRENT} {STREAM} --carry-state --dropout 0.2 {SHORT}",
    "gru": f"train.py --model gru {RECURRENT} {LINES} --tokenizer byte {SHORT}",
    "transformer": f"train.py --model transformer {SIZES} {STREAM} --tokenizer bpe:270 {SHORT}",
    "mixture": f"train.py --model transformer {SIZES} {LINES} --mix-ngram 3 --hash-ngrams 2 {SHORT}",
    "ngram": f"train.py --model ngram {STREAM.split(' --context')[0]}",
    "init": f"train.py --init ../parent {LINES} {BRIEF}",
    "classify": f"{CLASSIFY} --data sms.tsv --n-embd 8 --n-hidden 8 {BRIEF}",
    "classify-head": f"{CLASSIFY} --data sms.tsv --init ../parent --train head {BRIEF}",
    "instruct": f"{INSTRUCT} --data chat.jsonl --n-layer 1 --n-head 2 --n-embd 16 {BRIEF} --max-answer 4",
    "instruct-lora": f"{INSTRUCT} --data chat.jsonl --init ../parent --train lora {BRIEF} --max-answer 4",
}
PARENT = f"train.py --model transformer {SIZES} --tokenizer byte --data text.txt --context 48 {SHORT} --out ../parent"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description="Random faults, and what is left.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="play this round alone")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="draw from these")
    parser.add_argument("--mishaps", nargs="+", choices=MISHAPS, default=list(MISHAPS), help="draw from these")
    options = parser.parse_args()
    numbers = range(options.rounds) if options.only is None else [options.only]
    return int(bool(play(options.seed, numbers, options.commands, options.mishaps)))


def play(seed: int, numbers: list[int] | range, commands: list[str], mishaps: list[str]) -> list[str]:
    """Play the rounds of a seed, print a line for each and a table, and return the failures."""
    warm_up()
    folder, started = Path(tempfile.mkdtemp(prefix="charlm-chaos-")).resolve(), time.monotonic()
    print(f"seed {seed}, {len(numbers)} rounds in {folder}", flush=True)
    texts = write_texts(folder / "texts")
    (folder / "parent's").mkdir()
    shutil.copytree(texts, folder / "parent's", dirs_exist_ok=True)
    parent = Command(folder / "parent's", *PARENT.split()).end()
    if parent.code:
        raise UserError(f"the run that others start from cannot be trained here: {parent.err.strip()}")
    quiet: dict[str, Quiet] = {}
    failures = []
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        name, mishap = rng.choice(commands), rng.choices(mishaps, [SHARES.get(mishap, 1) for mishap in mishaps])[0]
        if name not in quiet:
            quiet[name] = Quiet(folder, texts, name, COMMANDS[name])
        round_ = Round(folder / f"round-{number}", quiet[name], rng)
        began = time.monotonic()
        try:
            outcome = MISHAPS[mishap](round_)
        except Failed as failure:
            failures.append(f"round {number} ({mishap}, {name}): {failure}")
            outcome = "FAILED"
            print(f"  {failures[-1]}\n  played in {round_.folder}: {'; '.join(round_.story)}", flush=True)
        else:
            shutil.rmtree(round_.folder)
        outcomes[mishap][outcome] += 1
        print(f"{number:4d}  {mishap:16} {name:14} {time.monotonic() - began:5.1f} s  {outcome}", flush=True)
    seconds = time.monotonic() - started
    print_table(outcomes)
    pace = seconds / max(1, len(numbers))
    print(f"{len(numbers)} rounds in {seconds:.0f} s ({pace:.2f} s each), failed: {len(failures)}")
    for failed in failures:
        print(failed)
    if not failures:
        shutil.rmtree(folder)
    return failures


def warm_up() -> None:
    """Do once what every forked command would have to do: set the threads, load fonts, collect garbage."""
    torch.set_num_threads(1)
    figure = matplotlib.figure.Figure(layout="constrained")
    figure.subplots().set_title("0123456789")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure).draw()
    gc.freeze()


def write_texts(folder: Path) -> Path:
    """The texts that the commands train on."""
    folder.mkdir()
    met = zip(NAMES, NAMES[7:], NAMES[19:], strict=False)
    texts = {
        "names.txt": "".join(f"{name}\n" for name in NAMES),
        "text.txt": "".join(f"{a} met {b};\nthey spoke of {c}.\n" for a, b, c in met),
        "sms.tsv": "".join(f"ham\tsee you, {name}\nspam\twin with {name}\n" for name in NAMES),
        "chat.jsonl": "".join(json.dumps({"prompt": f"Greet {n}", "completion": f"hi {n[0]}"}) + "\n" for n in NAMES),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def print_table(outcomes: dict[str, collections.Counter]) -> None:
    """Print the number of rounds by mishap and outcome."""
    kinds = sorted({outcome for counts in outcomes.values() for outcome in counts})
    rows = [["", *kinds, "rounds"]]
    for mishap, counts in sorted(outcomes.items()):
        rows.append([mishap, *(str(counts[kind] or "") for kind in kinds), str(sum(counts.values()))])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    print()


if __name__ == "__main__":
    sys.exit(run_command(main))
