"""`python -m explain RUN --text T --what attention`: look inside a trained model, as a picture and as JSON.

A command, like train.py: it stands on `engine` and `finetune`, and nothing stands on it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from data.errors import UserError, run_command
from data.program import command

WHAT = {
    "attention": "where each head of a Transformer looks",
    "lens": "what the model would say after each layer",
    "gates": "the gates of an LSTM or a GRU over the text",
    "saliency": "which tokens a label, or the next token, rests on",
    "embeddings": "the vocabulary in a plane (without --text)",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog=command("explain"), description="Look inside a trained model.")
    parser.add_argument("run", help="the run directory, or gpt2:PATH, or hf:PATH")
    parser.add_argument(
        "--what", choices=tuple(WHAT), required=True, help="; ".join(f"{name}: {what}" for name, what in WHAT.items())
    )
    parser.add_argument("--text", help="the text to look at")
    parser.add_argument("--out", default="explained", metavar="FOLDER", help="where it is written (default: explained)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    args = parser.parse_args()
    if (args.text is None) != (args.what == "embeddings"):
        raise UserError(
            "--text means nothing to --what embeddings" if args.text else f"--what {args.what} needs --text"
        )
    found = look(args.run, args.what, args.text, args.checkpoint)
    try:
        about = {"what": args.what, "about": WHAT[args.what], "run": args.run}
        paths = found._replace(numbers=about | found.numbers).save(Path(args.out), args.what)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror}; name another --out") from error
    print(f"{found.said}\n{' '.join(map(str, paths))}")
    return 0


def look(run: str, what: str, text: str | None, which: str = "best") -> Any:
    """What is found, an `explain.found.Found`."""
    from explain.subject import subject_of

    subject = subject_of(run, which)
    if what == "embeddings":
        from explain.embeddings import embeddings

        return embeddings(subject)
    tokens = subject.read(text or "")
    if what == "attention":
        from explain.attention import attention as look_at
    elif what == "lens":
        from explain.lens import lens as look_at
    elif what == "gates":
        from explain.gates import gates as look_at
    else:
        from explain.saliency import saliency as look_at
    return look_at(subject, tokens)


if __name__ == "__main__":
    sys.exit(run_command(main))
