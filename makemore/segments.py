"""Reading a long text in many places at once, for a model whose state forgets.

A recurrent model reads one token after the other, and a row alone costs nearly as much as many rows together. So the
text is cut into segments that are read side by side. Each begins with a guess of its state, and is read again from the
state in which the segment before it really ended, until that makes no difference any more: to rounding, the states are
then those of reading in order. A model that does not forget is read in order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SEGMENTS = 64
BLOCK = 128  # tokens after which states are compared
SHORTEST = 16 * BLOCK  # segment: a state that lasts longer had better be carried on
PASSES = 3
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}

State = dict[str, Tensor]
Read = Callable[[Tensor, State | None], tuple[Tensor, State]]  # tokens (B, T), state -> features (B, T, C), state
Take = Callable[[Tensor, Tensor], None]  # index of each token in the text (B, T), their features (B, T, C)


def read_segments(read: Read, tokens: Tensor, state: State | None, take: Take) -> State:
    """Read `tokens` (T,) and give `take` the features of every token; what it is given later for the same token
    replaces what it was given before. The state after all."""
    size = (len(tokens) - BLOCK - 1) // (SEGMENTS * BLOCK) * BLOCK
    done = 0
    if size >= SHORTEST:
        state, done = _side_by_side(read, tokens, state, take, size)
    return read_in_order(read, tokens, state, take, done, BLOCK * 8)


def read_in_order(read: Read, tokens: Tensor, state: State | None, take: Take, first: int, part: int) -> State:
    """The same of the tokens from `first` on, one part after the other."""
    for start in range(first, len(tokens), part):
        index = torch.arange(start, min(start + part, len(tokens)), device=tokens.device)[None]
        hidden, state = read(tokens[index], state)
        take(index, hidden)
    return state


def _side_by_side(read: Read, tokens: Tensor, state: State | None, take: Take, size: int) -> tuple[State, int]:
    """Read segments of that size; how far they are read, and the state there."""
    block = torch.arange(BLOCK, device=tokens.device)
    hidden, state = read(tokens[None, :BLOCK], state)
    take(block[None], hidden)
    starts = BLOCK + size * torch.arange(SEGMENTS, device=tokens.device)
    begins = _with_row(read(tokens[(starts - BLOCK)[:, None] + block], None)[1], 0, state)
    ends: list[State] = []  # of all segments after each block
    rows = torch.arange(SEGMENTS, device=tokens.device)  # segments to be read
    for _ in range(PASSES):
        now, reading = _rows(begins, rows), rows
        for n in range(size // BLOCK):
            index = (starts[reading] + n * BLOCK)[:, None] + block
            hidden, now = read(tokens[index], now)
            take(index, hidden)
            if len(ends) == n:
                ends.append(now)
                continue
            differs = ~_equal(now, _rows(ends[n], reading))
            for name, part in now.items():
                ends[n][name][reading] = part
            now, reading = _rows(now, differs), reading[differs]
            if not len(reading):
                break
        after = _with_row({name: part.roll(1, 0) for name, part in ends[-1].items()}, 0, state)
        rows = torch.nonzero(~_equal(begins, after))[:, 0]
        begins = after
        if not len(rows):
            return _rows(ends[-1], slice(-1, None)), BLOCK + SEGMENTS * size
    first = int(rows[0])
    return _rows(begins, slice(first, first + 1)), int(starts[first])


def _rows(state: State, rows: Tensor | slice) -> State:
    return {name: part[rows] for name, part in state.items()}


def _with_row(state: State, row: int, other: State) -> State:
    """`state` with that row of it from `other`, which has one."""
    state = {name: part.clone() for name, part in state.items()}
    for name, part in other.items():
        state[name][row] = part[0]
    return state


def _equal(a: State, b: State) -> Tensor:
    """Which rows are equal but for rounding, (B,)."""
    equal = [
        ((part - b[name]).abs() <= ROUNDING.get(part.dtype, 0) * (1 + b[name].abs())).flatten(1).all(1)
        for name, part in a.items()
    ]
    return torch.stack(equal).all(0)
