"""What a run writes down while it goes: metrics.jsonl, and TensorBoard or Weights & Biases when asked."""

import json
from pathlib import Path
from typing import Any

from data.errors import UserError


class Metrics:
    """One flushed JSON line an evaluation, in `metrics.jsonl`, passed on to `log` ('none', 'tensorboard', 'wandb')."""

    def __init__(self, folder: Path, log: str = "none", config: dict[str, Any] | None = None):
        self.path = folder / "metrics.jsonl"
        self._send = _LOGGERS[log](folder, config or {})

    def cut_back(self, step: int) -> None:
        """Drop lines after `step`, and torn ones: what happened after the save that a run resumes from."""
        lines = [json.dumps(line) for line in self.read() if line["step"] <= step]
        self.path.write_text("".join(line + "\n" for line in lines), "utf-8")

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        found = []
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._send(line)


def _no_log(folder: Path, config: dict[str, Any]):
    return lambda line: None


def _tensorboard(folder: Path, config: dict[str, Any]):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--log tensorboard needs the package: pip install tensorboard") from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def send(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return send


def _wandb(folder: Path, config: dict[str, Any]):
    try:
        import wandb
    except ImportError as error:
        raise UserError("--log wandb needs the package: pip install wandb") from error
    run = wandb.init(project="charlm", name=folder.name, config=config, dir=str(folder), resume="allow")
    return lambda line: run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])


_LOGGERS = {"none": _no_log, "tensorboard": _tensorboard, "wandb": _wandb}
