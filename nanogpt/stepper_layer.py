"""One block of a Transformer for one token a row, with its tables of keys and values."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Attention
from makemore.compiled import NORMS
from makemore.exact import note
from makemore.layers import BatchNorm, LayerNorm, NoNorm, RMSNorm
from nanogpt.attention import CausalSelfAttention
from nanogpt.block import MLP, Block

note(Block, CausalSelfAttention, MLP, Attention, nn.Linear, nn.Dropout, *NORMS)


class CacheIndex(NamedTuple):
    """The index of the new token in the tables, and which keys it sees: those from `first` to `index`."""

    index: int  # type: ignore[assignment]  # instead of tuple's method
    first: int
    bias: Tensor | None  # what ALiBi adds to the scores, (1, n_kv_head, group, index + 1 - first)

    def write(self, table: Tensor, dim: int, new: Tensor) -> None:
        table.select(dim, self.index).copy_(new)

    def row(self, table: Tensor) -> Tensor:
        return table[self.index]

    def visible(self, keys: Tensor) -> Tensor:
        return keys.narrow(2, self.first, self.index + 1 - self.first)


class StaticCacheIndex(NamedTuple):
    """The same with an index that is a tensor, for a captured graph: no shape depends on it."""

    index: Tensor  # type: ignore[assignment]  # instead of tuple's method; (1,) int64
    bias: Tensor  # (1, n_kv_head, group, capacity), or (1, capacity) without ALiBi; -inf: not seen

    def write(self, table: Tensor, dim: int, new: Tensor) -> None:
        table.index_copy_(dim, self.index, new.unsqueeze(dim).type_as(table))

    def row(self, table: Tensor) -> Tensor:
        return table.index_select(0, self.index)

    def visible(self, keys: Tensor) -> Tensor:
        return keys


class RowsCacheIndex(NamedTuple):
    """The index of the new token of each row in the tables, and the keys that any of them sees."""

    index: Tensor  # type: ignore[assignment]  # instead of tuple's method; (B,) int64
    row_numbers: Tensor  # (B,)
    end: int  # of the longest row
    bias: Tensor  # (B, n_kv_head or 1, group or 1, end); -inf: not seen

    def write(self, table: Tensor, dim: int, new: Tensor) -> None:
        if dim == 1:
            table[self.row_numbers, self.index] = new
        else:
            table[self.row_numbers, :, self.index] = new.type_as(table)

    def visible(self, keys: Tensor) -> Tensor:
        return keys[:, :, : self.end]


def layers_of(model: Any) -> list["Layer"]:
    """The blocks of a Transformer, each as a Layer."""
    layers: list[Layer] = []
    for i, block in enumerate(model.h):
        layers.append(Layer(block, model.value_table(i), layers[0] if layers else None))
    return layers


class Layer:
    """One block of a Transformer, with its keys and values: x (B, C) -> (B, C). `value_table` (V, n_kv_head * hs): what
    the values of a token get besides. `first`: the layer with whose values its own are mixed, if they are."""

    def __init__(self, block: Block, value_table: Tensor | None, first: "Layer | None"):
        attn, mlp = block.attn, block.mlp
        self.n_head, self.n_kv_head, self.head_size = attn.n_head, attn.n_kv_head, attn.head_size
        self.ln_1, self.ln_2 = norm_of(block.ln_1), norm_of(block.ln_2)
        self.c_attn, self.c_fc = product_of(attn.c_attn), product_of(mlp.c_fc)
        self.add_attn, self.add_mlp = sum_with(attn.c_proj), sum_with(mlp.c_proj)
        self.qk_norm, self.cap = attn.qk_norm, attn.attend.softcap
        self.value_table, self.gate = value_table, attn.gate
        self.value_mix, self.first = attn.value_mix, first
        self.values: Tensor  # of the last token, (B, n_kv_head, hs)
        self.gated, self.activation = mlp.gated, mlp.activation
        self.kv = torch.empty(0)  # (B, 2 n_kv_head, capacity, hs) once loaded
        self.k: Tensor  # (B, n_kv_head, capacity, hs), a view of it, as is v
        self.v: Tensor

    def __call__(
        self,
        x: Tensor,
        cache_index: CacheIndex | StaticCacheIndex | RowsCacheIndex,
        cos_sin: tuple[Tensor, Tensor] | None,
        token: Tensor,
    ) -> Tensor:
        """`cos_sin`: those of RoPE, (hs,) or (1, hs) each, in the form that `_norm_and_rotate` takes. `token` (B,)."""
        n_head, n_kv_head, head_size = self.n_head, self.n_kv_head, self.head_size
        x_normed = self.ln_1(x)
        heads = self.c_attn(x_normed).view(-1, n_head + 2 * n_kv_head, head_size)  # of q, then k, then v
        if self.qk_norm or cos_sin is not None:
            self._norm_and_rotate(heads.narrow(1, 0, n_head + n_kv_head), cos_sin)
        self.values = heads.narrow(1, n_head + n_kv_head, n_kv_head)
        if self.value_table is not None:
            added = F.embedding(token, self.value_table).view(-1, n_kv_head, head_size)
            self.values.addcmul_(added, self.gate(x_normed)[..., None])
        if self.value_mix is not None and self.first is not None:
            self.values.mul_(self.value_mix[0]).addcmul_(self.first.values, self.value_mix[1])
        q, kv = heads.split_with_sizes((n_head, 2 * n_kv_head), 1)
        cache_index.write(self.kv, 2, kv)
        # The heads that share keys are as many queries of one head: nothing has to be repeated.
        q = q.view(-1, n_kv_head, n_head // n_kv_head, head_size)
        k, v = cache_index.visible(self.k), cache_index.visible(self.v)
        if self.cap is None:
            y = F.scaled_dot_product_attention(q, k, v, cache_index.bias)
        else:
            y = capped_attention(q, k, v, cache_index.bias, self.cap)
        x = self.add_attn(x, y.reshape(x.shape))
        y = self.c_fc(self.ln_2(x))
        if self.gated:
            y, gate = y.chunk(2, -1)
            y = y * self.activation(gate)
        else:
            y = self.activation(y)
        return self.add_mlp(x, y)

    def load(self, k: Tensor, v: Tensor, capacity: int) -> None:
        """Begin after keys and values (B, n_kv_head, T, hs)."""
        kv = torch.cat([k, v], 1)
        if self.kv.ndim == 4 and self.kv.shape[2] == capacity:
            self.kv[:, :, : kv.shape[2]] = kv
        else:
            self.kv = kv
            self.grow(capacity)

    def use(self, kv: Tensor) -> None:
        """Go on with these tables, (B, 2 n_kv_head, capacity, hs), which are written to."""
        self.kv = kv
        self.k, self.v = kv.chunk(2, 1)

    def grow(self, capacity: int) -> None:
        """Make the tables long enough for `capacity` tokens."""
        self.use(F.pad(self.kv, (0, 0, 0, capacity - self.kv.shape[2])))

    def copy(self) -> None:
        """Copy the tables to memory of their own."""
        self.use(self.kv.clone())

    def keep_last(self, count: int) -> None:
        """Copy the last `count` keys and values to the front."""
        self.kv[:, :, :count] = self.kv[:, :, self.kv.shape[2] - count :].clone()

    def _norm_and_rotate(self, qk: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> None:
        """Apply QK-norm and RoPE to queries and keys (B, H, hs) in place."""
        x = F.rms_norm(qk, (self.head_size,)) if self.qk_norm else qk
        if cos_sin is not None:
            x = torch.addcmul(x * cos_sin[0], x.roll(self.head_size // 2, -1), cos_sin[1])
        qk.copy_(x)


def capped_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, cap: float) -> Tensor:
    """`F.scaled_dot_product_attention` with a soft cap on the scores, before the bias."""
    scores = cap * torch.tanh(q @ k.mT / (cap * math.sqrt(q.shape[-1])))
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def parts_of(block: Block) -> Iterator[tuple[nn.Module, type[nn.Module]]]:
    """The modules of `block` that a Layer computes, each with the class that it has to be of; one by one, since what a
    module has is known only once its class is."""
    yield block, Block
    attn, mlp = block.attn, block.mlp
    yield attn, CausalSelfAttention
    yield mlp, MLP
    yield attn.attend, Attention
    gates = () if attn.value_gate is None else (attn.value_gate,)
    for linear in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj, *gates):
        yield linear, nn.Linear
    for dropout in (attn.resid_dropout, mlp.dropout):
        yield dropout, nn.Dropout
    for norm in (block.ln_1, block.ln_2):
        yield norm, norm_class(norm)


def norm_class(norm: nn.Module) -> type[nn.Module]:
    """The class of a norm, or, of what is none, one that it is not of."""
    return type(norm) if type(norm) in NORMS else NoNorm


def evaluates(block: Block, window: int | None) -> bool:
    """Whether these modules are set as a Layer computes them: nothing is dropped, no statistics are taken, and
    attention is causal, over this window, and not on Triton's kernels."""
    attn = block.attn
    attend = attn.attend
    return (
        not (attend.training or attn.resid_dropout.training or block.mlp.dropout.training)
        and norm_evaluates(block.ln_1)
        and norm_evaluates(block.ln_2)
        and attend.backend != "triton"
        and attend.causal
        and attend.scale is None
        and attend.window == window
    )


def norm_evaluates(norm: nn.Module) -> bool:
    """Whether a norm of NORMS is set as `norm_of` computes it."""
    return not norm.training and getattr(norm, "backend", None) != "triton"


def norm_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """x (B, C) -> its norm, without the checks that the kernels' interface makes."""
    if isinstance(module, NoNorm):
        return lambda x: x
    if isinstance(module, BatchNorm):
        return module
    if isinstance(module, RMSNorm):
        shape, weight, rms_eps = module.normalized_shape, module.weight, module.eps
        return lambda x: F.rms_norm(x, shape, weight, rms_eps)
    assert isinstance(module, LayerNorm)  # NORMS has no other
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def product_of(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """x (B, C) -> linear(x), without what `F.linear` finds out first."""
    weight, bias = linear.weight.t(), linear.bias
    if bias is None:
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.addmm(bias, x, weight)


def sum_with(linear: nn.Linear) -> Callable[[Tensor, Tensor], Tensor]:
    """x (B, C) and y -> x + linear(y)."""
    weight, bias = linear.weight.t(), linear.bias
    if bias is None:
        return lambda x, y: torch.addmm(x, y, weight)
    return lambda x, y: x + torch.addmm(bias, y, weight)
