"""The preference task (`--dpo`): the instruction task on pairs of answers, by direct preference optimization."""

from pathlib import Path

import numpy as np

from engine.run import checkpoint
from engine.run.weights import load_weights
from engine.task import Session
from finetune.instruct import preference
from finetune.instruct.material import InstructData
from finetune.instruct.options import InstructConfig
from finetune.instruct.preference import Preference
from finetune.instruct.task import Instructions
from makemore.base import LanguageModel


class Preferences(Instructions):
    """The reference, the model as it was, is kept in `base/`."""

    def trained(
        self, config: InstructConfig, data: InstructData, model: LanguageModel, folder: Path | None
    ) -> Preference:
        if folder is not None:
            load_weights(model, folder / "base")
        return Preference(model, config.tuning.dpo_beta)

    def keep(self, session: Session) -> None:
        checkpoint.save(session.folder / "base", {"model": session.model.state_dict()}, {}, session.identity)

    def characters(self, config: InstructConfig, data: InstructData) -> np.ndarray:
        return np.zeros_like(super().characters(config, data))  # a preference is no text

    def extra_metrics(self, session: Session) -> dict[str, float]:
        rows, pad = session.data.rows["val"], session.tokenizer.special.pad
        measured = preference.measure(session.model, rows, pad, session.device)
        return {f"val_{name}": value for name, value in measured.items()}
