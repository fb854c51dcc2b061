"""Folders of weights that are replaced whole, checked when read, and hold no pickle.

A checkpoint folder is safetensors and JSON files and, written last, `manifest.json` with each file's size and SHA-256.
A folder without its manifest is not complete. Replacing renames twice, so at every moment one complete folder exists
under one of three names, and `find` knows them.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from data.disk import remove, rename, replace_file, sync_folder, write_file
from data.errors import UserError
from data.json_files import Whole, check_schema, parse_json, read_json

T = TypeVar("T")
MANIFEST = "manifest.json"
BELONGS_TO = "belongs_to.json"  # what `engine.run.identity` says of the run
FACTS = {"step?": Whole(), "val_loss?": (float, None), "val_bits_per_char?": (float, None)}
MAX_HEADER = 100_000_000  # bytes, of a safetensors file; the library's own limit
READS = 5  # a reader tries again when a training run replaces the checkpoint under its eyes


def save(
    folder: Path, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], belongs_to: dict[str, Any] | None = None
) -> None:
    """Replace checkpoint `folder` by the named safetensors files and `facts` (JSON). `belongs_to` is the identity of
    the run."""
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    # Left over from a save that was cut off: `.new` is worth keeping only where it is all there is.
    settle(folder)
    new.mkdir()
    try:
        files = {f"{name}.safetensors": safetensors.torch.save(_contiguous(group)) for name, group in tensors.items()}
        files |= {"facts.json": json.dumps(facts, indent=1).encode(), BELONGS_TO: json.dumps(belongs_to).encode()}
        for name, content in files.items():
            write_file(new / name, content)
        manifest = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
        replace_file(new / MANIFEST, json.dumps(manifest, indent=1).encode())  # there only when whole
        sync_folder(new)
    except OSError:
        with contextlib.suppress(OSError):
            remove(new)  # a full disk: the old checkpoint stays, and gets its space back
        raise
    if folder.exists():
        rename(folder, old)
    rename(new, folder)
    sync_folder(folder.parent)
    with contextlib.suppress(OSError):
        remove(old)


def find(folder: Path) -> Path | None:
    """Where checkpoint `folder` is to be read: itself, else its complete `.new`, else its `.old`, else None."""
    if folder.is_dir():
        return folder
    for name in (folder.name + ".new", folder.name + ".old"):
        if (folder.with_name(name) / MANIFEST).is_file():
            return folder.with_name(name)
    return None


def settle(folder: Path) -> None:
    """Clear up after a save that was cut off, so that `folder` itself is the checkpoint again. UserError where it is a
    link: what it points to would be replaced."""
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a symbolic link, and a run writes into its own folder alone: put the folder itself there "
            "(the run directory as a whole may be a link)"
        )
    found = find(folder)
    if found not in (folder, None):
        rename(found, folder)
    for name in (folder.name + ".new", folder.name + ".old"):
        remove(folder.with_name(name))


def belongs_to(folder: Path) -> dict[str, Any] | None:
    """The identity of the run that a checkpoint belongs to; None where it does not say (format 1)."""
    return _steadily(folder, _belongs_to)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a checkpoint, from the file's header alone; none where there is no checkpoint."""
    return _steadily(folder, _shapes)


def load(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The named safetensors files and the facts of a checkpoint, every file checked against the manifest.

    Raises UserError naming the file that is missing, cut short, altered, or not this project's."""
    return _steadily(folder, lambda folder: _load(folder, names))


def _steadily(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` finds in checkpoint `folder`, asked again where a save comes in between."""
    for _ in range(READS):
        before = _manifest_bytes(folder)
        try:
            return read(folder)
        except UserError:
            if _manifest_bytes(folder) == before:
                raise  # the checkpoint itself is damaged
    return read(folder)


def _belongs_to(folder: Path) -> dict[str, Any] | None:
    if (found := find(folder)) is None:
        return None
    manifest = read_json(found / MANIFEST, dict)
    if BELONGS_TO not in manifest:
        return None
    return parse_json(_checked(found, BELONGS_TO, manifest), found / BELONGS_TO, (dict, None))


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    if (found := find(folder)) is None:
        return {}
    path = found / "model.safetensors"
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size) if size <= MAX_HEADER else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    tensors = parse_json(header, path, dict)
    tensors.pop("__metadata__", None)
    for name, about in tensors.items():
        check_schema(about, {"shape": [Whole()]}, str(path), name)
    return {name: tuple(about["shape"]) for name, about in tensors.items()}


def _load(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    found = find(folder)
    if found is None:
        raise UserError(f"no checkpoint in {folder}")
    manifest = read_json(found / MANIFEST, dict)
    facts = parse_json(_checked(found, "facts.json", manifest), found / "facts.json", FACTS)
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
    if expected is None:
        raise UserError(f"{folder / MANIFEST} does not list {name}: not a checkpoint of this project, or damaged")
    check_schema(expected, {"size": Whole(), "sha256": str}, str(folder / MANIFEST), name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) != expected["size"]:
        raise UserError(f"{path} is damaged: {len(content)} bytes instead of {expected['size']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in {folder / MANIFEST}")
    return content


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
