"""Sample from a trained run, score a text with it, or talk to it: `python sample.py --help`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from data.bpe import BPETokenizer
from data.errors import UserError, flag, run_command, warn
from data.given_texts import naming_line, text_of, text_of_file
from data.program import command
from data.reading import whole_characters
from data.terminal import show
from engine.config.sections import MAX_SEED
from engine.run.arguments import check_logprobs, check_max_new_tokens, check_num, check_seed, check_stop
from engine.run.token_scores import as_json, as_table, total_as_json


@dataclasses.dataclass
class Options:
    """Sample from a run, score a text with it, or talk to it. Needs the run directory alone, never the data set."""

    run: tyro.conf.Positional[str | None] = None
    """The run directory, or gpt2:PATH, or hf:PATH (default: the small run of names that comes with this program)."""
    prompt: str | None = None
    """Text to go on from; @FILE reads it from a file, @@ stands for an @. Without it: <bos> for lines
    and documents, <eos> for a stream of documents, the start text for another."""
    prompts: str | None = None
    """A file: each of its lines is a prompt."""
    no_heal: bool = False
    """Leave the prompt's last token as it is. Without this flag, with bpe:N and gpt2, it is drawn again with what
    follows."""
    num: int | None = None
    """How many samples (default: 10 for lines, 1 for documents, a stream, or each of --prompts)."""
    max_new_tokens: int | None = None
    """Longest sample (default: the context for lines, 2,000 for documents, 500 for a stream), or longest reply."""
    min_new_tokens: int = 0
    """Shortest sample: before that neither its own end nor --stop ends it. A stream without documents
    has no end of its own: it needs --stop for this."""
    only_new: bool = False
    """Redraw lines and documents that the training text has already. Needs the prepared text in the cache."""
    temperature: float | None = None
    """softmax temperature: below 1 sharper, above 1 flatter, 0 greedy (default: 1, with --chat 0)."""
    top_k: int | None = None
    """Draw from the k likeliest only."""
    top_p: float | None = None
    """Draw from the likeliest that together have this probability."""
    min_p: float | None = None
    """Draw from those at least this fraction as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that occurred before less likely."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End a sample before this text; given several times (up to 4), before the first of these texts."""
    seed: int | None = None
    """Same seed, same samples (default: different ones each time)."""
    unknown: Literal["error", "skip"] = "error"
    """What to do with a character the model does not know."""
    stream: bool = False
    """Print each sample while it is drawn."""
    json: bool = False
    """One JSON line a sample (or for --score or --message): the text, why it ended, and what of it was copied; for
    --score the log-probability of each token."""
    logprobs: int | None = None
    """Show each token of a sample, of --score, --fill or --message with its log-probability and this many (0 to 20) of
    the likeliest in its place: the model's own, before temperature and what else shapes a draw."""
    score: str | None = None
    """Print this text's bits per character instead of sampling; @FILE reads it from a file, @@ stands for an @."""
    score_lines: str | None = None
    """A file: print the bits per character of each of its lines."""
    fill: str | None = None
    """Fill the gaps of this text, as in "Mac?regor", by a run that was trained with --objective masked; @FILE reads it
    from a file, @@ stands for an @."""
    gap: str = "?"
    """With --fill: the character that stands for a token that is missing."""
    chat: bool = False
    """Talk to a run that learned to answer."""
    message: str | None = None
    """With --chat: answer this and leave; @FILE reads it from a file, @@ stands for an @."""
    system: str | None = None
    """With --chat: the system message, which stands before everything that is said."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    attention: Literal["auto", "triton", "torch"] = "auto"
    """Whose attention kernels the Transformer runs on."""
    norm_kernel: Literal["auto", "triton", "torch"] = "auto"
    """Whose kernels layer and RMS norm run on."""


_ALWAYS = {"run", "unknown", "json", "checkpoint", "device", "attention", "norm_kernel"}
_SCORE_TAKES = _ALWAYS | {"score", "logprobs"}
_LINES_TAKE = _ALWAYS | {"score_lines"}
_FILL_TAKES = _ALWAYS | {"fill", "gap", "logprobs"}
_CHAT_TAKES = _ALWAYS | {
    "chat", "message", "system", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "stop", "seed", "logprobs",
}  # fmt: skip
_EXCLUDE_EACH_OTHER = (
    ("stream", "json"), ("stream", "only_new"), ("stream", "logprobs"), ("prompt", "prompts"), ("score", "score_lines"),
    ("score", "fill"), ("score_lines", "fill"), ("chat", "fill"),
)  # fmt: skip


def main() -> int:
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,), prog=command("sample"))
    check(options)
    from engine.run.bundled import bundled
    from engine.run.load import load_run
    from engine.run.sampling import Sampling

    temperature = (0.0 if options.chat else 1.0) if options.temperature is None else options.temperature
    sampling = Sampling(temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    folder = bundled() if options.run is None else options.run
    run = load_run(folder, options.checkpoint, options.device, options.attention, options.norm_kernel)
    if options.score is not None:
        return score(run, options)
    if options.score_lines is not None:
        return score_lines(run, options)
    if options.fill is not None:
        return fill(run, options)
    if options.chat:
        return chat(run, options, sampling)
    return sample(run, options, sampling)


def check(options: Options) -> None:
    """Refuse what cannot be or does not go together."""
    if options.num is not None:
        check_num(options.num)
    if options.max_new_tokens is not None:
        check_max_new_tokens(options.max_new_tokens)
    check_seed(options.seed)
    check_stop(options.stop or None)
    check_logprobs(options.logprobs)
    plain = Options(run=options.run)
    names = [field.name for field in dataclasses.fields(Options)]
    given = [name for name in names if getattr(options, name) != getattr(plain, name)]
    for one, other in _EXCLUDE_EACH_OTHER:
        if one in given and other in given:
            raise UserError(f"{flag(one)} and {flag(other)} exclude each other")
    for name in ("message", "system"):
        if name in given and not options.chat:
            raise UserError(f"{flag(name)} goes with --chat")
    if "gap" in given and options.fill is None:
        raise UserError("--gap goes with --fill")
    if options.message == "":
        raise UserError("--message is empty; leave it out to talk in the terminal")
    if options.score == "":
        raise UserError("--score is empty: there is nothing to score")
    for name in ("json", "logprobs"):
        if options.chat and name in given and options.message is None:
            raise UserError(f"{flag(name)} goes with --message here")
    modes = {
        "--score": (options.score is not None, _SCORE_TAKES),
        "--score-lines": (options.score_lines is not None, _LINES_TAKE),
        "--fill": (options.fill is not None, _FILL_TAKES),
        "--chat": (options.chat, _CHAT_TAKES),
    }
    for mode, (chosen, takes) in modes.items():
        for name in given:
            if chosen and name not in takes:
                raise UserError(f"{flag(name)} is for sampling; with {mode} leave it out")


def stop_of(options: Options) -> tuple[str, ...] | None:
    """The texts that end a sample."""
    return tuple(map(whole_characters, options.stop)) or None


def sample(run, options: Options, sampling) -> int:
    """Go on from the prompt, or from each of the prompts."""
    if options.no_heal and not isinstance(run.tokenizer, BPETokenizer):
        raise UserError(f"--no-heal is for bpe:N and gpt2; this run's tokenizer is {run.tokenizer.name}")
    prompts = [text_of(options.prompt or "", "--prompt")]
    if options.prompts is not None:
        prompts = text_of_file(Path(options.prompts), "--prompts").split("\n")
        for n, prompt in enumerate(prompts, 1):  # before the first is drawn
            with naming_line(n, options.prompts):
                run.prompt_ids(prompt, options.unknown)
    if run.is_single_lines and any("\n" in prompt for prompt in prompts):
        raise UserError("--prompt has a line end, but this run's texts are single lines")
    num = options.num or (10 if run.is_lines and not run.is_documents and options.prompts is None else 1)
    drawn = {name: getattr(options, name) for name in ("max_new_tokens", "min_new_tokens", "seed", "unknown")}
    drawn |= {"sampling": sampling, "heal": not options.no_heal, "stop": stop_of(options)}
    show_all = stream if options.stream else batch
    show_all(run, options, prompts, num, drawn)
    return 0


def batch(run, options: Options, prompts: list[str], num: int, drawn: dict) -> None:
    """Draw samples together, then print them."""
    from engine.run.novelty import Novelty

    novelty: Any = Novelty(run) if options.only_new or options.json else None  # where it is asked for
    accept, count = None, 0
    if options.only_new:
        novelty.check()
        accept = lambda sample: not novelty.is_known(sample.text)  # noqa: E731
    for one in run.samples(prompts, num, accept=accept, logprobs=options.logprobs, **drawn):
        count += 1
        if options.json:
            fields = {} if options.prompts is None else {"prompt": one.prompt}
            facts = fields | {"text": one.text, "end": one.end} | novelty.of(one) | told(one.tokens, options)
            show(json.dumps(facts, ensure_ascii=False))
            continue
        show(one.text)
        show_tokens(one.tokens)
        if (run.is_documents or not run.is_lines) and num * len(prompts) > 1:
            print("-" * 60)
    if missing := num * len(prompts) - count:
        warn(f"{missing:,} of {num * len(prompts):,} samples are missing: what was drawn stands in the training text")


def stream(run, options: Options, prompts: list[str], num: int, drawn: dict) -> None:
    """Print every character as soon as it is certain, one sample after the other."""
    for prompt in prompts:
        for n in range(num):
            seed = None if options.seed is None else (options.seed + n) % (MAX_SEED + 1)
            show(prompt, end="", flush=True)
            for piece in run.pieces(prompt, **(drawn | {"seed": seed})):
                show(piece, end="", flush=True)
            print()


def chat(run, options: Options, sampling) -> int:
    """Talk in the terminal, or answer the one message."""
    from finetune.instruct.chat import Chat
    from finetune.instruct.terminal import converse

    drawn = (options.max_new_tokens, options.seed, stop_of(options), options.unknown, options.logprobs)
    partner = Chat(run, sampling, *drawn, system=options.system)
    if options.message is None:
        return converse(partner)
    pieces = partner.ask(text_of(options.message, "--message"))
    if options.json:
        said = "".join(pieces)
        show(json.dumps({"text": said, "end": partner.end} | told(partner.tokens, options), ensure_ascii=False))
        return 0
    for piece in pieces:
        show(piece, end="", flush=True)
    print()
    show_tokens(partner.tokens)
    return 0


def score(run, options: Options) -> int:
    """The likelihood of the text, and of each of its tokens where they are shown."""
    text = text_of(options.score or "", "--score")
    evaluation, tokens = run.score(text, options.unknown), ()
    if options.json or options.logprobs is not None:
        tokens = run.token_scores(text, options.unknown, options.logprobs)
    if options.json:
        show(json.dumps(total_as_json(evaluation) | {"logprobs": as_json(tokens)}, ensure_ascii=False))
    else:
        show_tokens(tokens)
        print(f"{evaluation.bits_per_char:.4f} bits per character over {evaluation.n_characters} characters")
    return 0


def score_lines(run, options: Options) -> int:
    """The likelihood of each line, one after the other; of an empty one there is none."""
    assert options.score_lines is not None
    for n, line in enumerate(text_of_file(Path(options.score_lines), "--score-lines").split("\n"), 1):
        with naming_line(n, options.score_lines):
            evaluation = run.score_or_nothing(line, options.unknown)
        if options.json:
            show(json.dumps({"text": line} | total_as_json(evaluation), ensure_ascii=False))
        else:
            show(f"{'-' if evaluation.bits_per_char is None else format(evaluation.bits_per_char, '.4f')}\t{line}")
    return 0


def fill(run, options: Options) -> int:
    """The text with its gaps filled, and what was put into each, with the likeliest in its place."""
    text = text_of(options.fill or "", "--fill")
    filled = run.fill(text, options.gap, options.unknown, 5 if options.logprobs is None else options.logprobs)
    if options.json:
        show(json.dumps({"text": filled.text, "gaps": as_json(filled.gaps)}, ensure_ascii=False))
        return 0
    show(filled.text)
    show_tokens(filled.gaps)
    return 0


def told(tokens, options: Options) -> dict[str, Any]:
    """The probabilities of a sample's tokens as JSON, where they were asked for."""
    return {} if options.logprobs is None else {"logprobs": as_json(tokens)}


def show_tokens(tokens) -> None:
    """A line a token below its text; none where the tokens are not shown."""
    for line in as_table(tokens) if tokens else ():
        show(line)


if __name__ == "__main__":
    sys.exit(run_command(main))
