"""`python -m explain RUN --text T --what attention`: look inside a trained model, as a picture and as JSON.

A command, like train.py: it stands on `engine` and `finetune`, and nothing stands on it.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError, flag, run_command
from data.program import command


class What(NamedTuple):
    """What can be shown, in words; of --text and --data those that it reads, of which it needs one; and its flags."""

    about: str
    reads: tuple[str, ...] = ("text",)
    flags: tuple[str, ...] = ()


WHAT = {
    "attention": What("where each head of a Transformer looks"),
    "lens": What("what the model would say after each layer"),
    "gates": What("the gates of an LSTM or a GRU over the text"),
    "saliency": What("which tokens a label, or the next token, rests on"),
    "neurons": What("what the hidden units respond to", ("text", "data"), ("unit", "text_column", "encoding")),
    "embeddings": What("the vocabulary in a plane (without --text)", ()),
}
FILES = {"text_column", "encoding"}  # of --data


def main() -> int:
    parser = argparse.ArgumentParser(prog=command("explain"), description="Look inside a trained model.")
    parser.add_argument("run", help="the run directory, or gpt2:PATH, or hf:PATH")
    parser.add_argument(
        "--what",
        choices=tuple(WHAT),
        required=True,
        help="; ".join(f"{name}: {what.about}" for name, what in WHAT.items()),
    )
    parser.add_argument("--text", help="the text to look at")
    parser.add_argument("--data", metavar="FILE", help="texts to look at: a table, or a text a line")
    parser.add_argument("--text-column", metavar="NAME", help="the column of the texts (default: text)")
    parser.add_argument("--encoding", help="the encoding of --data (default: utf-8)")
    parser.add_argument("--unit", metavar="LAYER:N", help="of neurons this one: layers from 1, units from 0")
    parser.add_argument("--out", default="explained", metavar="FOLDER", help="where it is written (default: explained)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    args = parser.parse_args()
    check(args)
    found = look(args)
    try:
        about = {"what": args.what, "about": WHAT[args.what].about, "run": args.run}
        paths = found._replace(numbers=about | found.numbers).save(Path(args.out), args.what)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror}; name another --out") from error
    print(f"{found.said}\n{' '.join(map(str, paths))}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that mean nothing to --what, and where it has nothing to read."""
    what = WHAT[args.what]
    every = {name for each in WHAT.values() for name in (*each.reads, *each.flags)}
    given = {name for name in every if getattr(args, name) is not None}
    if useless := sorted(given - {*what.reads, *what.flags}):
        raise UserError(f"{flag(useless[0])} means nothing to --what {args.what}")
    if what.reads and not given & {*what.reads}:
        raise UserError(f"--what {args.what} needs {' or '.join(map(flag, what.reads))}")
    if given >= {"text", "data"}:
        raise UserError("--text and --data exclude each other")
    if "data" not in given and (useless := sorted(given & FILES)):
        raise UserError(f"{flag(useless[0])} means nothing without --data")


def look(args: argparse.Namespace) -> Any:
    """What is found, an `explain.found.Found`."""
    from explain.subject import subject_of

    subject = subject_of(args.run, args.checkpoint)
    if args.what == "embeddings":
        from explain.embeddings import embeddings

        return embeddings(subject)
    if args.what == "neurons":
        from explain.neurons import neurons
        from explain.texts import texts_of

        unit = unit_of(args.unit)
        if args.text is not None:
            subject.read(args.text)
            return neurons(subject, [args.text], unit)
        encoding = args.encoding or "utf-8"
        return neurons(subject, texts_of(args.data, args.text_column, encoding, subject.begins), unit)
    tokens = subject.read(args.text)
    if args.what == "attention":
        from explain.attention import attention as look_at
    elif args.what == "lens":
        from explain.lens import lens as look_at
    elif args.what == "gates":
        from explain.gates import gates as look_at
    else:
        from explain.saliency import saliency as look_at
    return look_at(subject, tokens)


def unit_of(said: str | None) -> Any:
    """The unit that --unit names, an `explain.neurons.Unit`."""
    from explain.neurons import Unit

    if said is None:
        return None
    if not (parts := re.fullmatch(r"(\d{1,9}):(\d{1,9})", said, re.ASCII)):
        raise UserError(f"--unit is '{said}'; give LAYER:N, as in 2:17: layers from 1, units from 0")
    return Unit(*map(int, parts.groups()))


if __name__ == "__main__":
    sys.exit(run_command(main))
