"""Hashed n-grams: what they depend on, sparse gradients, training and resuming with them, and the presets by name."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from data.loaders import Loader
from engine.config.flags import parse
from engine.config.settings import flat
from engine.registry import build_model
from engine.training.optimizers import make_optimizers
from makemore.hashing import HashedNGrams, longer, row_of
from tests.conftest import TINY
from tests.helpers import TERM, at_call, configure, left, ok, refused, trained


def table(n: int, rows: int = 1000, width: int = 4) -> HashedNGrams:
    torch.manual_seed(0)
    hashed = HashedNGrams(n, rows, width)
    torch.nn.init.normal_(hashed.table.weight)
    return hashed


def test_each_length_has_rows_of_its_own_and_all_are_added():
    hashed = table(4)
    tokens = torch.randint(0, 50, (2, 3 + 6))
    expected = torch.zeros(2, 6, 4)
    for row in range(2):
        for place in range(6):
            number = torch.zeros((), dtype=torch.int64)
            for k, token in enumerate(reversed(tokens[row, place : place + 4].tolist())):
                number = longer(number, torch.tensor(token))
                if k:
                    expected[row, place] += hashed.table.weight[row_of(number, k, 1000) + (k - 1) * 1000]
    assert torch.allclose(hashed(tokens), expected, atol=1e-6)


def test_an_n_gram_reaches_n_tokens_back_and_no_further():
    hashed = table(3)
    tokens = torch.randint(0, 50, (1, 12))
    plain = hashed(tokens)[0]
    other = tokens.clone()
    other[0, 4] += 1
    changed = (hashed(other)[0] != plain).any(-1).nonzero().flatten().tolist()
    assert changed == [2, 3, 4]  # outputs stand for tokens 2 to 11


def test_hashes_scatter():
    """Every pair of 60 tokens, in as many rows: about 1 - 1/e of these are met, as by chance."""
    a, b = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    rows = row_of(longer(longer(torch.zeros_like(a), a), b), 1, 3600)
    assert 0.55 < len(rows.unique()) / 3600 < 0.75 and int(rows.min()) >= 0
    assert (row_of(longer(longer(torch.zeros_like(a), b), a), 1, 3600) != rows).float().mean() > 0.9


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_only_rows_that_a_batch_has_met_move(optimizer):
    config = configure(model="gru", hash_ngrams=3, hash_rows=500, optimizer=optimizer, n_layer=1, norm="none", lr=0.1)
    model = build_model(config, 20)
    tokens = torch.randint(6, 20, (2, 5))
    model(tokens, tokens).nll_sum.backward()
    weight = model.ngrams.table.weight
    assert weight.grad.is_sparse
    met = weight.grad.coalesce().indices()[0]
    assert 0 < len(met) <= 2 * 5 * 2
    for made in make_optimizers(model, config.optim):
        made.step()
    moved = weight.detach().abs().sum(1).nonzero().flatten()
    assert moved.tolist() == met.tolist()


@pytest.mark.parametrize("model", ["mlp", "cnn", "rnn", "lstm", "gru", "transformer"])
def test_every_neural_family_trains_samples_and_scores_with_them(cli, names, model):
    trained(cli, model, data=names, kind="lines", hash_ngrams=3, hash_rows=64)
    assert load_file("run/best/model.safetensors")["ngrams.table.weight"].shape[0] == 2 * 64
    ok(cli("sample.py", "run", "--num", 3, "--seed", 1))
    ok(cli("sample.py", "run", "--score", "emma"))


def test_interrupted_and_resumed_equals_never_interrupted(cli, names, tmp_path):
    flags = ("--model", "gru", "--data", names, "--kind", "lines", *TINY["gru"], "--hash-ngrams", 3, "--hash-rows", 64)
    flags += ("--steps", 20, "--eval-interval", 5, "--batch-size", 8, "--grad-accum", 2)
    ok(cli("train.py", *flags, "--out", "whole"))
    with at_call(Loader, "deal", 15, TERM):
        assert cli("train.py", *flags, "--out", "run").code == 143
    ok(cli("train.py", "--resume", "--out", tmp_path / "run"))
    assert left(tmp_path / "run") == left(tmp_path / "whole")


REFUSED = {
    "bigram": (("--model", "bigram", "--hash-ngrams", 3), "--hash-ngrams means nothing to --model bigram"),
    "ngram": (("--model", "ngram", "--hash-ngrams", 3), "--hash-ngrams means nothing to --model ngram"),
    "one": (("--hash-ngrams", 1), "hash_ngrams 1 is what the embedding of a token is already"),
    "many": (("--hash-ngrams", 17), "--hash-ngrams is 17; it has to be from 2 to 16, or 0 for none"),
    "rows": (("--hash-ngrams", 2, "--hash-rows", 0), "--hash-rows is 0; it has to be at least 1"),
    "zero init": (("--model", "gru", "--zero-init"), "--zero-init means nothing to --model gru"),
    "modern": (("--model", "gru", "--preset", "modern"), "--preset modern is a Transformer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_end_in_one_message(cli, case):
    flags, *words = REFUSED[case]
    refused(cli("train.py", *flags), *words)


def test_a_model_with_them_has_no_place_on_the_hub(cli, names):
    trained(cli, "transformer", data=names, kind="lines", preset="gpt2", hash_ngrams=3, hash_rows=64)
    refused(cli("-m export", "run", "--to", "hf", "out"), "--hash-ngrams 3 is no part of", "--preset gpt2")


def parsed(words: list[str]) -> SimpleNamespace:
    """All settings of a command line, by their names."""
    return SimpleNamespace(**flat(parse(words)[0]))


def test_presets_bring_their_optimizer_with_its_own_defaults():
    modern = parsed(["--preset", "modern"])
    default = parsed([])
    assert {**vars(default), "preset": "modern"} == vars(modern)
    assert (modern.optimizer, modern.momentum, modern.positions, modern.zero_init) == ("muon", 0.95, "rope", True)
    gpt2 = parsed(["--preset", "gpt2"])
    assert (gpt2.optimizer, gpt2.activation, gpt2.positions, gpt2.bias) == ("adamw", "gelu_tanh", "learned", True)
    for preset in ([], ["--preset", "modern"]):
        other = parsed([*preset, "--optimizer", "adamw", "--n-embd", "32"])
        assert (other.optimizer, other.momentum, other.weight_decay, other.n_embd) == ("adamw", 0.9, 0.1, 32)
    for preset, sizes in {"makemore": (4, 64), "nanogpt-cpu": (4, 128), "nanogpt": (6, 384)}.items():
        peer = parsed(["--preset", preset])
        assert (peer.optimizer, peer.positions, peer.qk_norm, peer.activation) == ("adamw", "learned", False, "gelu")
        assert (peer.n_layer, peer.n_embd) == sizes


@pytest.mark.parametrize(
    ("preset", "optimizer", "positions"), [("gpt2", "adamw", "learned"), ("modern", "muon", "rope")]
)
def test_what_goes_on_from_a_run_keeps_its_optimizer(cli, names, preset, optimizer, positions):
    run = trained(cli, "transformer", data=names, kind="lines", preset=preset)
    config = parsed(["--init", str(run)])
    assert (config.optimizer, config.positions) == (optimizer, positions)


def test_the_parents_optimizer_is_a_default_and_its_parts_are_its_own(cli, names, tmp_path):
    run = trained(cli, "transformer", data=names, kind="lines", preset="modern")
    (tmp_path / "c.json").write_text('{"optimizer": "sgd", "lr": 0.3}')
    config = parsed(["--init", str(run), "--config", str(tmp_path / "c.json")])
    assert (config.optimizer, config.lr, config.positions) == ("sgd", 0.3, "rope")
    assert parsed(["--init", str(run), "--preset", "makemore"]).optimizer == "adamw"
    refused(cli("train.py", "--init", run, "--preset", "gpt2"), "--preset gpt2 sets a model's parts, and --init")


@pytest.mark.parametrize("how", ["default", "normal", "orthogonal"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "gru", "transformer"])
def test_what_was_never_met_adds_nothing(model, how):
    made = build_model(configure(model=model, hash_ngrams=3, context=8, order=3, weight_init=how), 20)
    assert not made.ngrams.table.weight.any()


def test_zero_init_makes_every_block_start_as_nothing():
    config = configure(model="transformer", zero_init=True, context=8, n_embd=16)
    model = build_model(config, 20)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("c_proj.weight"))
    tokens = torch.randint(6, 20, (2, 8))
    alone = model.head(model.ln_f(model.wte(tokens) + model.wpe(torch.arange(8)), None, residual=None))
    assert torch.allclose(model(tokens).logits, alone, atol=1e-5)
