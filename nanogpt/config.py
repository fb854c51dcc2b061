"""What the Transformer can be asked for. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from makemore.config import POSITIVE, SIZE, UNSET, Activation, Backend, BothWaysConfig, Mark


@dataclass
class TransformerConfig(BothWaysConfig):
    """Blocks of causal self-attention and an MLP: GPT-2's, with later parts as options."""

    n_head: Annotated[int, SIZE] = 4
    """Attention heads."""
    n_kv_head: Annotated[int | None, SIZE, UNSET] = None
    """Key-value heads, fewer than --n-head for grouped attention (default: as many)."""
    positions: Literal["learned", "sinusoidal", "rope", "alibi"] = "learned"
    """How the Transformer knows where a token stands."""
    window: Annotated[int | None, SIZE, UNSET] = None
    """Sliding window: attend to this many last tokens only (default: to all of the context)."""
    activation: Activation = "gelu"
    """Activation."""
    attention_cap: Annotated[float | None, POSITIVE, UNSET] = None
    """Soft cap of the scores: s becomes c tanh(s / c), as in Gemma 2, where c is 50 (default: none)."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    value_residual: bool = False
    """Mix the values of each layer with those of the first, in learned parts (Zhou et al. 2024, ResFormer)."""
    value_embeddings: bool = False
    """Add embeddings of their own to the values of attention, through a gate, in every other layer (after Zhou et al.
    2024)."""
    tie_head: bool = True
    """Use the embedding table as the output head too."""
    bias: bool = True
    """Biases in the Transformer's layers."""
    logit_cap: Annotated[float | None, POSITIVE, UNSET] = None
    """Soft cap of the logits, cap * tanh(logits / cap) (Gemma 2: 30; default: none)."""
    zero_init: Annotated[bool, Mark.OWN] = False
    """Start the Transformer's residual projections at zero."""
    activation_checkpointing: Annotated[bool, Mark.RESUMABLE, Mark.OWN, Mark.TRAINING] = False
    """Keep the inputs of the blocks alone and compute the rest again in the backward pass: a fraction of the memory,
    a third more to compute, the same gradients."""
    attention: Annotated[Backend, Mark.BACKEND, Mark.RESUMABLE, Mark.OWN] = "auto"
    """Whose attention kernels it runs on; auto: Triton's where they were measured to win."""
