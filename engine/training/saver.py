"""Writing the checkpoints of a run: at once, or on a thread while the training goes on."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.run import checkpoint

Groups = dict[str, dict[str, Tensor]]


class Saver:
    """Writes into the run `folder`, which has the identity `belongs_to`; with `in_background`, and while the saver is
    entered, on a thread.

    Then what is to be written is copied to the memory of the CPU when it is given, so that the training may change it.
    One save is in work at a time: the next one waits for it. What goes wrong on the thread is raised by `check` or
    `wait`, or by the next save. Leaving waits, too: no error of this program tears a save. One of the process, as a
    kill, leaves the checkpoint before, as it does without a thread."""

    def __init__(self, folder: Path, belongs_to: dict[str, Any] | None, in_background: bool):
        self.folder, self.belongs_to, self.in_background = folder, belongs_to, in_background
        self._entered = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._todo: list[Callable[[], None]] = []
        self._copies: dict[tuple[str, str], Tensor] = {}  # memory that each save uses again
        self._copied: set[tuple[str, str]] = set()  # of these, what the save in work has

    def __enter__(self) -> "Saver":
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._entered = False
        self._join()
        if kind is None:  # else that is told, which went wrong first
            self.check()

    @contextlib.contextmanager
    def one_save(self) -> Iterator[None]:
        """A context whose calls of `save` and `then` are one save, done in their order."""
        self.wait()
        yield
        if self._todo:
            self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
            self._thread.start()

    def save(self, name: str, tensors: Groups, facts: dict[str, Any]) -> None:
        """Replace the checkpoint `name` by these groups of tensors, and facts."""
        if self._is_apart:
            tensors = self._copy(tensors)
        self.then(lambda: checkpoint.save(self.folder / name, tensors, facts, self.belongs_to))

    def then(self, act: Callable[[], None]) -> None:
        """Do this after what was to be done so far."""
        if self._is_apart:
            self._todo.append(act)
        else:
            act()

    def wait(self) -> None:
        """Wait until all is saved. Raises what went wrong."""
        self._join()
        self.check()

    def check(self) -> None:
        """Raise what has gone wrong."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    @property
    def _is_apart(self) -> bool:
        return self.in_background and self._entered

    def _work(self) -> None:
        try:
            for act in self._todo:
                act()
        except BaseException as error:  # of whatever kind: `check` raises it where it is met
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._todo.clear()
        self._copied.clear()

    def _copy(self, tensors: Groups) -> Groups:
        """The tensors as they are now. What two checkpoints of one save have in common, the weights, is copied once."""
        copies: Groups = {}
        for group, named in tensors.items():
            copies[group] = {name: self._copy_one(group, name, tensor.detach()) for name, tensor in named.items()}
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copies

    def _copy_one(self, group: str, name: str, tensor: Tensor) -> Tensor:
        copy = self._copies.get((group, name))
        if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[group, name] = copy
        if (group, name) not in self._copied:
            copy.copy_(tensor, non_blocking=tensor.is_cuda)
            self._copied.add((group, name))
        return copy
