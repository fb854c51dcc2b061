"""Attention in plain torch: what the kernels are tested against, in any floating dtype.

Slow and plain: the whole table of scores is held, and autograd differentiates it. Dropout draws from the same Philox
generator as the kernels, so that it keeps the same weights.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PHILOX_ROUNDS = 7
Window = int | tuple[int | None, int | None] | None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: Window = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output (B, H, Tq, D) and log-sum-exp (B, H, Tq) of `kernels.attention`, in the dtype of q."""
    Tq, Tk = q.shape[2], k.shape[2]
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    s = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)  # (B, H, Tq, Tk)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    if slopes is not None:
        s = s - slopes.to(s)[:, None, None] * _positions(Tq, Tk, q.device)[2].abs()
    seen = sees(Tq, Tk, causal, window, q.device)
    s = s.masked_fill(~(seen if key_mask is None else seen & key_mask[:, None, None]), -math.inf)
    if Tk == 0:
        return q.new_zeros(q.shape) + s.sum(), q.new_full(q.shape[:3], -math.inf)
    row_max = s.amax(-1, keepdim=True).detach()
    unseen = row_max == -math.inf
    e = torch.exp(s - row_max.masked_fill(unseen, 0.0))
    row_sum = e.sum(-1, keepdim=True)
    lse = (row_max + row_sum.masked_fill(unseen, 1.0).log())[..., 0]
    p = e / row_sum.masked_fill(unseen, 1.0)
    if dropout > 0:
        assert seed is not None
        p = p * dropout_keeps(q.shape[:2], Tq, Tk, seed, dropout) / (1 - dropout)
    return p @ v, lse


def attention_packed(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *, dropout=0.0, seed=None, **options
) -> tuple[Tensor, Tensor]:
    """The same for sequences laid end to end in q (1, H, total, D) and k, v, as in `kernels.attention_packed`."""
    outs, lses = [q[:, :, :0]], [q[:, :, :0, 0]]
    ends_q, ends_k = starts_q.tolist(), starts_k.tolist()
    for i in range(len(ends_q) - 1):
        rows, keys = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
        part = q[:, :, rows]
        if dropout > 0:  # the generator counts heads over the batch: make this sequence the i-th of one
            part = part.expand(i + 1, *part.shape[1:])
        out, lse = attention(part, k[:, :, keys], v[:, :, keys], dropout=dropout, seed=seed, **options)
        outs.append(out[-1:])
        lses.append(lse[-1:])
    padding = q[:, :, ends_q[-1] :]
    outs.append(torch.zeros_like(padding))
    lses.append(torch.full_like(padding[..., 0], -math.inf))
    return torch.cat(outs, 2), torch.cat(lses, 2)


def reach(causal: bool, window: Window) -> tuple[int | None, int | None]:
    """How many keys before and after its own position a query sees; None: all."""
    if isinstance(window, tuple):
        return window[0], 0 if causal else window[1]
    before = None if window is None else window - 1
    return before, 0 if causal else before


def sees(Tq: int, Tk: int, causal: bool, window: Window, device) -> Tensor:
    """Whether a query attends to a key, (Tq, Tk) bool."""
    before, after = reach(causal, window)
    ahead = -_positions(Tq, Tk, device)[2]  # of the key before the query
    seen = torch.ones(Tq, Tk, dtype=torch.bool, device=device)
    if before is not None:
        seen = seen & (ahead >= -before)
    if after is not None:
        seen = seen & (ahead <= after)
    return seen


def sdpa_mask(
    Tq: int,
    Tk: int,
    causal: bool,
    window: Window,
    slopes: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The mask for torch's scaled_dot_product_attention: (Tq, Tk) bool, or with ALiBi (H, Tq, Tk) to add; of a
    `key_mask` (B, 1, Tq, Tk) and (B, H, Tq, Tk)."""
    seen = sees(Tq, Tk, causal, window, device)
    seen = seen if key_mask is None else seen & key_mask[:, None, None]
    if slopes is None:
        return seen
    distance = _positions(Tq, Tk, device)[2].abs()
    alibi_bias = -slopes.to(device)[:, None, None] * distance
    return alibi_bias.masked_fill(~seen, -math.inf).to(dtype)


def _positions(Tq: int, Tk: int, device) -> tuple[Tensor, Tensor, Tensor]:
    """The positions of queries (Tq, 1) and keys (1, Tk), and their differences (Tq, Tk)."""
    query = torch.arange(Tk - Tq, Tk, device=device)[:, None]
    key = torch.arange(Tk, device=device)[None, :]
    return query, key, query - key


def dropout_keeps(heads: Sequence[int], Tq: int, Tk: int, seed: Tensor, dropout: float) -> Tensor:
    """Whether dropout keeps a weight, (B, H, Tq, Tk) bool, for `heads` (B, H). Philox-4x32 (Salmon et al. 2011) with 7
    rounds and the counter (key, query, head of the batch, 0). Bit 3 of key and query is not counted but says which of
    the four words is theirs."""
    B, H = heads
    device = seed.device
    query, key = torch.arange(Tq, device=device)[:, None], torch.arange(Tk, device=device)
    words = [
        key // 16 * 8 + key % 8,
        query // 16 * 8 + query % 8,
        torch.arange(B * H, device=device).view(B, H, 1, 1),
        torch.zeros((), dtype=torch.int64, device=device),
    ]
    c0, c1, c2, c3 = (word.expand(B, H, Tq, Tk) for word in words)
    low = 0xFFFFFFFF
    k0, k1 = seed.reshape(()) & low, (seed.reshape(()) >> 32) & low
    for _ in range(PHILOX_ROUNDS):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & low) ^ c1 ^ k0, b & low, ((a >> 32) & low) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    number = (key // 8 % 2 + query // 8 % 2 * 2).expand(B, H, Tq, Tk)
    drawn = torch.stack([c0, c1, c2, c3]).gather(0, number[None])[0]
    return (drawn >> 8) >= round(dropout * 2**24)
