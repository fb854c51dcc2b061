"""What differs between kinds of training, a Task, and what a run has at work, a Session."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from data.batches import Batch
from data.loaders import Loader
from data.tokenizers import Tokenizer
from engine.distributed.ranks import ALONE, Ranks
from engine.run.folder import FORMAT
from engine.run.run import Run
from engine.run.weights import keep_frozen
from engine.training.metrics import Metrics
from engine.training.progress import Progress


class Batches(NamedTuple):
    """What a model is trained and validated on."""

    train: Loader | None  # None for a model that counts
    val: Callable[[], Iterator[Batch]]
    characters: np.ndarray  # (V,), how many characters each token stands for; zeros where targets are no text


@dataclass
class Session:
    """A run at work: all that its task needs to train, measure and report."""

    task: "Task"
    config: Any
    data: Any
    model: Any  # what the task's `trained` returned: a LanguageModel, or a module around one
    batches: Batches
    device: torch.device
    folder: Path
    metrics: Metrics
    identity: dict[str, Any]  # which run the checkpoints belong to

    @property
    def tokenizer(self) -> Tokenizer:
        return self.data.tokenizer


class Task:
    """A kind of training; its methods stand in the order in which a new run calls them. `data` is whatever `read`
    returns: it has a `tokenizer`, and `about`, its key, name, folder in the cache and start text.

    `ranks`: the processes that train together. All of them do the same; `keep`, `extra_metrics` and `finish` are done
    by the first one alone."""

    ranks: Ranks = ALONE
    format: int = FORMAT  # of the run

    def parent(self, config: Any, explicit: set[str]) -> Run:
        """What `--init` names. Raises UserError for flags that contradict it."""
        raise NotImplementedError

    def read(self, config: Any, explicit: set[str], parent: Run | None) -> tuple[Any, Any]:
        """The configuration, with the defaults that follow the data, and the data of a new run."""
        raise NotImplementedError

    def read_again(self, config: Any, explicit: set[str], facts: dict[str, Any], tokenizer: Tokenizer) -> Any:
        """The data of a run with these facts. Raises UserError where it is not what the run began with."""
        raise NotImplementedError

    def build(self, config: Any, data: Any, parent: Run | None = None) -> nn.Module:
        """A model, with the weights of `parent`. The seed is set."""
        raise NotImplementedError

    def batches(self, config: Any, data: Any, model: Any) -> Batches:
        """What the model is trained and validated on. Raises UserError for too little of it."""
        raise NotImplementedError

    def trained(self, config: Any, data: Any, model: Any, folder: Path | None) -> Any:
        """The module to train, ready for its first step: the model itself, or one around it. `folder`: the run, where
        one goes on."""
        return model

    def facts(self, config: Any, data: Any) -> dict[str, Any]:
        """What `config.json` says of the task, for whoever loads the run. The engine knows three: a run with `labels`
        writes no text, one with `needs_source` writes it only after a source, and `template` is how conversations are
        written down."""
        return {}

    def notes(self, config: Any, data: Any, parent: Run | None) -> list[str]:
        """What a new run is warned of."""
        return []

    def to_say_again(self, config: Any) -> set[str]:
        """The flags without which a run does not go on: what they name is used only where the command line says so."""
        return set()

    def introduce(self, session: Session) -> str:
        """What is said before the first step: the model, and what it is trained on."""
        raise NotImplementedError

    def keep(self, session: Session) -> None:
        """Store what the checkpoints leave out."""
        keep_frozen(session.model, session.folder, session.identity)

    def extra_metrics(self, session: Session) -> dict[str, float]:
        """What is measured at each evaluation beside the loss, by its name in `metrics.jsonl`."""
        return {}

    def finish(self, session: Session, progress: Progress) -> None:
        """From the trained model to the summary and the report."""
        raise NotImplementedError

    def has_reported(self, summary: dict[str, Any]) -> bool:
        """Whether `finish` had come to its end where it had written this summary."""
        return True

    def evaluate(self, config: Any, explicit: set[str]) -> dict[str, Any]:
        """What `--eval-only` says of the run in `--out`."""
        raise NotImplementedError
