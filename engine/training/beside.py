"""A model in training beside another one, which stays as it is: what it was, or a teacher."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from makemore.base import LanguageModel


class Beside(nn.Module):
    """`model` is trained and stored, by its own names of weights; `other` moves with it from device to device, and
    that is all."""

    other: LanguageModel

    def __init__(self, model: LanguageModel, other: LanguageModel):
        super().__init__()
        self.model = model
        other.requires_grad_(False).eval()
        self.__dict__["other"] = other  # no module of this one: neither trained, nor stored, nor in train mode

    def output_layers(self) -> list[nn.Module]:
        """As of a LanguageModel."""
        return self.model.output_layers()

    def to(self, *args: Any, **kwargs: Any) -> "Beside":
        self.other.to(*args, **kwargs)
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
