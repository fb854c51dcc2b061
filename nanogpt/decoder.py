"""One token a row at a time through a Transformer: what decoding runs, thousands of times.

A token of a small model is some hundred operations of a few microseconds, so that what surrounds them costs more than
they do: calls of modules, checks, masks, dropout that drops nothing, a cache that is copied to grow. Here is the same
sum as in `Transformer.hidden` without them, for one token; tests hold both equal.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makemore.base import State
from makemore.layers import BatchNorm, NoNorm, RMSNorm
from nanogpt.attention import rotation, sinusoids
from nanogpt.model import Block, Transformer

WINDOWS = 4  # of an unbounded model are held: what is kept of them moves to the front once in three windows
AT_FIRST = 64  # tokens there is room for; doubled as needed, so that short answers of a large model take little memory


def can_decode(model: Transformer) -> bool:
    """Whether `Decoder` computes what `model` does: a plain one, in evaluation, with torch's kernels."""
    linear = [layer for block in model.h for layer in (block.attn.c_attn, block.attn.c_proj)]
    linear += [layer for block in model.h for layer in (block.mlp.c_fc, block.mlp.c_proj)]
    backends = {getattr(module, "backend", None) for module in model.modules()}
    return not model.training and "triton" not in backends and all(type(layer) is nn.Linear for layer in linear)


