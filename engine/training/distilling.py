"""Distillation: a model learns from another one's probabilities beside the text itself.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015: of each target the teacher says how
likely every token was, which is more than which one came.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batches import IGNORE
from data.disk import replace_file
from data.errors import UserError
from data.json_files import read_json
from data.tokenizers import Tokenizer
from engine.config.checks import reads_series
from engine.config.sections import Config
from engine.run.load import load_writer
from engine.run.run import Run
from engine.training.beside import Beside
from makemore.base import LanguageModel, Output, State
from makemore.counts.mixture import Mixture
from nanogpt.pretrained import folder_of

KEPT = "teacher.json"  # in the run: the hash of the teacher's weights
PREFIX = "teacher."  # of its part of a state


class Distilled(Beside):
    """`model`, whose loss in training is (1 - weight) times that of the targets and `weight` times the cross-entropy
    with the probabilities of the teacher, `other`, both at `temperature`, times its square, so that gradients keep
    their size. In evaluation it is `model`."""

    def __init__(self, model: LanguageModel, teacher: LanguageModel, weight: float, temperature: float):
        super().__init__(model, teacher)
        self.weight, self.temperature = weight, temperature

    def forward(
        self, tokens: Tensor, targets: Tensor, state: State | None = None, *, want_logits: bool = True, **options: Any
    ) -> Output:
        """As of a LanguageModel; the state holds the teacher's, too."""
        own = None if state is None else {n: part for n, part in state.items() if not n.startswith(PREFIX)}
        if not self.training:
            return self.model(tokens, targets, own, want_logits=want_logits, **options)
        out = self.model(tokens, targets, own, want_logits=True, **options)
        known = {n[len(PREFIX) :]: part for n, part in (state or {}).items() if n.startswith(PREFIX)}
        with torch.no_grad():
            said = self.other(tokens, None, known or None)
        valid = targets != IGNORE
        ours, theirs = ((each.logits[valid].float() / self.temperature).log_softmax(-1) for each in (out, said))
        soft = -(theirs.exp() * ours.clamp_min(torch.finfo(torch.float32).min)).sum(-1)  # (N,)
        if (weight := options.get("weight")) is not None:
            soft = soft * weight[valid]
        loss = (1 - self.weight) * out.nll_sum + self.weight * self.temperature**2 * soft.sum()
        states = out.state | {PREFIX + name: part for name, part in said.state.items()}
        return out._replace(logits=None, nll_sum=loss, state=states)

    def start(self, prefix: Tensor | None, position: Tensor | None) -> State | None:
        """As of a LanguageModel."""
        return self.model.start(prefix, position)


def plain(model: LanguageModel | Distilled) -> LanguageModel:
    """The model that is trained, without its teacher."""
    return model.model if isinstance(model, Distilled) else model


def load_teacher(config: Config) -> Run:
    """The run of --teacher, on the CPU. Raises UserError for one that is no neural model, or reads too little."""
    path = config.run.teacher
    assert path is not None  # who asks has looked
    if config.run.resume and folder_of(path) is None and not Path(path).is_dir():
        raise UserError(f"the teacher of {config.run.out} is not in {path}; say with --teacher where it is now")
    run = load_writer(path, device="cpu", of_series=reads_series(config))
    model = run.model.neural if isinstance(run.model, Mixture) else run.model  # counts are of another text
    if run.config.net.is_counted or getattr(run.config.net, "count_inputs", False):
        raise UserError(f"--teacher {path} counts; a teacher is a neural model")
    run.model = model
    return run


def distilled(config: Config, model: LanguageModel, teacher: Run, tokenizer: Tokenizer) -> Distilled:
    """`model` beside its teacher. Raises UserError where they read other texts."""
    reads, needs = teacher.model.context, config.net.context
    if teacher.tokenizer.to_json() != tokenizer.to_json():
        raise UserError(f"the vocabulary of --teacher {config.run.teacher} is not that of this run")
    if reads is not None and (needs is None or needs > reads):
        raise UserError(f"--teacher {config.run.teacher} reads {reads} tokens at a time: --context {reads} or less")
    return Distilled(model, teacher.model, config.run.teacher_weight, config.run.teacher_temperature)


def keep_hash(teacher: LanguageModel, folder: Path) -> None:
    """Write down in the run `folder` which weights teach."""
    replace_file(folder / KEPT, f'{{"weights": "{_hash(teacher)}"}}\n'.encode())


def check_hash(teacher: LanguageModel, folder: Path, config: Config) -> None:
    """Raise UserError where the weights that teach are not those with which the run began."""
    if read_json(folder / KEPT, dict).get("weights") != _hash(teacher):
        raise UserError(
            f"the teacher {config.run.teacher} has other weights than when {folder} began: its best/ has changed"
        )


def _hash(model: LanguageModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
