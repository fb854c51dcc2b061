"""`python -m export RUN --to FORMAT DIR`: a trained model for other programs, as a web page, or smaller.

A command, like train.py: it stands on `engine`, and nothing stands on it.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest, run_command
from data.program import command
from engine.config.settings import flat

FORMATS = {
    "hf": "Transformers, for transformers",
    "onnx": "a graph, of any family",
    "web": "a page that computes the model in a browser",
    "int8": "a run with weights of 8 bits",
    "int4": "... of 4 bits",
    "bf16": "... of 16 bits",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog=command("export"), description="Write a run for other programs.")
    parser.add_argument("run", help="the run directory, or gpt2:PATH, or hf:PATH")
    parser.add_argument(
        "--to", nargs=2, metavar=("FORMAT", "DIR"), required=True,
        help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + "; and a folder that is not there yet",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    parser.add_argument("--data", metavar="TEXT", help="with int8, int4 and bf16: measure the loss on this text")
    args = parser.parse_args()
    kind, folder = args.to[0], Path(args.to[1])
    if kind not in FORMATS:
        raise UserError(f"unknown format '{kind}'; there are: {', '.join(FORMATS)}.{nearest(kind, FORMATS)}")
    from engine.run.load import load_run
    from engine.run.quantised import KINDS

    if args.data is not None and kind not in KINDS:
        raise UserError(f"--data is for {', '.join(KINDS)}, whose loss is measured; with {kind} leave it out")
    run = load_run(args.run, args.checkpoint, "cpu")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists; name a folder that is not there yet")
        if kind in KINDS:
            print(to_rounded(run, kind, folder, args.data))
        else:
            print({"hf": to_hub, "onnx": to_onnx, "web": to_web}[kind](run, folder))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return 0


def to_rounded(run: Any, kind: str, folder: Path, data: str | None) -> str:
    """Write the run with fewer bits a weight; what it costs."""
    from export import quantised

    return quantised.save(run, kind, folder, data)


def to_web(run: Any, folder: Path) -> str:
    """Write the run as a page."""
    from export import web

    return web.save(run, folder)


def refuse_counts(run: Any, kind: str) -> None:
    """Raise UserError for a mixture."""
    if getattr(run.config.net, "mix_ngram", 0):
        raise UserError(f"{run.folder} mixes with counts (--mix-ngram), which --to {kind} has not")


def to_hub(run: Any, folder: Path) -> str:
    """Write the run for `transformers`; what to tell the user."""
    from export import hub
    from nanogpt.model import Transformer

    refuse_counts(run, "hf")
    if not isinstance(run.model, Transformer):
        raise UserError(
            f"{run.folder} is a {run.config.model}: transformers has a class for Transformers alone; --to onnx takes it"
        )
    settings = flat(run.config)
    start = "<bos>" if run.is_lines else "<eos>" if run.has_ends else ""
    what = hub.save(run.model, run.tokenizer, settings, folder, start)
    return f"wrote {folder}, a {what}: AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it"


def to_onnx(run: Any, folder: Path) -> str:
    """Write the run as a graph, with its tokenizer beside it; what to tell the user."""
    from export import onnx

    refuse_counts(run, "onnx")
    onnx.check_packages()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ports = onnx.save(run.model, folder / "model.onnx")
    except BaseException:  # what was not checked is not left behind
        shutil.rmtree(folder)
        raise
    (folder / "tokenizer.json").write_text(json.dumps(run.tokenizer.to_json()), "utf-8")
    return "\n".join([f"wrote {folder / 'model.onnx'}, which computes what the model does in onnxruntime:", *ports])


if __name__ == "__main__":
    sys.exit(run_command(main))
