"""Reading a long text in parallel segments, for a recurrent model whose state forgets.

A recurrent model reads one token after the other, and one row costs nearly as much as many rows. So the text is cut
into segments that are read as rows of a batch. Each segment begins with an estimate of its state, and is read again
from the final state of the previous segment, until the states do not change any more: to rounding, they are then those
of reading in order. A model that does not forget is read in order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SEGMENTS = 64
BLOCK = 128  # tokens after which states are compared
SHORTEST = 16 * BLOCK  # tokens of a segment: a state that lasts longer makes reading in order faster
PASSES = 3
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}

State = dict[str, Tensor]
Read = Callable[[Tensor, State | None], tuple[Tensor, State]]  # tokens (B, T), state -> features (B, T, C), state
Take = Callable[[Tensor, Tensor], None]  # index of each token in the text (B, T), their features (B, T, C)


def read_segments(read: Read, tokens: Tensor, state: State | None, take: Take) -> State:
    """Read `tokens` (T,) and call `take` with the features of every token; later features of a token replace earlier
    ones. Returns the state after all."""
    size = (len(tokens) - BLOCK - 1) // (SEGMENTS * BLOCK) * BLOCK
    done = 0
    if size >= SHORTEST:
        state, done = _side_by_side(read, tokens, state, take, size)
    return read_in_order(read, tokens, state, take, done, BLOCK * 8)


def read_in_order(read: Read, tokens: Tensor, state: State | None, take: Take, first: int, part: int) -> State:
    """The same for the tokens from `first` on, `part` tokens at a time."""
    for start in range(first, len(tokens), part):
        index = torch.arange(start, min(start + part, len(tokens)), device=tokens.device)[None]
        hidden, state = read(tokens[index], state)
        take(index, hidden)
    return state  # type: ignore[return-value]  # None only where there was none and no token is read


def _side_by_side(read: Read, tokens: Tensor, state: State | None, take: Take, size: int) -> tuple[State, int]:
    """Read segments of `size` tokens; returns the state after the last token that is read, and the number of tokens
    read."""
    block = torch.arange(BLOCK, device=tokens.device)
    hidden, state = read(tokens[None, :BLOCK], state)
    take(block[None], hidden)
    starts = BLOCK + size * torch.arange(SEGMENTS, device=tokens.device)
    initial = _with_row(read(tokens[(starts - BLOCK)[:, None] + block], None)[1], 0, state)
    block_states: list[State] = []  # after each block, of all segments
    rows = torch.arange(SEGMENTS, device=tokens.device)  # segments to be read
    for _ in range(PASSES):
        current, reading = _rows(initial, rows), rows
        for n in range(size // BLOCK):
            index = (starts[reading] + n * BLOCK)[:, None] + block
            hidden, current = read(tokens[index], current)
            take(index, hidden)
            if len(block_states) == n:
                block_states.append(current)
                continue
            changed = ~_equal(current, _rows(block_states[n], reading))
            for name, part in current.items():
                block_states[n][name][reading] = part
            current, reading = _rows(current, changed), reading[changed]
            if not len(reading):
                break
        corrected = _with_row({name: part.roll(1, 0) for name, part in block_states[-1].items()}, 0, state)
        rows = torch.nonzero(~_equal(initial, corrected))[:, 0]
        initial = corrected
        if not len(rows):
            return _rows(block_states[-1], slice(-1, None)), BLOCK + SEGMENTS * size
    first = int(rows[0])
    return _rows(initial, slice(first, first + 1)), int(starts[first])


def _rows(state: State, rows: Tensor | slice) -> State:
    return {name: part[rows] for name, part in state.items()}


def _with_row(state: State, row: int, other: State) -> State:
    """`state` with its row number `row` replaced by the only row of `other`."""
    state = {name: part.clone() for name, part in state.items()}
    for name, part in other.items():
        state[name][row] = part[0]
    return state


def _equal(a: State, b: State) -> Tensor:
    """A mask of the rows that are equal to rounding, (B,)."""
    equal = [
        ((part - b[name]).abs() <= ROUNDING.get(part.dtype, 0) * (1 + b[name].abs())).flatten(1).all(1)
        for name, part in a.items()
    ]
    return torch.stack(equal).all(0)
