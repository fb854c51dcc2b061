"""A source text and the target text that it is to become."""

from typing import NamedTuple


class TextPair(NamedTuple):
    """`text` is the source. `where`: the place in its file, or the number of a generated one, for messages. `group`:
    what it is counted with in reports besides all; '' for none."""

    text: str
    target: str
    where: str = ""
    group: str = ""

    @property
    def label(self) -> str:
        """Pairs are split as one class."""
        return ""
