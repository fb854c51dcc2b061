"""`python -m export RUN --to hf|onnx DIR`: a trained model for `transformers`, or as an ONNX graph.

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

FORMATS = ("hf", "onnx")


def main() -> int:
    parser = argparse.ArgumentParser(prog=command("export"), description="Write a run for other programs.")
    parser.add_argument("run", help="the run directory, or gpt2:PATH")
    parser.add_argument(
        "--to", nargs=2, metavar=("FORMAT", "DIR"), required=True,
        help="hf (Transformers, for transformers) or onnx (any family), and a folder that is not there yet",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    args = parser.parse_args()
    kind, folder = args.to[0], Path(args.to[1])
    if kind not in FORMATS:
        raise UserError(f"unknown format '{kind}'; there are: {', '.join(FORMATS)}.{nearest(kind, FORMATS)}")
    from engine.run.load import load_run

    run = load_run(args.run, args.checkpoint, "cpu")
    if getattr(run.config.net, "mix_ngram", 0):
        raise UserError(f"{run.folder} mixes with counts (--mix-ngram): neither format has these")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists; name a folder that is not there yet")
        print(to_hub(run, folder) if kind == "hf" else to_onnx(run, folder))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return 0


def to_hub(run: Any, folder: Path) -> str:
    """Write the run for `transformers`; what to tell the user."""
    from export import hub
    from nanogpt.model import Transformer

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
