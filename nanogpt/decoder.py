"""One token a row at a time through a Transformer: what decoding runs, thousands of times.

A token of a small model is some hundred operations of a few microseconds, so that what surrounds them costs more than
they do: calls of modules, checks, masks, dropout that drops nothing, a cache that is copied to grow. Here is the same
sum as in `Transformer.hidden` without them, for one token; tests hold both equal. On a GPU, where each operation also
waits to be launched, the step is captured once as a CUDA graph and replayed.
"""

import math
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import warn
from makemore.base import LanguageModel, State
from makemore.small_work import for_small_work
from nanogpt.attention import rotation, sinusoids
from nanogpt.decoder_layer import Layer, Place, StaticPlace, norm_of

WINDOWS = 4  # of an unbounded model are held: what is kept of them moves to the front once in three windows
EAGER = 32  # steps before a capture, which costs a synchronisation and several steps: too much for a name
AT_FIRST = 64  # tokens there is room for; doubled as needed, so that short answers of a large model take little memory

_lock = threading.Lock()  # one capture at a time


def make_decoder(model: LanguageModel, state: State) -> "Decoder | None":
    """The decoder for `model`, a Transformer; None where neither computes what it does: in training, with adapters, or
    where Triton's kernels were asked for."""
    linear = [layer for block in model.h for layer in (block.attn.c_attn, block.attn.c_proj)]
    linear += [layer for block in model.h for layer in (block.mlp.c_fc, block.mlp.c_proj)]
    backends = {getattr(module, "backend", None) for module in model.modules()}
    if model.training or "triton" in backends or any(type(layer) is not nn.Linear for layer in linear):
        return None
    return (GraphDecoder if model.wte.weight.is_cuda else Decoder)(model, state)


class Decoder:
    """token (B,) -> logits (B, V) after `state`, what `Transformer.read` gave for the rows so far, and all tokens
    since."""

    def __init__(self, model: LanguageModel, state: State):
        self.model, self.context = model, model.context
        self.most = model.context or WINDOWS * model.window  # tokens that are held
        self.reach = model.window or self.most  # how many keys a query sees, its own included
        self.layers = [Layer(block) for block in model.h]
        self.ln_f, self.head = norm_of(model.ln_f), model.head_weights()
        slopes = model.h[0].attn.attend.slopes
        self.slopes = None if slopes is None else slopes.view(1, self.layers[0].n_kv_head, -1, 1)
        self.room, self.filled, self.position = 0, 0, None
        self.tokens = self.places = self.turns = self.distant = None
        self.last: State = {}  # the n-grams' tokens
        self._go_on(state)

    def __call__(self, token: Tensor) -> Tensor:
        x = self.features(token)
        with for_small_work(len(token)):
            return F.linear(x, *self.head)

    def features(self, token: Tensor) -> Tensor:
        """What the head reads, (B, C), instead of its logits; good until the next token."""
        if self.filled == self.room:
            self._make_room()
        with for_small_work(len(token)):
            x = self._step(token)
        self.filled += 1
        return x

    def _step(self, token: Tensor) -> Tensor:
        at, first = self.filled, max(0, self.filled + 1 - self.reach)
        bias = None if self.distant is None else self.distant[..., self.most - (at + 1 - first) :]
        return self._read(token, Place(at, first, bias))

    def _read(self, token: Tensor, here: Place | StaticPlace) -> Tensor:
        x = self._embed(token, here)  # (B, C)
        turn = None if self.turns is None else here.row(self.turns).unbind(-2)
        for layer in self.layers:
            x = layer(x, here, turn)
        return self.ln_f(x)

    def _embed(self, token: Tensor, here: Place | StaticPlace) -> Tensor:
        if self.model.ngrams is None:
            x = F.embedding(token, self.model.wte.weight)
        else:
            x, after = self.model.embed(token[:, None], self.last)
            x, self.last = x[:, 0], {name: _into(self.last[name], part) for name, part in after.items()}
        if self.tokens is not None:
            here.put(self.tokens, 1, token)
        return x if self.places is None else x + here.row(self.places)

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
        if state is None:
            for part in self.last.values():
                part.fill_(self.model.special.pad)
            self.filled = 0
            return
        filled = state["k0"].shape[2]
        self.room = max(self.room, min(max(AT_FIRST, 2 * filled), self.most))
        if "last" in state:
            self.last = {"last": _into(self.last.get("last"), state["last"].clone())}
        for i, layer in enumerate(self.layers):
            layer.take(state[f"k{i}"], state[f"v{i}"], self.room)
        if self.context is not None:
            self.tokens = _into(self.tokens, F.pad(state["tokens"], (0, self.most - filled)))
        self._stand(filled if self.context is not None else int(state["position"][0]), filled)

    def _stand(self, position: int, filled: int) -> None:
        """`filled` keys are held, the next of which would stand at `position` of the text."""
        self.filled = filled
        if position - filled == self.position:
            return
        self.position = position - filled  # of the first that is held
        model, weight = self.model, self.model.wte.weight
        places = torch.arange(self.position, self.position + self.most, device=weight.device)
        if model.wpe is not None:
            self.places = model.wpe.weight
        elif model.positions == "sinusoidal":
            self.places = _into(self.places, sinusoids(places, model.n_embd).type_as(weight))
        elif model.positions == "rope":
            cos, sin = rotation(places, model.head_size)
            table = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
            self.turns = _into(self.turns, table)  # (most, 2, hs)
        else:
            distance = torch.arange(1 - self.most, 1, device=weight.device)
            self.distant = (self.slopes * distance).type_as(weight)  # (1, n_kv_head, group, most)


