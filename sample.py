"""Sample from a trained run, score a text with it, or talk to it: `python sample.py --help`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import tyro

from data.errors import UserError, run_command
from data.reading import whole_characters
from engine.checks import MAX_SEED


@dataclasses.dataclass
class Options:
    """Sample from a run, score a text with it, or talk to it. Needs the run directory alone, never the data set."""

    run: tyro.conf.Positional[str]
    """The run directory, or gpt2:PATH."""
    prompt: str | None = None
    """Text to go on from; @FILE reads it from a file. Without it: <bos> for lines, the start text for a stream."""
    num: int | None = None
    """How many samples, drawn as one batch (default: 10 for lines, 1 for a stream)."""
    max_new_tokens: int | None = None
    """Longest sample (default: the context for lines, 500 for a stream), or longest reply."""
    temperature: float | None = None
    """Below 1 bolder on the likely, above 1 flatter; 0 takes the likeliest (default: 1, with --chat 0)."""
    top_k: int | None = None
    """Draw from the k likeliest only."""
    top_p: float | None = None
    """Draw from the likeliest that together have this probability."""
    min_p: float | None = None
    """Draw from those at least this fraction as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that occurred before less likely."""
    stop: str | None = None
    """End a sample before this text."""
    seed: int | None = None
    """Same seed, same samples (default: different ones each time)."""
    unknown: Literal["error", "skip"] = "error"
    """What to do with a character the model does not know."""
    stream: bool = False
    """Print each sample while it is drawn."""
    json: bool = False
    """One JSON line a sample (or for --score or --message)."""
    score: str | None = None
    """Print this text's bits per character instead of sampling; @FILE reads it from a file."""
    chat: bool = False
    """Talk to a run of finetune.instruct."""
    message: str | None = None
    """With --chat: answer this and leave; @FILE reads it from a file."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    attention: Literal["auto", "triton", "torch"] = "auto"
    """Whose attention kernels the Transformer runs on."""
    norm_kernel: Literal["auto", "triton", "torch"] = "auto"
    """Whose kernels layer and RMS norm run on."""


_ALWAYS = {"run", "unknown", "json", "checkpoint", "device", "attention", "norm_kernel"}
_SCORE_TAKES = _ALWAYS | {"score"}
_CHAT_TAKES = _ALWAYS | {
    "chat", "message", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed",
}  # fmt: skip


def main() -> int:
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,), prog="sample.py")
    check(options)
    from engine.generate import Sampling
    from engine.runs import load_run

    temperature = (0.0 if options.chat else 1.0) if options.temperature is None else options.temperature
    sampling = Sampling(temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    run = load_run(options.run, options.checkpoint, options.device, options.attention, options.norm_kernel)
    if options.score is not None:
        return score(run, options)
    if options.chat:
        return chat(run, options, sampling)
    prompt = text_of(options.prompt or "", "--prompt")
    if run.is_single_lines and "\n" in prompt:
        raise UserError("--prompt has a line end, but this run's texts are single lines")
    num = options.num or (10 if run.is_lines else 1)
    drawn = {
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "sampling": sampling,
        "unknown": options.unknown,
    }
    show = stream if options.stream else batch
    show(run, options, prompt, num, drawn)
    return 0


def check(options: Options) -> None:
    """Refuse what cannot be or does not go together."""
    for name in ("num", "max_new_tokens"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it has to be at least 1")
    if options.seed is not None and not 0 <= options.seed <= MAX_SEED:
        raise UserError(f"--seed is {options.seed}; it has to be from 0 to {MAX_SEED}")
    if options.stop == "":
        raise UserError("--stop is empty; leave it out for no stop text")
    if options.stream and options.json:
        raise UserError("--stream and --json exclude each other")
    if options.message is not None and not options.chat:
        raise UserError("--message goes with --chat")
    if options.message == "":
        raise UserError("--message is empty; leave it out to talk in the terminal")
    if options.chat and options.json and options.message is None:
        raise UserError("--json goes with --message here")
    modes = {"--score": (options.score is not None, _SCORE_TAKES), "--chat": (options.chat, _CHAT_TAKES)}
    for mode, (chosen, takes) in modes.items():
        plain = Options(run=options.run)
        for name in {field.name for field in dataclasses.fields(Options)} - takes if chosen else ():
            if getattr(options, name) != getattr(plain, name):
                raise UserError(f"--{name.replace('_', '-')} is for sampling; with {mode} leave it out")


def text_of(value: str, flag: str) -> str:
    """The text itself, or that of the file after an @."""
    if not value.startswith("@"):
        return whole_characters(value)
    try:
        text = Path(value[1:]).read_bytes().decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    except OSError as error:
        raise UserError(f"cannot read {value[1:]} ({flag}): {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{value[1:]} ({flag}) is not UTF-8: invalid byte at offset {error.start}") from error


def stop_of(options: Options) -> str | None:
    """The text that ends a sample."""
    return None if options.stop is None else whole_characters(options.stop)


def batch(run, options: Options, prompt: str, num: int, drawn: dict) -> None:
    """Draw all samples together, then print them."""
    for text in run.generate(prompt, num, stop=stop_of(options), **drawn):
        print(json.dumps({"text": text}, ensure_ascii=False) if options.json else text)
        if not options.json and not run.is_lines and num > 1:
            print("-" * 60)


def stream(run, options: Options, prompt: str, num: int, drawn: dict) -> None:
    """Print every character as soon as it is certain, one sample after the other."""
    for n in range(num):
        seed = None if options.seed is None else options.seed + n
        print(prompt, end="", flush=True)
        for piece in run.pieces(prompt, stop=stop_of(options), **(drawn | {"seed": seed})):
            print(piece, end="", flush=True)
        print()


def chat(run, options: Options, sampling) -> int:
    """Talk in the terminal, or answer the one message."""
    from finetune.instruct.chat import Chat, converse

    partner = Chat(run, sampling, options.max_new_tokens, options.seed, stop_of(options), options.unknown)
    if options.message is None:
        return converse(partner)
    pieces = partner.ask(text_of(options.message, "--message"))
    if options.json:
        print(json.dumps({"text": "".join(pieces)}, ensure_ascii=False))
        return 0
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def score(run, options: Options) -> int:
    found = run.score(text_of(options.score, "--score"), options.unknown)
    if options.json:
        facts = {"bits_per_char": found.bits_per_char, "nats_per_token": found.loss, "tokens": found.n_tokens}
        print(json.dumps(facts | {"characters": found.n_characters}))
    else:
        print(f"{found.bits_per_char:.4f} bits per character over {found.n_characters} characters")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
