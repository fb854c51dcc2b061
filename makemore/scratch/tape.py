"""Reverse-mode automatic differentiation of arrays: every operation notes what it came from and how a derivative goes
back through it; `backward` goes through these notes from the end.

    x = Tensor([1.0, 2.0])
    (x * x).sum().backward()  # x.grad is [2, 4]
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from makemore.scratch.functions import Array

Operand = Any  # a Tensor, an array or a number


class Tensor:
    """An array that remembers where it came from. After `backward` of a later one `grad` is that one's derivative by
    it."""

    __array_priority__ = 1  # array + Tensor is ours, not NumPy's element by element

    def __init__(self, value: Any, parents: Iterable["Tensor"] = (), back: Callable[[Array], Any] = lambda dy: ()):
        """`back` gives the derivatives by the parents, in their order, from that by this one."""
        self.value = np.asarray(value)
        self.parents, self.back = tuple(parents), back
        self.shape = self.value.shape
        self.grad: Array | None = None

    def backward(self) -> None:
        """Fill `grad` of all that this number, a scalar, came from."""
        self.grad = np.ones_like(self.value)
        for tensor in reversed(_in_order(self)):
            assert tensor.grad is not None  # all that use it come after it
            for parent, part in zip(tensor.parents, tensor.back(tensor.grad), strict=True):
                part = _summed_to(part, parent.shape)
                parent.grad = part if parent.grad is None else parent.grad + part

    def __add__(self, other: Operand) -> "Tensor":
        other = _tensor(other, self)
        return Tensor(self.value + other.value, (self, other), lambda dy: (dy, dy))

    def __mul__(self, other: Operand) -> "Tensor":
        other = _tensor(other, self)
        return Tensor(self.value * other.value, (self, other), lambda dy: (dy * other.value, dy * self.value))

    def __pow__(self, power: float) -> "Tensor":
        return Tensor(self.value**power, (self,), lambda dy: (dy * power * self.value ** (power - 1),))

    def __matmul__(self, other: Operand) -> "Tensor":
        a, b = self.value, _tensor(other, self)
        return Tensor(a @ b.value, (self, b), lambda dy: (dy @ b.value.swapaxes(-1, -2), a.swapaxes(-1, -2) @ dy))

    def __neg__(self) -> "Tensor":
        return self * -1

    def __sub__(self, other: Operand) -> "Tensor":
        return self + -_tensor(other, self)

    def __rsub__(self, other: Operand) -> "Tensor":
        return -self + other

    def __truediv__(self, other: Operand) -> "Tensor":
        return self * _tensor(other, self) ** -1.0

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, index: Any) -> "Tensor":
        def back(dy: Array) -> tuple[Array]:
            whole = np.zeros_like(self.value)
            if has_numbers:
                np.add.at(whole, index, dy)  # what is taken twice gets both
            else:
                whole[index] = dy
            return (whole,)

        parts = index if isinstance(index, tuple) else (index,)
        has_numbers = any(isinstance(part, np.ndarray) and part.dtype != bool for part in parts)
        return Tensor(self.value[index], (self,), back)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        def back(dy: Array) -> tuple[Array]:
            dy = dy if axis is None or keepdims else np.expand_dims(dy, axis)
            return (np.broadcast_to(dy, self.shape),)

        return Tensor(self.value.sum(axis, keepdims=keepdims), (self,), back)

    def mean(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        total = self.sum(axis, keepdims)
        return total * (max(1, total.value.size) / max(1, self.value.size))

    def exp(self) -> "Tensor":
        y = np.exp(self.value)
        return Tensor(y, (self,), lambda dy: (dy * y,))

    def log(self) -> "Tensor":
        return Tensor(np.log(self.value), (self,), lambda dy: (dy / self.value,))

    def tanh(self) -> "Tensor":
        y = np.tanh(self.value)
        return Tensor(y, (self,), lambda dy: (dy * (1 - y * y),))

    def sigmoid(self) -> "Tensor":
        return (self * 0.5).tanh() * 0.5 + 0.5

    def reshape(self, *shape: int) -> "Tensor":
        return Tensor(self.value.reshape(shape), (self,), lambda dy: (dy.reshape(self.shape),))

    def swapaxes(self, a: int, b: int) -> "Tensor":
        return Tensor(self.value.swapaxes(a, b), (self,), lambda dy: (dy.swapaxes(a, b),))


def concat(tensors: list[Tensor], axis: int = -1) -> Tensor:
    """Arrays one after the other along an axis."""
    ends = np.cumsum([t.shape[axis] for t in tensors])[:-1]
    return Tensor(np.concatenate([t.value for t in tensors], axis), tensors, lambda dy: np.split(dy, ends, axis))


def where(condition: Array, a: Tensor, b: Operand) -> Tensor:
    """a where the condition holds, else b."""
    b = _tensor(b, a)
    back = lambda dy: (np.where(condition, dy, 0), np.where(condition, 0, dy))  # noqa: E731
    return Tensor(np.where(condition, a.value, b.value), (a, b), back)


def _tensor(x: Operand, like: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x, like.value.dtype))


def _in_order(last: Tensor) -> list[Tensor]:
    """All that `last` came from, each after what it came from itself (topological order), without recursion: a text of
    a thousand tokens is deeper than Python's stack."""
    order, seen, stack = [], set(), [(last, False)]
    while stack:
        tensor, is_done = stack.pop()
        if is_done:
            order.append(tensor)
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            stack.append((tensor, True))
            stack.extend((parent, False) for parent in tensor.parents)
    return order


def _summed_to(part: Array, shape: tuple[int, ...]) -> Array:
    """A derivative summed over what broadcasting repeated."""
    part = part.sum(tuple(range(part.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1 and part.shape[i] != 1)
    return part.sum(repeated, keepdims=True) if repeated else part
