"""A run as a page that computes it in a browser: no server, no build, no other host.

The folder has index.html; charlm.js, which computes the model, also in node; settings.json, tokenizer.json and
model.safetensors, which the page fetches; and model.js with the same three, since a page that was opened from a disk
(file://) may fetch nothing, but may load scripts.
"""

import base64
import json
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from engine.config.settings import flags
from engine.run import checkpoint
from engine.run.folder import read_facts
from engine.run.quantised import narrow
from engine.run.run import Run
from engine.run.tensor_files import files_of
from makemore.base import count_parameters

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("weights", "layers", "models", "transformer", "tokenizers", "sampling", "charlm")
FORMAT = 1  # of settings.json
MAX_BYTES = 1 << 30  # of weights: a browser holds no more in one piece
MAX_IN_SCRIPT = 64 << 20  # bytes of weights that model.js holds
CHECKED = 24, 200  # tokens and ids of the logits that the page compares with ours
# What export/page/ computes, and what changes nothing of a trained model: no page is made of a run with other settings.
COMPUTED = {
    "context", "mix_ngram", "counts", "order", "n_layer", "n_embd", "n_hidden", "norm", "hash_ngrams", "hash_rows",
    "activation", "cells", "n_head", "n_kv_head", "positions", "window", "attention_cap", "qk_norm", "tie_head", "bias",
    "logit_cap", "value_embeddings", "value_residual",
}  # fmt: skip
OF_TRAINING = {
    "label_smoothing", "z_loss", "weight_init", "dropout", "norm_kernel", "carry_state", "zero_init", "attention",
    "activation_checkpointing", "mask_rate", "mask_span",
}  # fmt: skip
NOT_COMPUTED = {"count_inputs": False, "objective": "next"}  # refused where it is another


def save(run: Run, folder: Path) -> str:
    """Write the page of `run`; what to tell the user. Raises UserError for what no page computes."""
    weights = _weights(run)
    size = sum(tensor.nbytes for tensor in weights.values())
    if size > MAX_BYTES:
        raise UserError(
            f"{run.folder} has {size:,} bytes of weights, and a page holds {MAX_BYTES:,}; --to int4 makes a smaller "
            "run of it, of which --to web makes a page"
        )
    settings = describe(run)
    folder.mkdir(parents=True, exist_ok=True)
    ((_, parts),) = files_of("model", weights)
    files = {
        "settings.json": json.dumps(settings).encode(),
        "tokenizer.json": json.dumps(run.tokenizer.to_json()).encode(),
        "model.safetensors": b"".join(parts),
    }
    scripts = [(PAGE / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    written = files | {"index.html": (PAGE / "index.html").read_bytes(), "charlm.js": joined(scripts).encode()}
    from_disk = "any static host serves it; it is too large to be opened from a disk"
    if size <= MAX_IN_SCRIPT:
        written["model.js"] = in_script(files).encode()
        from_disk = "open it, or put the folder on any static host"
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return f"wrote {folder / 'index.html'} ({size:,} bytes of weights): {from_disk}"


def describe(run: Run) -> dict[str, Any]:
    """settings.json: what the page has to know of the run besides its weights and tokenizer."""
    net = vars(run.config.net)
    off = {name for name, plain in NOT_COMPUTED.items() if net.get(name, plain) == plain}
    if unknown := net.keys() - COMPUTED - OF_TRAINING - off:
        raise UserError(f"no page computes {flags(sorted(unknown))}, which {run.folder} was trained with")
    return {
        "format": FORMAT,
        "name": run.folder.resolve().name,
        "family": run.config.model,
        "options": {name: value for name, value in net.items() if name in COMPUTED},
        "vocab_size": run.tokenizer.vocab_size,
        "specials": run.tokenizer.special._asdict(),
        "prefix": run.prompt_ids("") if run.has_ends else [],  # before every prompt
        "start": run.prompt_ids(""),  # in place of an empty one
        "suppressed": run.suppressed,
        "kind": run.config.text.kind,
        "single_lines": run.is_single_lines,
        "longest": run.longest,  # tokens of a sample
        "data": _name_of_text(run),
        "parameters": count_parameters(run.model),
        "val_loss": run.facts.get("val_loss"),
        "weights": run.facts.get("weights", "float32"),
        "check": check_values(run),
    }


@torch.no_grad()
def check_values(run: Run) -> dict[str, Any]:
    """Tokens and logits after them, of some ids, as the model computes them here."""
    length, ids = CHECKED
    start, size = run.prompt_ids(""), run.tokenizer.vocab_size
    tokens = [*start, *(i * 7919 % size for i in range(length))]
    logits = run.model.read_last(torch.tensor([tokens], device=run.device))[0][0]
    shown = sorted({i * size // ids for i in range(ids)})
    return {"tokens": tokens, "ids": shown, "logits": [round(float(logits[i]), 6) for i in shown]}


def joined(scripts: list[str]) -> str:
    """One script of several: `charlm` on a page, and what `require` gives in node."""
    body = "\n".join(scripts)
    return (
        "// Computes a language model in a browser or in node; written by an export. `charlm.load` gives a\n"
        "// model, whose `generate` writes text.\n"
        f'const charlm = (() => {{\n"use strict";\n\n{body}\nreturn {{ load, fromBase64 }};\n}})();\n'
        'if (typeof module !== "undefined") module.exports = charlm;\n'
    )


def in_script(files: dict[str, bytes]) -> str:
    """The files in base64, as a script: for a page that may not fetch them."""
    encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
    about = "// The files beside it, for a page that was opened from a disk and may not fetch them."
    return f"{about}\nvar charlmFiles = {json.dumps(encoded)};\n"


def _name_of_text(run: Run) -> str:
    """What the text of the run is called; no path, since others read the page."""
    try:
        return read_facts(run.folder)["data"]["name"]
    except UserError:  # gpt2:PATH
        return "web pages (GPT-2)"


def _weights(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of the page's file: those of a rounded run as they are stored, others in float32."""
    if "weights" in run.facts:
        return checkpoint.load(run.folder / "best", ("model",))[0]["model"]
    found: dict[str, torch.Tensor] = {}
    for name, tensor in run.model.state_dict().items():
        found |= {name: tensor.float()} if tensor.is_floating_point() else narrow(name, tensor)
    return found
