"""Attention maps: the weights that the model itself reads its values with."""

import pytest
import torch

from kernels import Attention
from makemore.exact import is_exact
from nanogpt.config import TransformerConfig
from nanogpt.maps import attention_maps
from nanogpt.model import Transformer

VARIANTS = [
    {}, {"positions": "learned", "qk_norm": False}, {"positions": "alibi"}, {"window": 3}, {"attention_cap": 0.5},
    {"n_kv_head": 2, "positions": "sinusoidal"}, {"hash_ngrams": 3}, {"dropout": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_maps_are_what_the_values_are_read_with(variant):
    torch.manual_seed(0)
    model = Transformer(11, TransformerConfig(context=12, n_layer=2, n_head=4, n_embd=32, **variant)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(6, 11, (12,))
    maps = attention_maps(model.train(), tokens)
    assert maps.shape == (2, 4, 12, 12) and model.training
    assert torch.allclose(maps.sum(-1), torch.ones(2, 4, 12)) and not maps.triu(1).any()
    assert all(is_exact(block.attn.attend, Attention) for block in model.h)  # nothing was left in the model
    read: list[tuple] = []
    for block in model.eval().h:
        block.attn.attend.register_forward_hook(lambda _, inputs, out: read.append((inputs[2], out)))
    model(tokens[None])
    for weights, (v, out) in zip(maps, read, strict=True):
        v = v[0].repeat_interleave(4 // v.shape[1], 0)  # (H, T, hs)
        torch.testing.assert_close(weights @ v, out[0].detach(), atol=1e-5, rtol=1e-5)
