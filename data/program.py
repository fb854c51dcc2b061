"""What this project's commands are called here, and its version: `python train.py` in a checkout, `charlm train` where
the package is installed, whose modules lie below `charlm` (hatch_build.py)."""

import importlib.metadata
import tomllib
from pathlib import Path

PACKAGE = "charlm"
COMMANDS = {  # by its name behind `charlm`: what stands behind `python` in a checkout, and what it is for
    "train": ("train.py", "train or evaluate a language model on any text"),
    "sample": ("sample.py", "sample from a run, score a text with it, or talk to it"),
    "runs": ("-m engine.runs", "list the runs in a folder"),
    "classify": ("-m finetune.classify", "train a classifier of texts, or label with it"),
    "instruct": ("-m finetune.instruct", "train a model to answer"),
    "tune": ("-m tune", "search the best flags of train, classify or instruct"),
    "translate": ("-m finetune.translate", "train a model to turn one text into another, or translate with it"),
    "forecast": ("-m forecast", "go on with a series of numbers that a run was trained on"),
    "serve": ("-m serve", "serve runs over HTTP"),
    "explain": ("-m explain", "look inside a run: attention, lens, gates, saliency, embeddings"),
    "export": ("-m export", "write a run for other programs"),
    "prepare": ("-m data.prepare", "prepare a text ahead of training; list or clear the cache"),
    "doctor": ("-m engine.doctor", "what this machine has, and what every `auto` chooses here"),
    "scratch": ("-m makemore.scratch.train", "train a model in NumPy alone"),
}
_ABOVE = __name__.removesuffix("data.program")  # "" in a checkout, "charlm." where installed
ROOT = Path(__file__).resolve().parents[__name__.count(".")]  # the folder that modules are named from
IS_INSTALLED = _ABOVE != ""


def command(name: str) -> str:
    """How a command is called here: 'python -m finetune.classify' or 'charlm classify'."""
    return f"{PACKAGE} {name}" if IS_INSTALLED else recorded(name)


def recorded(name: str) -> str:
    """What the `config.json` of a run says of the command that made it: the same wherever that ran."""
    return f"python {COMMANDS[name][0]}"


def spoken(record: str) -> str:
    """How the command that a `config.json` says is called here."""
    return next((command(name) for name in COMMANDS if recorded(name) == record), record)


def module(name: str) -> str:
    """The full name of this project's module `name`, to be imported or started by it."""
    return _ABOVE + name


def version() -> str:
    """The version: of the package, or that of the checkout's pyproject.toml."""
    if IS_INSTALLED:
        return importlib.metadata.version(PACKAGE)
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
