"""Tensors in safetensors files, written one tensor at a time: one file, or above `LIMIT` several with an index.

Several are laid out as the Hub does it: `model-00001-of-00003.safetensors` and so on, each tensor whole in one of them,
and `model.safetensors.index.json`, which says where each one is. Imports torch only where tensors are its own.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from data.errors import UserError
from data.json_files import Whole, check_schema, parse_json

LIMIT = 4 << 30  # bytes of tensors in one file; the Hub's tools cut at 5 GB
MAX_HEADER = 100_000_000  # bytes, of a safetensors file; the library's own limit
INDEX = {"metadata": {"total_size": Whole()}, "weight_map": dict}
_DTYPES = {  # as the library orders them within a file
    "uint64": "U64", "int64": "I64", "float64": "F64", "complex64": "C64", "float32": "F32", "uint32": "U32",
    "int32": "I32", "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
_ORDER = list(_DTYPES)
Part = bytes | memoryview


def files_of(
    name: str, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> Iterator[tuple[str, Iterable[Part]]]:
    """The files that hold `tensors`, torch's or arrays of NumPy, each with its content in parts: `name`.safetensors,
    or where they take more than `LIMIT` bytes several and, last, their index. `metadata` goes into each."""
    shards = _shards(tensors)
    if len(shards) == 1:
        yield f"{name}.safetensors", _parts(shards[0], metadata)
        return
    names = shard_names(name, len(shards))
    for file, shard in zip(names, shards, strict=True):
        yield file, _parts(shard, metadata)
    places = {tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    yield index_name(name), [json.dumps(index, indent=2).encode()]


def index_name(name: str) -> str:
    """The file that says where each tensor of several files is."""
    return f"{name}.safetensors.index.json"


def shard_names(name: str, number: int) -> list[str]:
    """The files that hold them."""
    return [f"{name}-{n:05d}-of-{number:05d}.safetensors" for n in range(1, number + 1)]


def _shards(tensors: dict[str, Any]) -> list[dict[str, Any]]:
    """The tensors in groups of at most `LIMIT` bytes, in their order; a larger one is alone."""
    shards: list[dict[str, Any]] = [{}]
    room = LIMIT
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = LIMIT
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _parts(tensors: dict[str, Any], metadata: dict[str, str] | None) -> Iterator[Part]:
    """A safetensors file as the library writes it: the length of its header, the header, and one tensor at a time."""
    dtypes = {n: getattr(t.dtype, "name", str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}
    names = sorted(tensors, key=lambda name: (_ORDER.index(dtypes[name]), name.encode()))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    written += b" " * (-len(written) % 8)
    yield len(written).to_bytes(8, "little") + written
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: Any) -> memoryview:
    """The bytes of a tensor or array, without a copy where it lies in the memory of the CPU, in order."""
    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    array = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


class Index:
    """The index of several files, `content` of `path`: which tensors each of its `files` holds.

    Raises UserError for one that is none, or that names other files than those of `name`."""

    def __init__(self, content: bytes, path: Path, name: str):
        said = parse_json(content, path, INDEX)
        self.path, self.total_size = path, said["metadata"]["total_size"]
        self.files: dict[str, set[str]] = {}
        for tensor, file in said["weight_map"].items():
            check_schema(file, str, str(path), f"weight_map.{tensor}")
            self.files.setdefault(file, set()).add(tensor)
        if foreign := sorted(set(self.files) - set(shard_names(name, len(self.files)))):
            raise UserError(f"{path} is damaged: it names {foreign[0]}, which is none of its {len(self.files)} files")

    def check(self, file: str, tensors: Iterable[str]) -> None:
        """Raise UserError unless `file` holds the tensors that it should."""
        if wrong := sorted(self.files[file] ^ set(tensors)):
            has = "lacks" if wrong[0] in self.files[file] else "also has"
            raise UserError(f"{self.path} is damaged, or of another save: {file} {has} {wrong[0]}")

    def check_size(self, size: int) -> None:
        """Raise UserError where the tensors of all files take another number of bytes."""
        if size != self.total_size:
            raise UserError(
                f"{self.path} is damaged, or of another save: it says {self.total_size:,} bytes of tensors, and its "
                f"files hold {size:,}"
            )


def load(content: bytes, path: Path, library: Any) -> dict[str, Any]:
    """The tensors of one file, by the `library` of safetensors for torch or for NumPy."""
    try:
        return library.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file ({error})") from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of one file, from its header."""
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
