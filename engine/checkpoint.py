"""Folders of weights that are replaced whole, checked when read, and hold no pickle.

A checkpoint folder is safetensors and JSON files and, written last, `manifest.json` with each file's size and SHA-256.
A folder without its manifest is not complete. Replacing renames twice, so at every moment one complete folder exists
under one of three names, and `find` knows them.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from data.errors import UserError
from engine.folder import write_file

MANIFEST = "manifest.json"
READS = 5  # a reader tries again when a training run replaces the checkpoint under its eyes


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
    """Replace checkpoint `folder` by the named safetensors files and `facts` (JSON)."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    # Left over from a save that was cut off: `.new` is worth keeping only where it is all there is.
    settle(folder)
    new.mkdir()
    try:
        files = {f"{name}.safetensors": safetensors.torch.save(_contiguous(group)) for name, group in tensors.items()}
        files["facts.json"] = json.dumps(facts, indent=1).encode()
        for name, content in files.items():
            write_file(new / name, content)
        manifest = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
        write_file(new / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync_folder(new)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)  # a full disk: the old checkpoint stays, and gets its space back
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> Path | None:
    """Where checkpoint `folder` is to be read: itself, else its complete `.new`, else its `.old`, else None."""
    if folder.is_dir():
        return folder
    for name in (folder.name + ".new", folder.name + ".old"):
        if (folder.with_name(name) / MANIFEST).is_file():
            return folder.with_name(name)
    return None


def settle(folder: Path) -> None:
    """Clear up after a save that was cut off, so that `folder` itself is the checkpoint again."""
    found = find(folder)
    if found not in (folder, None):
        os.rename(found, folder)
    for name in (folder.name + ".new", folder.name + ".old"):
        shutil.rmtree(folder.with_name(name), ignore_errors=True)


def load(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The named safetensors files and the facts of a checkpoint, every file checked against the manifest.

    Raises UserError naming the file that is missing, cut short, altered, or not this project's."""
    for _ in range(READS):
        before = _manifest_bytes(folder)
        try:
            return _load(folder, names)
        except UserError:
            if _manifest_bytes(folder) == before:
                raise  # not a save that came in between: the checkpoint itself is damaged
    return _load(folder, names)


def _load(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    found = find(folder)
    if found is None:
        raise UserError(f"no checkpoint in {folder}")
    manifest = _read_json(found / MANIFEST)
    facts = json.loads(_checked(found, "facts.json", manifest))
    tensors = {}
    for name in names:
        content = _checked(found, f"{name}.safetensors", manifest)
        try:
            tensors[name] = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise UserError(f"{found / name}.safetensors is not a safetensors file ({error})") from error
    return tensors, facts


def _manifest_bytes(folder: Path) -> bytes | None:
    found = find(folder)
    try:
        return (found / MANIFEST).read_bytes() if found else None
    except OSError:
        return b""  # being replaced right now: unlike any manifest


def _checked(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    path, expected = folder / name, manifest.get(name)
    if not isinstance(expected, dict):
        raise UserError(f"{folder / MANIFEST} does not list {name}: not a checkpoint of this project, or damaged")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) != expected.get("size"):
        raise UserError(f"{path} is damaged: {len(content)} bytes instead of {expected.get('size')}")
    if hashlib.sha256(content).hexdigest() != expected.get("sha256"):
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; not a checkpoint of this project, or damaged"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} is damaged: not a JSON object")
    return read


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
