"""The files of a prepared text that have been checked, so that each is read in full once and not at every start.

    <store>/checked.json

It says of each file how it was when it was checked (data/file_state.py). A note that is missing, damaged or about
another text only means that all is checked again.
"""

import contextlib
import json
import os
import secrets
import time
from pathlib import Path

import numpy as np

from data.file_state import SETTLED, state_of
from data.token_file import check_file

NAME = "checked.json"


class Checks:
    """The checks of the files in `folder`. `about`: what else they depend on, as JSON; notes about anything else do not
    count."""

    def __init__(self, folder: Path, about: list[int]):
        self._path, self._about = folder / NAME, about
        self._known, self._has_new = self._read(), False

    def check(self, path: Path, dtype: np.dtype, limit: int | None, crc: int | None) -> None:
        """`token_file.check_file`, unless this very file has passed it."""
        state, now = state_of(path.stat()), time.time()
        if self._known.get(path.name) == state:
            return
        check_file(path, dtype, limit, crc)
        if now - state["mtime_ns"] / 1e9 > SETTLED:
            self._known[path.name], self._has_new = state, True

    def keep(self) -> None:
        """Note what was checked, where the folder can be written; readers see the old or the new note."""
        if not self._has_new:
            return
        new = self._path.with_name(f"{NAME}.{secrets.token_hex(4)}.new")
        try:
            new.write_text(json.dumps({"about": self._about, "files": self._known}, indent=1), "utf-8")
            os.replace(new, self._path)
        except OSError:  # a cache of another user, a full disk: the next start checks again
            with contextlib.suppress(OSError):
                new.unlink()

    def _read(self) -> dict[str, dict[str, int]]:
        try:
            note = json.loads(self._path.read_text("utf-8"))
            if note["about"] == self._about and isinstance(note["files"], dict):
                return note["files"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {}
