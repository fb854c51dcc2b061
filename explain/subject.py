"""What is looked into: a language model or a classifier of a run, and a text as the tokens that it reads."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, warn
from data.tokenizers import Tokenizer
from engine.run.folder import read_facts, task_of
from engine.run.load import load_run
from finetune.classify.labeller import load_labeller
from makemore.base import LanguageModel
from makemore.counts.mixture import Mixture
from nanogpt import pretrained

MOST_TOKENS = 1024  # some looks take as much memory as tokens squared


class Subject(NamedTuple):
    """A run on the CPU. `classifier`: what labels texts, around `model`; None for a language model, which has no
    `labels`."""

    name: str
    family: str
    model: LanguageModel
    classifier: Any
    labels: list[str]
    tokenizer: Tokenizer
    begins: bool  # whether a text begins with `<bos>`

    def read(self, text: str) -> Tensor:
        """The tokens (T,) of a text, as the model reads them. Warns of unknown characters; UserError for an empty text,
        and for one that is longer than the context."""
        ids = self.tokenizer.encode(text, "mask").astype(np.int64)
        if self.begins:
            ids = np.concatenate([[self.tokenizer.special.bos], ids])
        if not len(ids) or not text:
            raise UserError("--text is empty; give the text to look at")
        if self.model.context is not None and len(ids) > self.model.context:
            raise UserError(
                f"--text has {len(ids):,} tokens, and {self.name} reads {self.model.context} at a time: shorten it"
            )
        if len(ids) > MOST_TOKENS:
            raise UserError(
                f"--text has {len(ids):,} tokens, more than {MOST_TOKENS:,}, which no picture shows: shorten it"
            )
        if unknown := int((ids == self.tokenizer.special.unk).sum()):
            warn(f"{unknown:,} of {len(text):,} characters are not in the vocabulary: <unk>")
        return torch.from_numpy(ids)


def subject_of(run: str, which: str) -> Subject:
    """The run directory `run`, or gpt2:PATH or hf:PATH. UserError where there is no model to look into."""
    if is_classifier(run):
        labeller = load_labeller(run, which, "cpu")
        body, tokenizer = labeller.model.body, labeller.tokenizer
        return Subject(run, labeller.config.model, body, labeller.model, labeller.labels, tokenizer, True)
    loaded = load_run(run, which, "cpu")
    if loaded.config.net.is_counted:
        raise UserError(f"{run} counts, and has nothing inside but its counts")
    model = loaded.model.neural if isinstance(loaded.model, Mixture) else loaded.model
    return Subject(run, loaded.config.model, model, None, [], loaded.tokenizer, loaded.is_lines)


def is_classifier(run: str) -> bool:
    """Whether `run` labels texts. UserError where there is no run."""
    if pretrained.folder_of(run) is not None:
        return False
    facts = read_facts(Path(run))
    return "labels" in facts.get(task_of(facts) or "", {})