class GraphDecoder(Decoder):
    """The same on a GPU. The captured step has fixed shapes: attention is to all the room, what is not to be seen
    masked. It is captured anew where the room has grown. Where it cannot be captured, a warning says so, and the
    operations are launched one by one."""

    def __init__(self, model: LanguageModel, state: State):
        self.captured, self.taken = 0, 0  # the room that the graph has; steps so far
        self.eager = EAGER  # of them without a graph
        super().__init__(model, state)

    def _step(self, token: Tensor) -> Tensor:
        self.taken += 1
        if self.taken > self.eager and self.captured != self.room:
            self._capture(token)
        if self.taken <= self.eager:
            return super()._step(token)
        self.token.copy_(token)
        self.at.fill_(self.filled)
        self.replay()
        return self.result

    def _capture(self, token: Tensor) -> None:
        self.token, self.at = token.clone(), token.new_full((1,), self.filled)
        before = {name: part.clone() for name, part in self.last.items()}
        try:
            self.replay, self.result = capture(self._static_step, token.device)
        except RuntimeError as error:  # CUDA's errors and too little memory are RuntimeErrors too
            reason = str(error).partition("\n")[0]
            warn(f"decoding goes on without a CUDA graph, which is slower: capturing a step failed with '{reason}'")
            self.eager, self.last = math.inf, before
        else:
            self.last = {name: _into(self.last[name], part) for name, part in before.items()}
            self.captured = self.room

    def _static_step(self) -> Tensor:
        back = self.at - torch.arange(self.room, device=self.at.device)
        bias = torch.zeros_like(back) if self.slopes is None else -self.slopes * back
        bias = bias.type_as(self.model.wte.weight).masked_fill((back < 0) | (back >= self.reach), -torch.inf)
        return self._read(self.token, StaticPlace(self.at, bias.view(1, *bias.shape[-3:-1], self.room)))


def capture(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """`step` as a CUDA graph: what replays it, and where its result then lies."""
    with _lock, torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # libraries choose kernels and allocate at first, which cannot be captured
            for _ in range(2):
                step()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            result = step()
    return graph.replay, result


def _into(old: Tensor | None, new: Tensor) -> Tensor:
    """`new`, laid where `old` lies: where a captured graph reads it."""
    return new if old is None or old.shape != new.shape else old.copy_(new)
