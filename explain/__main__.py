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
    """What can be shown, in words; of --text and --data those that it reads, and whether it needs one; its flags."""

    about: str
    reads: tuple[str, ...] = ("text",)
    flags: tuple[str, ...] = ()
    needs: bool = True


WHAT = {
    "attention": What("where each head of a Transformer looks"),
    "lens": What("what the model would say after each layer"),
    "gates": What("the gates of an LSTM or a GRU over the text"),
    "saliency": What("which tokens a label, or the next token, rests on"),
    "neurons": What("what the hidden units respond to", ("text", "data"), ("unit", "text_column", "encoding")),
    "adversarial": What(
        "the fewest changed characters that turn a classifier's answer, of --text, --data or its own test examples",
        ("text", "data"),
        ("max_changes", "texts", "text_column", "label_column", "encoding"),
        needs=False,
    ),
    "groups": What(
        "how well it does for each group of texts: bits a character, or a classifier's accuracy",
        ("data",),
        ("group_column", "text_column", "label_column", "encoding"),
        needs=False,
    ),
    "embeddings": What("the vocabulary in a plane (without --text)", ()),
}
FILES = {"text_column", "label_column", "encoding"}  # of --data


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
    parser.add_argument("--label-column", metavar="NAME", help="the column of the labels (default: label)")
    parser.add_argument("--group-column", metavar="NAME", help="of groups, their column (default: the labels)")
    parser.add_argument("--encoding", help="the encoding of --data (default: utf-8)")
    parser.add_argument("--unit", metavar="LAYER:N", help="of neurons this one: layers from 1, units from 0")
    parser.add_argument("--max-changes", type=count, metavar="N", help="of adversarial at most so many (default: 3)")
    parser.add_argument("--texts", type=count, metavar="N", help="of adversarial so many examples (default: 100)")
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
    if what.reads and what.needs and not given & {*what.reads}:
        raise UserError(f"--what {args.what} needs {' or '.join(map(flag, what.reads))}")
    if given >= {"text", "data"}:
        raise UserError("--text and --data exclude each other")
    if "texts" in given and "text" in given:
        raise UserError("--texts means nothing to one --text")
    if "data" not in given and (useless := sorted(given & (FILES | {"group_column"}))):
        raise UserError(f"{flag(useless[0])} means nothing without --data")


def look(args: argparse.Namespace) -> Any:
    """What is found, an `explain.found.Found`."""
    if args.what == "adversarial":
        return look_at_changes(args)
    if args.what == "groups":
        return look_at_groups(args)
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


def look_at_changes(args: argparse.Namespace) -> Any:
    """The same of --what adversarial."""
    from data.labelled.example import Columns
    from explain import adversarial
    from finetune.classify.labeller import given_examples, load_labeller, own_examples

    labeller = load_labeller(args.run, args.checkpoint, "cpu")
    adversarial.check_turnable(labeller, args.run)
    most = args.max_changes or adversarial.MAX_CHANGES
    if args.text is not None:
        return adversarial.of_text(labeller, args.text, most)
    path, columns = Path(args.run), Columns(args.text_column, args.label_column)
    if args.data is None:
        labelled = own_examples(labeller, path)
    else:
        labelled = given_examples(labeller, path, args.data, columns, args.encoding or "utf-8")
    return adversarial.of_examples(labeller, labelled.name, labelled.sides["test"], most, args.texts or 100)


def look_at_groups(args: argparse.Namespace) -> Any:
    """The same of --what groups."""
    from data.labelled.example import Columns
    from engine.run.load import load_run
    from explain import groups
    from explain.subject import is_classifier
    from finetune.classify.labeller import given_examples, load_labeller, own_examples

    labels = is_classifier(args.run)
    if args.data is None and not labels:
        raise UserError(f"--what groups needs --data: {args.run} has no labelled texts of its own")
    if args.label_column is not None and not labels:
        raise UserError(f"--label-column is for classifiers, and {args.run} is none; --group-column has the groups")
    if args.data is None:
        labeller = load_labeller(args.run, args.checkpoint, "cpu")
        labelled = own_examples(labeller, Path(args.run))
        return groups.of_classes(labeller, labelled, {each.where: each.label for each in labelled.sides["test"]})
    encoding, column = args.encoding or "utf-8", args.group_column or args.label_column
    name, examples = groups.read_groups(args.data, args.text_column, column, encoding)
    if not labels:
        return groups.of_language(load_run(args.run, args.checkpoint, "cpu"), name, examples)
    labeller = load_labeller(args.run, args.checkpoint, "cpu")
    columns = Columns(args.text_column, args.label_column)
    labelled = given_examples(labeller, Path(args.run), args.data, columns, encoding)
    return groups.of_classes(labeller, labelled, {each.where: each.label for each in examples})


def count(said: str) -> int:
    """A number from 1 of a flag."""
    if not re.fullmatch(r"[1-9]\d{0,5}", said, re.ASCII):
        raise argparse.ArgumentTypeError(f"'{said}' is no number from 1 to 999,999")
    return int(said)


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
