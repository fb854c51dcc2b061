"""What a Transformer is built with: sizes that go together, tables of value embeddings, and weights to begin from."""

import math
from typing import Any

from torch import nn

from makemore.constants import INIT_STD
from makemore.layers import initialise
from nanogpt.config import TransformerConfig


def value_embeddings(config: TransformerConfig, vocab_size: int) -> nn.ModuleDict:
    """The tables of value embeddings by layer: of the last one, and every other one before it."""
    layers = range((config.n_layer - 1) % 2, config.n_layer, 2) if config.value_embeddings else ()
    width = (config.n_kv_head or config.n_head) * (config.n_embd // config.n_head)
    return nn.ModuleDict({f"{i}": nn.Embedding(vocab_size, width) for i in layers})


def check(config: TransformerConfig) -> None:
    """Raise ValueError for sizes that do not go together."""
    n_embd, n_head, n_kv_head = config.n_embd, config.n_head, config.n_kv_head or config.n_head
    if config.activation_checkpointing and config.norm == "batch":
        raise ValueError(
            "--activation-checkpointing computes a block twice, and --norm batch would take its statistics twice; "
            "use another norm"
        )
    if n_embd % n_head:
        raise ValueError(f"n_embd {n_embd} is not divisible by n_head {n_head}")
    if n_head % n_kv_head:
        raise ValueError(f"n_head {n_head} is not divisible by n_kv_head {n_kv_head}")
    if config.positions == "rope" and n_embd // n_head % 2:
        raise ValueError(f"RoPE rotates pairs: the head size n_embd / n_head = {n_embd // n_head} has to be even")


def initialise_weights(model: Any, weight_init: str, activation: str, zero_init: bool) -> None:
    """By default GPT-2's: normal of std 0.02, residual projections smaller with depth, biases zero. `zero_init`:
    those projections at zero, so that a block starts as if it was not there (Zhang et al. 2019, Fixup)."""
    if weight_init == "default":
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and not name.startswith("lm_head"):
                nn.init.zeros_(parameter)
        weight_init = "normal"
    if weight_init != "torch" or model.lm_head is None:  # a table that is also the head must start small
        for table in filter(None, (model.wte, model.wpe)):
            nn.init.normal_(table.weight, std=INIT_STD)
    initialise(model, weight_init, activation)
    for i, table in model.vte.items():
        nn.init.normal_(table.weight, std=INIT_STD)
        nn.init.zeros_(model.h[int(i)].attn.value_gate.weight)
    for projection in (layer for block in model.h for layer in (block.attn.c_proj, block.mlp.c_proj)):
        if weight_init == "normal":
            nn.init.normal_(projection.weight, std=INIT_STD / math.sqrt(2 * len(model.h)))
        if zero_init:
            nn.init.zeros_(projection.weight)
