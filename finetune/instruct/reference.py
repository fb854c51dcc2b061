"""A model in training beside itself as it was: what preferences and rewards hold it to."""

import copy

from engine.training.beside import Beside
from makemore.base import LanguageModel


class BesideReference(Beside):
    """`model` as it is now is the reference."""

    def __init__(self, model: LanguageModel):
        super().__init__(model, copy.deepcopy(model))

    @property
    def reference(self) -> LanguageModel:
        return self.other
