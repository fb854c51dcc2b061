"""The metrics that a run records: metrics.jsonl, and with --log TensorBoard or Weights & Biases."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from data.disk import append_line, replace_file
from data.errors import UserError, warn
from data.json_files import Whole, parse_json

LINE = {"step": Whole(), "train_loss": (float, None), "val_loss": float}


class Metrics:
    """The metrics of a run: one flushed JSON line an evaluation in `metrics.jsonl`, also sent to `log` ('none',
    'tensorboard' or 'wandb')."""

    def __init__(self, folder: Path, log: str = "none", config: dict[str, Any] | None = None):
        self.path = folder / "metrics.jsonl"
        self._send = _LOGGERS[log](folder, config or {})

    def cut_back(self, step: int) -> None:
        """Remove the lines after `step`, the step of the save that a run resumes from, and torn lines, with a
        warning."""
        lines, torn = self._lines()
        if torn:
            warn(f"{self.path}: {torn} torn line{'s' * (torn > 1)} dropped")
        remaining = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        replace_file(self.path, "".join(remaining).encode())

    def read(self) -> list[dict[str, Any]]:
        """All complete lines so far."""
        return self._lines()[0]

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        append_line(self.path, json.dumps(line))
        self._send(line)

    def _lines(self) -> tuple[list[dict[str, Any]], int]:
        """The complete lines, and the number of torn ones."""
        whole, torn = [], 0
        text = self.path.read_text("utf-8", "replace") if self.path.exists() else ""
        for line in text.split("\n"):
            try:
                if line:
                    whole.append(parse_json(line, self.path, LINE))
            except UserError:
                torn += 1
        return whole, torn


def check_log(log: str) -> None:
    """Raise UserError when the package that `--log` needs is not installed."""
    module = {"tensorboard": "tensorboard", "wandb": "wandb"}.get(log)
    if module and importlib.util.find_spec(module) is None:
        raise UserError(f"--log {log} needs a package: pip install {module}")


def _no_log(folder: Path, config: dict[str, Any]):
    return lambda line: None


def _tensorboard(folder: Path, config: dict[str, Any]):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def send(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return send


def _wandb(folder: Path, config: dict[str, Any]):
    import wandb

    run = wandb.init(project="charlm", name=folder.name, config=config, dir=str(folder), resume="allow")
    return lambda line: run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])


_LOGGERS = {"none": _no_log, "tensorboard": _tensorboard, "wandb": _wandb}
