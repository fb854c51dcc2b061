"""What encoding a text leaves: the ids and row offsets of both sides on disk, and its unknown characters."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.disk import reopened, sync_file
from data.tasks import Encoded
from data.token_file import TokenWriter

SIDES = ("train", "val")


class EncodedText:
    """Writes the ids of both sides into `folder`, and where the text `has_rows` their offsets, as they come.

    `state`: what `state()` of an earlier object was, whose files are gone on with; what is in them behind it is cut
    off. Raises ValueError or OSError where the files are not those."""

    def __init__(self, folder: Path, dtype: Any, has_rows: bool, state: dict[str, Any] | None = None):
        state = state or {"ids": dict.fromkeys(SIDES, 0), "rows": dict.fromkeys(SIDES, 0)}
        self.ids: dict[str, int] = dict(state["ids"])  # written, of each side
        self.rows: dict[str, int] = dict(state["rows"])
        # For each side: the characters outside the vocabulary with their counts, a hint where their Unicode form is
        # why, and the number of all characters.
        self.unknown: dict[str, dict[str, int]] = {side: dict(state.get("unknown", {}).get(side, {})) for side in SIDES}
        self.other_form: dict[str, str] = {"train": "", "val": ""} | state.get("other_form", {})
        self.characters: dict[str, int] = {"train": 0, "val": 0} | state.get("characters", {})
        self._writers = {side: TokenWriter(folder, side, np.dtype(dtype).itemsize, self.ids[side]) for side in SIDES}
        self._offsets = {side: _offsets_file(folder, side, self.rows[side]) for side in SIDES} if has_rows else {}

    def __enter__(self) -> "EncodedText":
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self._writers.values():
            writer.close()
        for file in self._offsets.values():
            file.close()

    def put(self, sides: dict[str, Encoded]) -> None:
        """Write what comes next."""
        for side, encoded in sides.items():
            self._writers[side].write(encoded.ids)
            if self._offsets:
                ends = self.ids[side] + np.cumsum(encoded.lengths)
                self._offsets[side].write(ends.astype(np.uint64).tobytes())
            self.ids[side] += len(encoded.ids)
            self.rows[side] += len(encoded.lengths)
            self.characters[side] += encoded.characters
            for character, count in encoded.unknown.items():
                self.unknown[side][character] = self.unknown[side].get(character, 0) + count
            self.other_form[side] = self.other_form[side] or encoded.other_form

    def state(self) -> dict[str, Any]:
        """All of this object as JSON. What was written is on the disk then."""
        for writer in self._writers.values():
            writer.sync()
        for file in self._offsets.values():
            sync_file(file)
        return {
            "ids": self.ids, "rows": self.rows, "unknown": self.unknown, "other_form": self.other_form,
            "characters": self.characters,
        }  # fmt: skip


def _offsets_file(folder: Path, side: str, rows: int) -> BinaryIO:
    path = folder / f"{side}.offsets.bin"
    if not rows:
        file = open(path, "wb")
        file.write(np.zeros(1, np.uint64).tobytes())
        return file
    return reopened(path, (rows + 1) * np.dtype(np.uint64).itemsize)
