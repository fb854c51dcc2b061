"""How far the preparation of a large text has come, so that one that was killed goes on instead of beginning again.

    <part>/journal/  journal.json  hashes-0.npy  hashes-1.npy

`journal.json` has the results of the passes that are complete, as JSON, and how much of the last one is written; it is
replaced whole, after what it speaks of is on the disk. A journal that is damaged, or of another version, is discarded
with all that was written.
"""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data.disk import replace_file

VERSION = 2  # rises with every change of what is noted, or of how a text is grouped
LARGE = 1 << 28  # bytes of text: smaller ones have no journal
EVERY = 1 << 28  # characters that are encoded between two notes


class Journal:
    """The journal of the store that is being built in `part`; without `is_kept` nothing is on the disk.

    `noted` is what was noted so far, by name."""

    def __init__(self, part: Path, is_kept: bool):
        self._folder, self.is_kept = part / "journal", is_kept
        self.noted: dict[str, Any] = self._read() if is_kept else {}
        if not self.noted:
            clear(part)
        if is_kept:
            self._folder.mkdir(exist_ok=True)

    def note(self, **results: Any) -> None:
        """Note `results`, which are JSON, beside what was noted before."""
        self.noted |= results
        if self.is_kept:
            noted = json.dumps(self.noted)
            content = {"version": VERSION, "crc32": zlib.crc32(noted.encode()), "noted": noted}
            replace_file(self._folder / "journal.json", json.dumps(content).encode())

    def note_arrays(self, name: str, arrays: list[np.ndarray]) -> None:
        """Note large arrays, in files of their own."""
        if self.is_kept:
            for n, array in enumerate(arrays):
                np.save(self._folder / f"{name}-{n}.npy", array, allow_pickle=False)
            self.note(**{name: [zlib.crc32(array.tobytes()) for array in arrays]})

    def arrays(self, name: str) -> list[np.ndarray] | None:
        """The arrays that were noted; None where there are none, or others."""
        found = []
        for n, crc in enumerate(self.noted.get(name, ())):
            try:
                array = np.load(self._folder / f"{name}-{n}.npy", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                return None
            if zlib.crc32(array.tobytes()) != crc:
                return None
            found.append(array)
        return found or None

    def close(self) -> None:
        """Remove the journal: its store is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self._folder / "journal.json").read_text("utf-8"))
            if content["version"] == VERSION and content["crc32"] == zlib.crc32(content["noted"].encode()):
                return dict(json.loads(content["noted"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}


def clear(part: Path) -> None:
    """Remove all that is in the folder `part`."""
    for path in part.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
