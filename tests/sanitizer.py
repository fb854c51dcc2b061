"""What a GPU would not forgive and Triton's interpreter does: accesses out of bounds, and programs that race.

Inside `sanitize()`, every load and store of an interpreted kernel is checked against the tensors that the kernel was
given, and no program may touch an address that another one stores to. `order="reverse"` runs the programs backwards.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import triton.runtime.interpreter as interpreter


class SanitizerError(AssertionError):
    """A kernel did what would go wrong on a GPU."""


class _Access(NamedTuple):
    program: int
    addresses: np.ndarray


class _Launch:
    """What one kernel launch may touch, and what its programs touched."""

    def __init__(self, tensors: list):
        spans = sorted({_span(tensor) for tensor in tensors if tensor.numel()})
        self.starts = np.array([start for start, _ in spans], np.uint64)
        self.ends = np.maximum.accumulate(np.array([end for _, end in spans], np.uint64)) if spans else self.starts
        self.program = 0
        self.loads: list[_Access] = []
        self.stores: list[_Access] = []

    def check(self, pointers, mask) -> np.ndarray:
        """The addresses that are accessed; SanitizerError for one that belongs to no tensor."""
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        addresses = np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask.data, shape)].ravel()
        if not addresses.size:
            return addresses
        width = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        tensor = np.searchsorted(self.starts, addresses, "right").astype(np.int64) - 1
        outside = (tensor < 0) | (addresses + width > self.ends[np.maximum(tensor, 0)])
        if outside.any():
            raise SanitizerError(f"program {self.program} accesses {outside.sum()} element(s) out of bounds")
        return addresses

    def store(self, pointers, mask) -> None:
        addresses = self.check(pointers, mask)
        if np.unique(addresses).size != addresses.size:
            raise SanitizerError(f"program {self.program} stores to one address twice at once")
        self.stores.append(_Access(self.program, addresses))

    def load(self, pointers, mask) -> None:
        self.loads.append(_Access(self.program, np.unique(self.check(pointers, mask))))

    def refuse_races(self) -> None:
        """SanitizerError when two programs store to one address, or one loads what another stores."""
        if not self.stores:
            return
        stored = np.concatenate([access.addresses for access in self.stores])
        owner = np.concatenate([np.full(access.addresses.size, access.program) for access in self.stores])
        order = np.lexsort((owner, stored))
        stored, owner = stored[order], owner[order]
        same = stored[1:] == stored[:-1]
        if (same & (owner[1:] != owner[:-1])).any():
            raise SanitizerError("two programs store to one address")
        for access in self.loads:
            at = np.minimum(np.searchsorted(stored, access.addresses), stored.size - 1)
            if ((stored[at] == access.addresses) & (owner[at] != access.program)).any():
                raise SanitizerError(f"program {access.program} loads what another program stores")


def _span(tensor) -> tuple[int, int]:
    last = sum((size - 1) * abs(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


@contextlib.contextmanager
def sanitize(order: str = "forward") -> Iterator[list[int]]:
    """Check every interpreted kernel launched inside; gives a list that counts its programs, launch by launch."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    kept = builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx, executor.__call__
    load, store, set_grid_idx, call = kept
    launch: _Launch | None = None
    programs: list[int] = []

    def checked_load(self, pointers, mask, *rest):
        launch.load(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        launch.store(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def placed(self, x, y, z):
        nx, ny, nz = self.grid_dim
        if order == "reverse":
            x, y, z = nx - 1 - x, ny - 1 - y, nz - 1 - z
        launch.program = (x * ny + y) * nz + z
        programs[-1] += 1
        return set_grid_idx(self, x, y, z)

    def checked_call(self, *args, **kwargs):
        nonlocal launch
        launch = _Launch([value for value in (*args, *kwargs.values()) if hasattr(value, "data_ptr")])
        programs.append(0)
        try:
            result = call(self, *args, **kwargs)
        except interpreter.InterpreterError as error:
            raise error.__cause__ if isinstance(error.__cause__, SanitizerError) else error from None
        launch.refuse_races()
        return result

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    builder.set_grid_idx, executor.__call__ = placed, checked_call
    try:
        yield programs
    finally:
        builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx, executor.__call__ = kept
