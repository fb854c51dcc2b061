"""Files of the cache that are made of a download, once: written whole, and made again where they are damaged."""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data import sources
from data.disk import patiently


def derived(
    name: str, digest: str, parts: Sequence[str], pieces: Iterable[tuple[str, bytes]], suffix: str = ".txt"
) -> dict[str, Path]:
    """Files of the cache with the `pieces` of each of the `parts`, made where they are missing or damaged. `digest`: of
    what they are made from; the pieces of one part follow each other."""
    folder = sources.cache_subfolder("downloads")
    paths = {part: folder / f"{name}.{part}.{digest[:8]}{suffix}" for part in parts}
    record = folder / f"{name}.{digest[:8]}.json"
    try:
        known = json.loads(record.read_text("utf-8"))
        if known == {part: sources.noted_digest_of(path) for part, path in paths.items()}:
            return paths
    except (OSError, ValueError):
        pass
    unfinished = {part: path.with_name(f"{path.name}.{os.getpid()}.part") for part, path in paths.items()}
    try:
        for part, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
            with open(unfinished[part], "wb") as file:
                file.writelines(content for _, content in group)
        made = {part: sources.digest_of(path) for part, path in unfinished.items()}
        for part, path in unfinished.items():
            patiently(functools.partial(os.replace, path, paths[part]))
        record.write_text(json.dumps(made), "utf-8")
    finally:
        for path in unfinished.values():
            path.unlink(missing_ok=True)
    return paths
