"""`python -m nanogpt.export RUN --to hf DIR`: a trained Transformer as a folder that `transformers` loads.

A command, like train.py: it stands on `engine`, and nothing stands on it.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from data.errors import UserError, run_command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nanogpt.export", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="the run directory, or gpt2:PATH")
    parser.add_argument(
        "--to", nargs=2, metavar=("FORMAT", "DIR"), required=True, help="hf and a folder that is not there yet"
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    args = parser.parse_args()
    kind, folder = args.to[0], Path(args.to[1])
    if kind != "hf":
        raise UserError(f"unknown format '{kind}'; there is: hf")
    from engine.runs import load_run
    from nanogpt import hub
    from nanogpt.model import Transformer

    run = load_run(args.run, args.checkpoint, "cpu")
    if not isinstance(run.model, Transformer):
        raise UserError(f"{args.run} is a {run.config.model}: transformers has a class for Transformers alone")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists; name a folder that is not there yet")
        what = hub.save(
            run.model, run.tokenizer, dataclasses.asdict(run.config), folder, "<bos>" if run.is_lines else ""
        )
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    print(f"wrote {folder}, a {what}: AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
