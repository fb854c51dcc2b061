"""torch's settings for one token of a few rows, where choosing a kernel costs more than running it."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.Lock()
_onednn: Any = torch.backends.mkldnn  # `enabled` is a property of the module, which its types do not say
_settings: list[tuple[int, bool]] = []  # threads and oneDNN before the first, for each token being computed


@contextlib.contextmanager
def for_small_work(rows: int) -> Iterator[None]:
    """A context without oneDNN, which takes longer to choose its GELU or LSTM kernel than torch to compute a few rows;
    and for one row with one thread: weights that are read once from memory gain nothing by a second thread. Both are
    settings of the process, restored when no token is being computed any more."""
    with _lock:
        current = torch.get_num_threads(), _onednn.enabled
        _settings.append(_settings[0] if _settings else current)
        _onednn.enabled = False
        if rows == 1:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            threads, onednn = _settings.pop()
            if not _settings:
                _onednn.enabled = onednn
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
