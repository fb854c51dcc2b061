"""Patches for Triton's interpreter: bfloat16 made right, and fewer patches of its own. Used if TRITON_INTERPRET=1.

NumPy has no bfloat16, so the interpreter holds its bits as uint16. In dots and arithmetic it then computes with those
bits as integers, and a cast to bfloat16 truncates. Here these go through float32, rounded to nearest even.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits (uint16), to nearest even; a NaN stays a quiet NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), ((bits >> 16) | 0x40).astype(np.uint16), rounded).reshape(values.shape)


def repair() -> None:
    """Replace the interpreter's casts, dots and arithmetic by ones that know bfloat16. Does nothing the second time."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    if getattr(builder, "knows_bfloat16", False):
        return
    builder.knows_bfloat16 = True
    cast, narrowing = builder.cast_impl, builder.create_fp_to_fp
    dot, binary, unary = builder.create_dot, builder.binary_op, builder.unary_op

    def is_bf16(value) -> bool:
        return value.dtype.scalar == tl.bfloat16

    def as_float32(value):
        return handle(widen(np.asarray(value.data)), tl.float32) if is_bf16(value) else value

    def cast_impl(self, source, target):
        a, b = source.dtype.scalar, target.scalar
        if a == tl.bfloat16:
            wide = handle(widen(source.data), tl.float32)
            return wide if b == tl.float32 else cast(self, wide, target)
        if b == tl.bfloat16:
            wide = source if a == tl.float32 else cast(self, source, tl.float32)
            return handle(narrow(wide.data), b)
        return cast(self, source, target)

    def create_fp_to_fp(self, source, target, rounding):
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return cast_impl(self, source, target)
        return narrowing(self, source, target, rounding)

    def create_dot(self, a, b, accumulator, *rest):
        return dot(self, as_float32(a), as_float32(b), accumulator, *rest)

    def binary_op(self, left, right, operation):
        if not is_bf16(left):
            return binary(self, left, right, operation)
        result = operation(widen(left.data), widen(right.data))
        return handle(result, tl.int1) if result.dtype == bool else handle(narrow(result), tl.bfloat16)

    def unary_op(self, value, operation):
        if not is_bf16(value):
            return unary(self, value, operation)
        return handle(narrow(operation(widen(value.data))), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
    builder.create_dot, builder.binary_op, builder.unary_op = create_dot, binary_op, unary_op
    _let_scalars_index()
    _patch_the_language_once_a_launch()


def _patch_the_language_once_a_launch() -> None:
    """Patch `triton.language` once a launch. The interpreter does so at every call of a device function, which takes
    most of its time, although a patch lasts until the launch ends."""
    run_grid, patch_language = interpreter.GridExecutor.__call__, interpreter._patch_lang
    visible: dict[int, frozenset] = {}  # which of the language's modules a function refers to, by its code
    patched: set[frozenset] = set()

    def launch(self, *args, **kwargs):
        patched.clear()
        return run_grid(self, *args, **kwargs)

    def patch_once(fn):
        key = visible.get(id(fn.__code__))
        if key is None:
            key = frozenset(id(value) for value in fn.__globals__.values() if value is tl or value is tl.core)
            visible[id(fn.__code__)] = key
        if key in patched:
            return None
        patched.add(key)
        return patch_language(fn)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch, patch_once


def _let_scalars_index() -> None:
    """Let `range` take a run-time bound, a one-element array, which Triton 3.6 with NumPy 2.4 or newer refuses."""
    patch_tensor = interpreter._patch_lang_tensor

    def index(self) -> int:
        return int(np.asarray(self.handle.data).reshape(()))

    def patch(tensor, *scope):
        patch_tensor(tensor, *scope)
        if scope:
            scope[0].set_attr(tensor, "__index__", index)
        else:
            tensor.__index__ = index

    interpreter._patch_lang_tensor = patch
