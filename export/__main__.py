"""`python -m export RUN --to FORMAT DIR`: a trained model for other programs, as a web page, or smaller.

A command, like train.py: it stands on `engine`, and nothing stands on it.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest, run_command
from data.program import command
from engine.config.settings import flat

FORMATS = {
    "hf": "Transformers, for transformers",
    "peft": "LoRA adapters, for PEFT",
    "gguf": "Transformers, for llama.cpp",
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
    from engine.run.quantised import KINDS

    if args.data is not None and kind not in KINDS:
        raise UserError(f"--data is for {', '.join(KINDS)}, whose loss is measured; with {kind} leave it out")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists; name a folder that is not there yet")
        print(_export(args.run, args.checkpoint, kind, folder, args.data))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return 0


def _export(name: str, which: str, kind: str, folder: Path, data: str | None) -> str:
    """Write the checkpoint `which` of a run; what to tell the user."""
    from engine.run.load import load_writer
    from engine.run.quantised import KINDS

    if kind in ("hf", "onnx"):
        from export import classifier

        if classifier.is_classifier(name):
            return to_classifier(Path(name), which, kind, folder)
    run = load_writer(name, which, "cpu")
    if kind in KINDS:
        return to_rounded(run, kind, folder, data)
    if kind == "peft":
        return to_peft(run, folder, which)
    return {"hf": to_hub, "gguf": to_gguf, "onnx": to_onnx, "web": to_web}[kind](run, folder)


def to_classifier(path: Path, which: str, kind: str, folder: Path) -> str:
    """Write a run that labels texts; what to tell the user."""
    if kind == "onnx":
        from export import onnx_classifier

        return onnx_classifier.save(path, which, folder)
    from export import classifier

    return classifier.to_hub(path, which, folder)


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


def refuse_other_families(run: Any, why: str) -> None:
    """Raise UserError for a run that is no Transformer's."""
    from nanogpt.model import Transformer

    if not isinstance(run.model, Transformer):
        raise UserError(f"{run.folder} is a {run.config.model}: {why}")


def to_hub(run: Any, folder: Path) -> str:
    """Write the run for `transformers` and check it there; what to tell the user."""
    from export import card, hub, hub_check

    refuse_counts(run, "hf")
    refuse_other_families(run, "transformers has a class for Transformers alone; --to onnx takes it")
    settings = flat(run.config)
    try:
        kind = hub.save(run.model, run.tokenizer, settings, folder, start_of(run), run.suppressed, run.template)
        checked = hub_check.check(run.model, folder)
    except BaseException:  # what was not checked is not left behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    relu2 = kind != "gpt2" and settings["activation"] == "relu2"
    uses = [card.USE.format(folder=folder.name)] + ([card.CHAT.format(folder=folder.name)] if run.template else [])
    facts = card.facts_of(run.model, run.tokenizer, run.config.net.context, data_of(run)) | card.losses_of(run.facts)
    card.write(folder, kind, facts, uses, relu2=relu2)
    lines = [f"wrote {folder}, a {kind}: AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it", checked]
    if relu2:
        lines.append(
            "it is for transformers alone: llama.cpp, mlx-lm and vLLM compute SiLU where this model has ReLU²; "
            "for them train with --activation swiglu"
        )
    return "\n".join(lines)


def to_peft(run: Any, folder: Path, which: str) -> str:
    """Write the adapters of the run's checkpoint `which` and the model that they adapt; what to tell the user."""
    from export import hub, peft

    refuse_counts(run, "peft")
    refuse_other_families(
        run, "PEFT's adapters are of models of transformers, which has a class for Transformers alone"
    )
    settings, base = flat(run.config), folder / "base"
    model, adapters = peft.read(run.model, run.folder, which)
    try:
        kind = hub.save(model, run.tokenizer, settings, base, start_of(run), run.suppressed, run.template)
        peft.save(model, adapters, settings, folder, base)
        checked = peft.check(run.model, folder, base)
    except BaseException:  # what was not checked is not left behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    loads = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), {str(folder)!r}) loads it"
    return f"wrote {folder}, an adapter of {base}, a {kind}: {loads}\n{checked}"


def to_gguf(run: Any, folder: Path) -> str:
    """Write the run for llama.cpp; what to tell the user."""
    from export import gguf

    gguf.check_packages()
    refuse_counts(run, "gguf")
    refuse_other_families(run, "llama.cpp has Transformers alone; --to onnx takes it")
    path = folder / "model.gguf"
    try:
        arch = gguf.save(run.model, run.tokenizer, flat(run.config), path, start_of(run), run.template)
    except BaseException:  # what was not checked is not left behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return f"wrote {path}, which llama.cpp runs as a {arch}: llama-cli -m {path} -c {run.config.net.context} --temp 1"


def start_of(run: Any) -> str:
    """The special that a text of the run begins with, or ''."""
    return "<bos>" if run.is_lines else "<eos>" if run.has_ends else ""


def data_of(run: Any) -> str:
    """What the run was trained on, by its name."""
    from engine.run.folder import read_facts

    try:
        return read_facts(run.folder)["data"]["name"]
    except UserError:  # gpt2:PATH
        return "WebText, as it is GPT-2 itself or was fine-tuned from it elsewhere"


def to_onnx(run: Any, folder: Path) -> str:
    """Write the run as a graph, with its tokenizer beside it; what to tell the user."""
    from export import onnx_folder

    refuse_counts(run, "onnx")
    return onnx_folder.save(run, folder, start_of(run), data_of(run))


if __name__ == "__main__":
    sys.exit(run_command(main))
