"""A folder in the Hub's layout: `config.json` and `model.safetensors`, or its shards with
`model.safetensors.index.json`. Nothing is unpickled. Torch is imported when weights are read: settings need none."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = ("gpt2:", "hf:")
MAX_JSON = 64 << 20  # bytes


def folder_of(init: str) -> Path | None:
    """PATH of 'gpt2:PATH' and 'hf:PATH', None for anything else."""
    prefix = next((prefix for prefix in PREFIXES if init.startswith(prefix)), None)
    return Path(init.removeprefix(prefix)).expanduser() if prefix else None


def check_weights(found: "dict[str, Tensor]", wanted: dict[str, tuple[int, ...]], folder: Path, what: str) -> None:
    """Raise UserError unless there is every tensor of such a model in its shape, and no other."""
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"{folder} lacks {len(missing)} of {what}'s weights: {some(missing)}")
    if unexpected := sorted(set(found) - set(wanted)):
        raise UserError(f"{folder} has {len(unexpected)} weights that {what} has not: {some(unexpected)}")
    if wrong := [name for name, shape in wanted.items() if tuple(found[name].shape) != shape]:
        shape = tuple(found[wrong[0]].shape)
        raise UserError(f"{folder}: {wrong[0]} has the shape {shape}, config.json asks for {wanted[wrong[0]]}")


def moved_rows(table: "Tensor", rows: list[int]) -> "Tensor":
    """The rows of `table` (V, ...) in another order, (len(rows), ...): where a number is negative, the mean of all."""
    import torch

    index = torch.tensor(rows)
    mean = table.mean(0, keepdim=True)
    return torch.where((index < 0).view(-1, *[1] * (table.ndim - 1)), mean, table[index.clamp_min(0)])


def read_tensors(folder: Path) -> "dict[str, Tensor]":
    """All tensors of the folder's safetensors files, by their names there."""
    import safetensors
    import safetensors.torch

    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        places = read_config(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{index} is damaged: it has no weight_map")
        if foreign := sorted({name for name in places.values() if Path(name).name != name}):
            raise UserError(f"{index} names a file outside its folder: {foreign[0]}")
        files = [folder / name for name in sorted(set(places.values()))]
    else:
        pickled = " (pytorch_model.bin is a pickle: not read)" if (folder / "pytorch_model.bin").exists() else ""
        raise UserError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{pickled}")
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            found |= safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the folder."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is too large to be the JSON of a model")
        read = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; gpt2:PATH and hf:PATH name a folder in the Hub's layout"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} is not a JSON object")
    return read


def some(names: list[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