@contextlib.contextmanager
def for_small_work(rows: int) -> Iterator[None]:
    """Without oneDNN, which takes longer to look up its GELU than torch to compute that of a few rows; and one row on
    one thread: what is read once from memory gains nothing by a second, which others may keep busy."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    if rows == 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = onednn
        if rows == 1:
            torch.set_num_threads(threads)


class Decoder:
    """token (B,) -> logits (B, V) after `state`, what `Transformer.read` gave for the rows so far, and all tokens
    since. Only for models that `can_decode`."""

    def __init__(self, model: Transformer, state: State):
        self.model, self.context = model, model.context
        self.most = model.context or WINDOWS * model.window  # tokens that are held
        self.reach = model.window or self.most  # how many keys a query sees, its own included
        self.layers = [Layer(block) for block in model.h]
        self.ln_f, self.head = norm_of(model.ln_f), model.head_weights()
        self._go_on(state)

    def __call__(self, token: Tensor) -> Tensor:
        if self.filled == self.room:
            self._make_room()
        with for_small_work(len(token)):
            return self._read(token)

    def _read(self, token: Tensor) -> Tensor:
        at, first = self.filled, max(0, self.filled + 1 - self.reach)
        x = self._embed(token, at)  # (B, C)
        turn = None if self.turns is None else (self.turns[0][at], self.turns[1][at])
        far = None if self.far is None else self.far[..., self.most - (at + 1 - first) :]
        for layer in self.layers:
            x = layer(x, at, first, turn, far)
        self.filled = at + 1
        return F.linear(self.ln_f(x), *self.head)

    def _embed(self, token: Tensor, at: int) -> Tensor:
        if self.model.ngrams is None:
            x = F.embedding(token, self.model.wte.weight)
        else:
            x, self.last = self.model.embed(token[:, None], self.last)
            x = x[:, 0]
        if self.context is not None:
            self.tokens[:, at] = token
        return x if self.places is None else x + self.places[at]

    def _make_room(self) -> None:
        """Twice as much, up to all that may be held. Then, with a context, its last half is encoded anew from position
        0, as `Transformer.read` does; without, what the window still sees moves to the front."""
        if self.room < self.most:
            self.room = min(2 * self.room, self.most)
            for layer in self.layers:
                layer.grow(self.room)
        elif self.context is not None:
            self._go_on(self.model.keep_half(self.tokens))
        else:
            for layer in self.layers:
                layer.keep(self.reach - 1)
            self._stand(self.position + self.filled, self.reach - 1)

    def _go_on(self, state: State | None) -> None:
        """Take over what was read; None: nothing."""
        filled = 0 if state is None else state["k0"].shape[2]
        self.last = None  # tokens of the n-grams
        if state is not None:
            self.last = {name: part for name, part in state.items() if name == "last"}
            self.room = min(max(AT_FIRST, 2 * filled), self.most)
            for i, layer in enumerate(self.layers):
                layer.take(state[f"k{i}"], state[f"v{i}"], self.room)
            if self.context is not None:
                self.tokens = F.pad(state["tokens"], (0, self.most - filled))
        self._stand(filled if self.context is not None else int(state["position"][0]), filled)

    def _stand(self, position: int, filled: int) -> None:
        """`filled` keys are held, the next of which would stand at `position` of the text."""
        model, weight = self.model, self.model.wte.weight
        self.filled, self.position = filled, position - filled  # of the first that is held
        places = torch.arange(self.position, self.position + self.most, device=weight.device)
        self.places = self.turns = self.far = None
        if model.wpe is not None:
            self.places = model.wpe.weight
        elif model.positions == "sinusoidal":
            self.places = sinusoids(places, model.n_embd).type_as(weight)
        elif model.positions == "rope":
            cos, sin = rotation(places, model.head_size)
            self.turns = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        else:
            slopes = model.h[0].attn.attend.slopes.view(1, self.layers[0].n_kv_head, -1, 1)
            distance = torch.arange(1 - self.most, 1, device=weight.device)
            self.far = (slopes * distance).type_as(weight)  # (1, n_kv_head, group, most)


class Layer:
    """One block, with its keys and values: x (B, C) -> (B, C)."""

    def __init__(self, block: Block):
        attn, mlp = block.attn, block.mlp
        self.n_head, self.n_kv_head, self.head_size = attn.n_head, attn.n_kv_head, attn.head_size
        self.ln_1, self.ln_2 = norm_of(block.ln_1), norm_of(block.ln_2)
        self.c_attn, self.c_fc = product_of(attn.c_attn), product_of(mlp.c_fc)
        self.add_attn, self.add_mlp = sum_with(attn.c_proj), sum_with(mlp.c_proj)
        self.qk_norm, self.gated, self.activation = attn.qk_norm, mlp.gated, mlp.activation
        self.kv: Tensor  # (B, 2 n_kv_head, room, hs)
        self.k: Tensor  # (B, n_kv_head, room, hs), a view of it, as is v
        self.v: Tensor

    def __call__(
        self, x: Tensor, at: int, first: int, turn: tuple[Tensor, Tensor] | None, far: Tensor | None
    ) -> Tensor:
        """The keys of `first` to `at` are seen; `turn`: RoPE's cos and sin at this place; `far`: what ALiBi adds."""
        n_head, n_kv_head, head_size = self.n_head, self.n_kv_head, self.head_size
        heads = self.c_attn(self.ln_1(x)).view(-1, n_head + 2 * n_kv_head, head_size)  # of q, then k, then v
        if self.qk_norm or turn is not None:
            self._place(heads.narrow(1, 0, n_head + n_kv_head), turn)
        q, kv = heads.split_with_sizes((n_head, 2 * n_kv_head), 1)
        self.kv.select(2, at).copy_(kv)
        # The heads that share keys are as many queries of one head: nothing has to be repeated.
        q = q.view(-1, n_kv_head, n_head // n_kv_head, head_size)
        count = at + 1 - first
        k, v = self.k.narrow(2, first, count), self.v.narrow(2, first, count)
        y = F.scaled_dot_product_attention(q, k, v, far)
        x = self.add_attn(x, y.reshape(x.shape))
        y = self.c_fc(self.ln_2(x))
        if self.gated:
            y, gate = y.chunk(2, -1)
            y = y * self.activation(gate)
        else:
            y = self.activation(y)
        return self.add_mlp(x, y)

    def take(self, k: Tensor, v: Tensor, room: int) -> None:
        """Begin after keys and values (B, n_kv_head, T, hs)."""
        self.kv = torch.cat([k, v], 1)
        self.grow(room)

    def grow(self, room: int) -> None:
        self.kv = F.pad(self.kv, (0, 0, 0, room - self.kv.shape[2]))
        self.k, self.v = self.kv.chunk(2, 1)

    def keep(self, count: int) -> None:
        """Move the last `count` to the front."""
        self.kv[:, :, :count] = self.kv[:, :, self.kv.shape[2] - count :].clone()

    def _place(self, qk: Tensor, turn: tuple[Tensor, Tensor] | None) -> None:
        """Normalise and turn queries and keys (B, H, hs) where they lie."""
        x = F.rms_norm(qk, (self.head_size,)) if self.qk_norm else qk
        if turn is not None:
            x = torch.addcmul(x * turn[0], x.roll(self.head_size // 2, -1), turn[1])
        qk.copy_(x)


def norm_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """x (B, C) -> its norm, without the checks that the kernels' interface makes."""
    if isinstance(module, NoNorm):
        return lambda x: x
    if isinstance(module, BatchNorm):
        return module
    shape, weight, eps = module.normalized_shape, module.weight, module.eps
    if isinstance(module, RMSNorm):
        return lambda x: F.rms_norm(x, shape, weight, eps)
    bias = module.bias
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def product_of(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """x (B, C) -> what `linear` makes of it. `F.linear` finds out first what this knows."""
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
