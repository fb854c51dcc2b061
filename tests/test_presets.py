"""The presets of whole trainings: what `gpt2-124m` and `gpt2-124m-fast` train, on how many tokens a step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.loaders import Deal
from engine.config.flags import parse
from engine.config.sections import Config
from engine.config.settings import flat
from engine.distributed.dealing import Dealing
from engine.distributed.ranks import Ranks
from nanogpt.model import Transformer
from tests.helpers import refused

VOCABULARY = 50257 + 5  # GPT-2's tokens, and the specials that are appended
TOKENS = {"gpt2-124m": 491_520, "gpt2-124m-fast": 524_288}  # a step
PUBLISHED = {  # nanoGPT's config/train_gpt2.py, and the defaults of its train.py
    "n_layer": 12, "n_head": 12, "n_embd": 768, "context": 1024, "dropout": 0.0, "bias": False, "steps": 600_000,
    "lr": 6e-4, "lr_floor": 0.1, "warmup": 2000, "schedule": "cosine", "weight_decay": 0.1, "beta1": 0.9,
    "beta2": 0.95, "grad_clip": 1.0, "optimizer": "adamw", "positions": "learned", "norm": "layer",
    "tie_head": True, "qk_norm": False, "data": "openwebtext", "tokenizer": "gpt2",
}  # fmt: skip


def config_of(*words: str) -> Config:
    return parse([*words])[0]


def settings_of(*words: str) -> SimpleNamespace:
    return SimpleNamespace(**flat(config_of(*words)))


@pytest.mark.parametrize("preset", TOKENS)
def test_the_model_has_124_million_parameters(preset):
    with torch.device("meta"):
        model = Transformer(VOCABULARY, config_of("--preset", preset).net)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 124


@pytest.mark.parametrize("preset", TOKENS)
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_a_step_has_as_many_tokens_under_any_number_of_gpus(preset, world):
    config = config_of("--preset", preset)
    optim = config.optim
    deals = [Deal(np.arange(optim.batch_size)) for _ in range(optim.grad_accum)]
    shares = [Dealing(optim, False, Ranks(rank, world)).shares(deals) for rank in range(world)]
    assert {len(of_rank) for of_rank in shares} == {optim.grad_accum // world}  # whole micro-batches: the same bits
    numbers = sorted(share.micro_batch for of_rank in shares for share in of_rank)
    assert numbers == [*range(optim.grad_accum)]
    rows = sum(len(share.deal.items) for of_rank in shares for share in of_rank)
    assert rows * config.net.context == TOKENS[preset]


def test_the_plain_one_has_the_published_settings():
    found = flat(config_of("--preset", "gpt2-124m"))
    assert {name: found[name] for name in PUBLISHED} == PUBLISHED
    assert found["steps"] * TOKENS["gpt2-124m"] == pytest.approx(3e11, rel=0.02)


def test_the_fast_one_is_modern_on_a_hundredth_of_the_tokens():
    fast = settings_of("--preset", "gpt2-124m-fast")
    assert (fast.optimizer, fast.schedule, fast.positions, fast.activation) == ("muon", "wsd", "rope", "swiglu")
    assert (fast.momentum, fast.weight_decay, fast.lr_floor) == (0.95, 0.01, 0.0)
    assert fast.steps * TOKENS["gpt2-124m-fast"] < 0.02 * 3e11


def test_flags_and_other_texts_come_before_the_preset():
    other = settings_of("--preset", "gpt2-124m", "--data", "fineweb-sample", "--batch-size", "24", "--grad-accum", "20")
    assert (other.data, other.tokenizer, other.batch_size, other.grad_accum) == ("fineweb-sample", "gpt2", 24, 20)
    assert settings_of("--preset", "gpt2").data == "names"


def test_help_shows_them_and_their_settings(cli):
    shown = cli("train.py", "--preset", "gpt2-124m", "--help")
    text = " ".join(shown.out.replace("│", " ").split())
    assert shown.code == 0
    assert "gpt2-124m and gpt2-124m-fast" in text
    assert "(default: 600000)" in text and "(default: openwebtext)" in text


def test_another_family_has_none_of_them(cli):
    refused(cli("train.py", "--model", "gru", "--preset", "gpt2-124m"), "--preset gpt2-124m is a Transformer")
