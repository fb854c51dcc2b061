"""Checkpoints: folders of weights that are replaced atomically, checked when read, and hold no pickle.

A checkpoint folder has safetensors and JSON files and, written last, `manifest.json` with each file's size and SHA-256.
A folder without its manifest is not complete. Replacing one takes two renames, so at every moment a complete folder
exists under one of three names, which `find` tries. Imports torch only where tensors are its own.
"""

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import safetensors

from data.disk import remove, rename, replace_file, sync_folder, write_file
from data.errors import UserError
from data.json_files import Whole, check_schema, parse_json, read_json

T = TypeVar("T")
MANIFEST = "manifest.json"
BELONGS_TO = "belongs_to.json"  # the identity of the run, by engine/run/identity.py
FACTS = {"step?": Whole(), "val_loss?": (float, None), "val_bits_per_char?": (float, None)}
MAX_HEADER = 100_000_000  # bytes, of a safetensors file; the library's own limit
READS = 5  # attempts of a reader, while a training run replaces the checkpoint


def save(
    folder: Path, tensors: dict[str, dict[str, Any]], facts: dict[str, Any], belongs_to: dict[str, Any] | None = None
) -> None:
    """Replace checkpoint `folder` by the named safetensors files, of tensors or of arrays of NumPy, and `facts` (JSON).
    `belongs_to` is the identity of the run."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    settle(folder)  # after a save that was interrupted: `.new` is kept only where it is the only one
    new.mkdir()
    try:
        files = {f"{name}.safetensors": _to_bytes(group) for name, group in tensors.items()}
        files |= {"facts.json": json.dumps(facts, indent=1).encode(), BELONGS_TO: json.dumps(belongs_to).encode()}
        for name, content in files.items():
            write_file(new / name, content)
        manifest = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
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
    """The shape of every weight of a checkpoint, from the header of its file; empty where there is no checkpoint."""
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
    path = source / "model.safetensors"
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= MAX_HEADER else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    tensors = parse_json(header, path, dict)
    tensors.pop("__metadata__", None)
    for name, info in tensors.items():
        check_schema(info, {"shape": [Whole()]}, str(path), name)
    return {name: tuple(info["shape"]) for name, info in tensors.items()}


def _load(folder: Path, names: tuple[str, ...], kind: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    library = importlib.import_module(f"safetensors.{kind}")
    source = find(folder)
    if source is None:
        raise UserError(f"no checkpoint in {folder}")
    manifest = read_json(source / MANIFEST, dict)
    facts = parse_json(_checked(source, "facts.json", manifest), source / "facts.json", FACTS)
    tensors = {}
    for name in names:
        content = _checked(source, f"{name}.safetensors", manifest)
        try:
            tensors[name] = library.load(content)
        except safetensors.SafetensorError as error:
            raise UserError(f"{source / name}.safetensors is not a safetensors file ({error})") from error
    return tensors, facts


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


def _to_bytes(group: dict[str, Any]) -> bytes:
    """A safetensors file of these tensors, or of these arrays."""
    if all(isinstance(array, np.ndarray) for array in group.values()):
        import safetensors.numpy

        return safetensors.numpy.save({name: np.array(array, order="C") for name, array in group.items()})
    import safetensors.torch

    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()})
