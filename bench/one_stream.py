"""Tokens a second of processor time of one stream, beside llama2.c's C program.

    python -m bench.one_stream --llama2c CHECKOUT [--length 255] [--turns 5]

Random weights of one shape on both sides (4 layers, 128 wide, 4 heads, SwiGLU of 344, RMS norm, RoPE, 71 tokens,
context 256), temperature 1, one core; theirs compiled as its Makefile's `runfast`, and with -march=native. Both draw
`length` tokens and write their text, and take turns. Processor time, without the start, so that other work on the
machine counts less.
"""

import argparse
import os
import resource
import statistics
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from bench import peers
from data.tokenizers import CharTokenizer
from engine.config.flags import parse
from engine.registry import build_model
from engine.run.generate import generate
from engine.run.sampling import Sampling
from engine.run.writing import Writer
from makemore.base import LanguageModel

VOCAB, CONTEXT, WIDTH, LAYERS, HEADS, INNER = 71, 256, 128, 4, 4, 344
FLAGS = [
    "--data", "shakespeare", "--n-layer", str(LAYERS), "--n-embd", str(WIDTH), "--n-head", str(HEADS),
    "--context", str(CONTEXT), "--norm", "rms", "--activation", "swiglu", "--positions", "rope",
]  # fmt: skip
BUILDS = {"runfast": ("-Ofast",), "native": ("-Ofast", "-march=native")}


def write_peer(folder: Path) -> None:
    """A checkpoint of random weights and a vocabulary, as llama2.c reads them."""
    generator = torch.Generator().manual_seed(1)
    size = WIDTH // HEADS
    shapes = [
        (VOCAB, WIDTH), (LAYERS, WIDTH), *[(LAYERS, WIDTH, WIDTH)] * 4, (LAYERS, WIDTH), (LAYERS, INNER, WIDTH),
        (LAYERS, WIDTH, INNER), (LAYERS, INNER, WIDTH), (WIDTH,), (CONTEXT, size // 2), (CONTEXT, size // 2),
    ]  # fmt: skip
    with (folder / "model.bin").open("wb") as file:
        file.write(struct.pack("7i", WIDTH, INNER, LAYERS, HEADS, HEADS, VOCAB, CONTEXT))
        for shape in shapes:
            file.write((0.02 * torch.randn(shape, generator=generator)).numpy().tobytes())
    with (folder / "tokens.bin").open("wb") as file:
        file.write(struct.pack("i", 8))
        for n in range(VOCAB):
            # Ids 1 and 2 begin and end a text; the program needs a space for an empty prompt.
            text = b" " if n == 3 else b"<%d>" % n if n < 3 else bytes([40 + n])
            file.write(struct.pack("fi", 0.0, len(text)) + text)


def build_peer(checkout: Path, folder: Path) -> None:
    for name, flags in BUILDS.items():
        subprocess.run(["cc", *flags, str(checkout / "run.c"), "-lm", "-o", str(folder / name)], check=True)


def theirs(folder: Path, build: str, length: int, seed: int) -> float:
    """The tokens a second of processor time that it draws after the second, so that its start does not count."""
    return (length - 2) / (_seconds(folder, build, length, seed) - _seconds(folder, build, 2, seed))


def _seconds(folder: Path, build: str, length: int, seed: int) -> float:
    """The processor time of one text of this length; one that ended early is drawn again with another seed."""
    command = [str(folder / build), str(folder / "model.bin"), "-z", str(folder / "tokens.bin"), "-t", "1.0", "-p", "0"]
    while True:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run([*command, "-n", str(length), "-s", str(seed)], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if len(ran.stdout) >= length:
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seed += 1000


def ours(model: LanguageModel, length: int, seed: int) -> float:
    """Tokens a second of processor time of one text."""
    tokenizer = CharTokenizer([chr(40 + n) for n in range(VOCAB - 6)])
    writer = Writer(tokenizer)
    special = tokenizer.special
    prompt, suppressed = torch.full((1, 1), 6), [*special.never_predicted, special.eos]
    drawn = generate(model, prompt, length, Sampling(), suppressed, special.eos, torch.Generator().manual_seed(seed))
    text = writer.write(int(next(drawn))) + writer.write(int(next(drawn)))
    started = time.thread_time()
    for token in drawn:
        text += writer.write(int(token))
    return (length - 2) / (time.thread_time() - started)


def report(checkout: Path, length: int, turns: int) -> str:
    torch.set_num_threads(1)
    model = build_model(parse(FLAGS)[0], VOCAB).eval()
    rates: dict[str, list[float]] = {name: [] for name in (*BUILDS, "ours")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_peer(folder)
        build_peer(checkout, folder)
        for seed in range(turns + 1):
            for build in BUILDS:
                rates[build].append(theirs(folder, build, length, 1 + seed))
            rates["ours"].append(ours(model, length, seed))
    medians = {name: statistics.median(each[1:]) for name, each in rates.items()}  # the first warms up
    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in medians.items())
    ratio = medians["ours"] / medians["native"]
    return f"tokens a second of processor time, medians of {turns}: {told}; ours / native {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.one_stream", description=__doc__.splitlines()[0])
    parser.add_argument("--llama2c", type=peers.checkout("run.c"), required=True, help="a checkout of llama2.c")
    parser.add_argument("--length", type=int, default=255, help="tokens of a text")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(report(args.llama2c, args.length, args.turns))


if __name__ == "__main__":
    main()
