"""Checkpoints: folders of weights that are replaced atomically, checked when read, and hold no pickle.

A checkpoint folder has safetensors files (engine/run/tensor_files.py) and JSON and, written last, `manifest.json` with
each file's size and SHA-256. A folder without its manifest is not complete. Replacing one takes two renames, so at
every moment a complete folder exists under one of three names, which `find` tries. Writing holds one tensor a second
time, reading one file. Imports torch only where tensors are its own.
"""

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from data.disk import remove, rename, replace_file, sync_folder, write_parts
from data.errors import UserError
from data.json_files import Whole, check_schema, parse_json, read_json
from engine.run import tensor_files
from engine.run.tensor_files import Index, Part, files_of, index_name

T = TypeVar("T")
MANIFEST = "manifest.json"
BELONGS_TO = "belongs_to.json"  # the identity of the run, by engine/run/identity.py
FACTS = {"step?": Whole(), "val_loss?": (float, None), "val_bits_per_char?": (float, None), "weights?": str}
READS = 5  # attempts of a reader, while a training run replaces the checkpoint


def save(
    folder: Path, tensors: dict[str, dict[str, Any]], facts: dict[str, Any], belongs_to: dict[str, Any] | None = None
) -> None:
    """Replace checkpoint `folder` by the named groups of tensors or of arrays of NumPy, and `facts` (JSON).
    `belongs_to` is the identity of the run."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    settle(folder)  # after a save that was interrupted: `.new` is kept only where it is the only one
    new.mkdir()
    try:
        groups = chain.from_iterable(files_of(name, group) for name, group in tensors.items())
        notes = {"facts.json": json.dumps(facts, indent=1).encode(), BELONGS_TO: json.dumps(belongs_to).encode()}
        files = chain(groups, ((name, [content]) for name, content in notes.items()))
        manifest = {name: _write(new / name, parts) for name, parts in files}
        replace_file(new / MANIFEST, json.dumps(manifest, indent=1).encode())  # makes the folder complete
        sync_folder(new)
    except OSError:
        with contextlib.suppress(OSError):
            remove(new)  # the disk is full: the old checkpoint stays, and the space is freed
        raise
    if folder.exists():
        rename(folder, old)
    rename(new, folder)
    sync_folder(folder.parent)
    with contextlib.suppress(OSError):
        remove(old)


def find(folder: Path) -> Path | None:
    """The folder from which checkpoint `folder` is read: itself, else its complete `.new`, else its `.old`, else
    None."""
    if folder.is_dir():
        return folder
    for name in (folder.name + ".new", folder.name + ".old"):
        if (folder.with_name(name) / MANIFEST).is_file():
            return folder.with_name(name)
    return None


def settle(folder: Path) -> None:
    """Clean up after a save that was interrupted, so that `folder` itself is the checkpoint again. Raises UserError
    where it is a link, whose target would be replaced."""
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a symbolic link, and a run writes into its own folder alone: put the folder itself there "
            "(the run directory as a whole may be a link)"
        )
    current = find(folder)
    if current not in (folder, None):
        rename(current, folder)
    for name in (folder.name + ".new", folder.name + ".old"):
        remove(folder.with_name(name))


def belongs_to(folder: Path) -> dict[str, Any] | None:
    """The identity of the run that a checkpoint belongs to; None for format 1, which does not store it."""
    return _steadily(folder, _belongs_to)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a checkpoint, from the headers of its files; empty where there is no checkpoint."""
    return _steadily(folder, _shapes)


