"""A run as a folder with an ONNX graph: model.onnx, tokenizer.json, config.json for programs, and README.md."""

import json
import shutil
from pathlib import Path
from typing import Any

from data.tokenizers import Tokenizer
from engine.run.run import Run
from export import card, onnx, onnx_readme
from export.hub_tokenizer import tokenizer_json
from export.onnx import Ports
from finetune.classify.classifier import Classifier
from makemore.base import LanguageModel


def save(run: Run, folder: Path, starts: str, data: str) -> str:
    """Write the run; what to tell the user. `starts`: the special that a text begins with, or ''; `data`: what it was
    trained on."""
    model, trained = run.model, run.config.net.context
    config = {
        "family": run.config.model,
        "context": model.context,  # tokens that the graph reads; None: any number
        "reach": model.reach(),  # last tokens on which the logits depend; None: all
        "vocab_size": run.tokenizer.vocab_size,
        "specials": run.tokenizer.specials,
        "start": run.prompt_ids(""),  # in place of an empty prompt
        "suppressed": run.suppressed,  # never drawn
    }
    ports = write(folder, model, config, run.tokenizer, starts)
    facts = card.facts_of(model, run.tokenizer, trained, data) | card.losses_of(run.facts)
    if model.context is None:
        facts["context"] = f"any number of tokens; trained on {trained:,}"
    uses = onnx_readme.of_a_model(config, ports, starts, run.template)
    card.write(folder, f"language model ({config['family']}) as ONNX,", facts | size_of(folder), uses, library="onnx")
    return told(folder, ports)


def write(
    folder: Path,
    model: LanguageModel | Classifier,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    starts: str,
    longest: int | None = None,
) -> Ports:
    """Write all files but the README: the graph of `model`, which has `config` as its metadata, too, and `tokenizer`,
    for which a text begins with the special `starts` and is cut at `longest` tokens. Returns the graph's inputs and
    outputs."""
    onnx.check_packages()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        ports = onnx.save(model, folder / "model.onnx", config)
        files = {
            "tokenizer.json": tokenizer_file(tokenizer, starts, longest),
            "config.json": config | ports._asdict(),
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except BaseException:  # what was not checked is not left behind
        shutil.rmtree(folder)
        raise
    return ports


def tokenizer_file(tokenizer: Tokenizer, starts: str, longest: int | None = None) -> dict[str, Any]:
    """tokenizer.json: as `hub_tokenizer` has it, but with no tokens that a text is searched for, so that none of it is
    ever read as a special."""
    content = tokenizer_json(tokenizer, tokenizer.specials, starts) | {"added_tokens": []}
    if longest is not None:
        cut = {"direction": "Right", "max_length": longest, "strategy": "LongestFirst", "stride": 0}
        content["truncation"] = cut
    return content


def size_of(folder: Path) -> dict[str, str | None]:
    """The size of the graph, as a fact of its card."""
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    return {"size": f"{size:,} bytes"}


def told(folder: Path, ports: Ports) -> str:
    """What to tell the user of a folder."""
    lines = [f"{way:3} {name} {type_} {shape}" for way, name, type_, shape in onnx_readme.rows(ports)]
    said = f"wrote {folder / 'model.onnx'}, which computes what the model does in onnxruntime; README.md has programs:"
    return "\n".join([said, *lines])
