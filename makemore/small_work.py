"""torch's settings for one token of a few rows, where looking up how to compute costs more than computing."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

P, T = ParamSpec("P"), TypeVar("T")

_lock = threading.Lock()
_settings: list[tuple[int, bool]] = []  # threads and oneDNN as they were, for each token on its way


@contextlib.contextmanager
def for_small_work(rows: int) -> Iterator[None]:
    """Without oneDNN, which takes longer to look up its GELU or LSTM than torch to compute that of a few rows; and one
    row on one thread: what is read once from memory gains nothing by a second, which others may keep busy. Both are
    settings of the process, put back when no token is on its way any more."""
    with _lock:
        here = torch.get_num_threads(), torch.backends.mkldnn.enabled
        _settings.append(_settings[0] if _settings else here)
        torch.backends.mkldnn.enabled = False
        if rows == 1:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            threads, onednn = _settings.pop()
            if not _settings:
                torch.backends.mkldnn.enabled = onednn
                torch.set_num_threads(threads)


def without_gradients(step: Callable[P, T]) -> Callable[P, T]:
    """`torch.no_grad` around `step`; nothing around it where gradients are off already, as they are in decoding."""

    @functools.wraps(step)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_grad_enabled():
            return step(*args, **kwargs)
        with torch.no_grad():
            return step(*args, **kwargs)

    return wrapper