def load(
    folder: Path, names: tuple[str, ...], kind: Literal["torch", "numpy"] = "torch"
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The tensors of the named safetensors files, torch's or arrays of NumPy, and the facts of a checkpoint; every file
    is checked against the manifest.

    Raises UserError, with the file, for one that is missing, cut short, altered, or not of this project."""
    return _steadily(folder, lambda folder: _load(folder, names, kind))


def _steadily(folder: Path, read: Callable[[Path], T]) -> T:
    """The result of `read` on checkpoint `folder`, repeated where a save replaces it meanwhile."""
    for _ in range(READS):
        before = _manifest_bytes(folder)
        try:
            return read(folder)
        except UserError:
            if _manifest_bytes(folder) == before:
                raise  # the checkpoint itself is damaged
    return read(folder)


def _belongs_to(folder: Path) -> dict[str, Any] | None:
    if (source := find(folder)) is None:
        return None
    manifest = read_json(source / MANIFEST, dict)
    if BELONGS_TO not in manifest:
        return None
    return parse_json(_checked(source, BELONGS_TO, manifest), source / BELONGS_TO, (dict, None))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    if (source := find(folder)) is None:
        return {}
    manifest = read_json(source / MANIFEST, dict)
    if (index := _index(source, "model", manifest)) is None:
        return tensor_files.shapes(source / "model.safetensors")
    found: dict[str, tuple[int, ...]] = {}
    for file in index.files:
        part = tensor_files.shapes(source / file)
        index.check(file, part)
        found |= part
    return found


def _load(folder: Path, names: tuple[str, ...], kind: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    library = importlib.import_module(f"safetensors.{kind}")
    source = find(folder)
    if source is None:
        raise UserError(f"no checkpoint in {folder}")
    manifest = read_json(source / MANIFEST, dict)
    facts = parse_json(_checked(source, "facts.json", manifest), source / "facts.json", FACTS)
    return {name: _group(source, name, manifest, library) for name in names}, facts


def _group(source: Path, name: str, manifest: dict[str, Any], library: Any) -> dict[str, Any]:
    """The tensors of a group, of one file or of several, one after the other."""
    if (index := _index(source, name, manifest)) is None:
        return _tensors(source, f"{name}.safetensors", manifest, library)
    tensors: dict[str, Any] = {}
    for file in sorted(index.files):
        part = _tensors(source, file, manifest, library)
        index.check(file, part)
        tensors |= part
    index.check_size(sum(tensor.nbytes for tensor in tensors.values()))
    return tensors


def _tensors(source: Path, file: str, manifest: dict[str, Any], library: Any) -> dict[str, Any]:
    return tensor_files.load(_checked(source, file, manifest), source / file, library)


def _index(source: Path, name: str, manifest: dict[str, Any]) -> Index | None:
    """The index of a group of tensors; None where they are in one file."""
    file = index_name(name)
    if file not in manifest:
        return None
    if f"{name}.safetensors" in manifest:
        raise UserError(f"{source / MANIFEST} is damaged: it lists {name}.safetensors and {file}, of which one can be")
    return Index(_checked(source, file, manifest), source / file, name)


def _manifest_bytes(folder: Path) -> bytes | None:
    source = find(folder)
    try:
        return (source / MANIFEST).read_bytes() if source else None
    except OSError:
        return b""  # being replaced right now: unlike any manifest


def _checked(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    path, listed = folder / name, manifest.get(name)
    if listed is None:
        raise UserError(f"{folder / MANIFEST} does not list {name}: not a checkpoint of this project, or damaged")
    check_schema(listed, {"size": Whole(), "sha256": str}, str(folder / MANIFEST), name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) != listed["size"]:
        raise UserError(f"{path} is damaged: {len(content)} bytes instead of {listed['size']}")
    if hashlib.sha256(content).hexdigest() != listed["sha256"]:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in {folder / MANIFEST}")
    return content


def _write(path: Path, parts: Iterable[Part]) -> dict[str, Any]:
    """Write a file of these parts; its entry in the manifest."""
    sha, size = hashlib.sha256(), 0

    def noted() -> Iterator[Part]:
        nonlocal size
        for part in parts:
            sha.update(part)
            size += len(part)
            yield part

    write_parts(path, noted())
    return {"size": size, "sha256": sha.hexdigest()}
