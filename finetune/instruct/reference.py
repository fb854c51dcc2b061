"""A model in training beside itself as it was: what preferences and rewards hold it to."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from makemore.base import LanguageModel


class BesideReference(nn.Module):
    """`model` as it is now is the reference; its weights, by its own names, are what is trained and stored."""

    reference: LanguageModel

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        reference = copy.deepcopy(model).requires_grad_(False).eval()
        self.__dict__["reference"] = reference  # no module of this one: neither trained, nor stored, nor in train mode

    def output_layers(self) -> list[nn.Module]:
        """As of a LanguageModel."""
        return self.model.output_layers()

    def to(self, *args: Any, **kwargs: Any) -> "BesideReference":
        self.reference.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        yield "", self  # FSDP looks for what it has wrapped
        yield from self.model.named_modules(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.load_state_dict(*args, **kwargs)
