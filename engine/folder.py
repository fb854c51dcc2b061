"""A run directory on disk: what it holds, how it is made, described and found. Imports no torch.

runs/<name>/  config.json  tokenizer.json  metrics.jsonl  summary.json  samples.txt  loss.png
              best/  model.safetensors
              last/  model.safetensors  trainer.safetensors
"""

import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.tokenizers import Tokenizer
from data.vocabulary import from_json

RUNS = Path("runs")
FORMAT = 1
_OURS = (
    "config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "samples.txt", "loss.png", "confusion.png",
    "generations.jsonl", "tensorboard", "base", "best", "best.new", "best.old", "last", "last.new", "last.old",
)  # fmt: skip


def create(
    out: str | None, overwrite: bool, config: dict[str, Any], tokenizer: Tokenizer, data: dict[str, str], **task: Any
) -> Path:
    """Make the directory of a new run and write down what it is. Never replaces a run unless told to.

    `data` tells the text: its key, name, folder in the cache and start text; `task` what a fine-tuned run is for."""
    folder = Path(out) if out else _next_free("-".join([*task, config["model"], data["name"]]))
    try:
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if occupied and not overwrite:
            raise UserError(f"{folder} already exists; use --resume to go on with it, --overwrite, or another --out")
        if occupied:
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(f"cannot make the run directory {folder}: {error.strerror}; choose another --out") from error
    facts = {"format": FORMAT, "config": config, "data": data, "vocab_size": tokenizer.vocab_size, **task}
    try:
        replace_file(folder / "tokenizer.json", json.dumps(tokenizer.to_json()).encode())
        write_facts(folder, facts)
    except OSError:  # a full disk: leave nothing half made
        _clear(folder)
        folder.rmdir()
        raise
    return folder


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Replace `config.json`."""
    replace_file(folder / "config.json", json.dumps(facts, indent=1).encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """What `config.json` of a run says: `config`, `data` and `vocab_size`. Raises UserError when there is no
    run, or one that cannot be read."""
    path = folder / "config.json"
    try:
        if not folder.is_dir():
            raise UserError(f"no run directory {folder}{_suggest()}")
        facts = json.loads(path.read_text("utf-8"))
        if facts["format"] != FORMAT:
            raise UserError(f"{path} has format {facts['format']}; this version reads {FORMAT}")
        texts = [facts["data"][name] for name in ("key", "folder", "name", "start")]
        if not (isinstance(facts["config"], dict) and isinstance(facts["vocab_size"], int)):
            raise ValueError("config or vocab_size is missing")
        if "instruct" in facts:
            texts.append(facts["instruct"]["template"])
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("data is not described")
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a run directory: it has no config.json") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or not a run's ({type(error).__name__}: {error})") from error
    return facts


def read_tokenizer(folder: Path) -> Tokenizer:
    """The run's tokenizer. Raises UserError naming the file."""
    path = folder / "tokenizer.json"
    try:
        return from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error


def sample_command(folder: Path) -> str:
    """The command that samples from this run."""
    return f"python sample.py {shlex.quote(str(folder))}"


def resume_command(folder: Path, program: str = "train.py") -> str:
    """The command that goes on with this run."""
    return f"python {program} --resume --out {shlex.quote(str(folder))}"


def _next_free(what: str) -> Path:
    name = "".join(c if c.isalnum() or c in "._" else "-" for c in what)
    n = 1
    while (folder := RUNS / f"{name}-{n}").exists():
        n += 1
    return folder


def _clear(folder: Path) -> None:
    """Remove what a run wrote, and nothing else; `config.json` last, so that a kill in between leaves a run to
    clear."""
    ours = {name + end for name in _OURS for end in ("", ".new")}
    if not folder.is_dir() or not ((folder / "config.json").is_file() or {p.name for p in folder.iterdir()} <= ours):
        raise UserError(f"{folder} is not a run directory: --overwrite does not touch it; choose another --out")
    for name in sorted(ours, key=lambda name: name == "config.json"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _suggest() -> str:
    if RUNS.is_dir() and (names := sorted(str(path) for path in RUNS.iterdir() if (path / "config.json").is_file())):
        return f"; there are: {', '.join(names[-5:])}"
    return ""


def write_file(path: Path, content: bytes) -> None:
    """Write and flush to the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replace one file: readers see the old content or the new, never part of it."""
    new = path.with_name(path.name + ".new")
    write_file(new, content)
    os.replace(new, path)
