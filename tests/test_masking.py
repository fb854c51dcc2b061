"""What is hidden of a batch, and models that say what stands there: data/masking.py, the families that read both ways,
`train.py --objective masked` and `sample.py --fill`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches import IGNORE, Batch
from data.masking import Masking
from data.tokenizers import ByteTokenizer, Special
from engine.config.flags import parse
from engine.registry import build_model
from engine.run.filling import fill, put_in
from engine.run.load import load_run
from engine.texts import make_loader, prepare_text, validation_batches, with_context
from finetune.classify.labeller import load_labeller
from makemore.base import LanguageModel, Output
from tests.helpers import configure, metrics, ok, quick, refused, trained
from tests.variants import FIXED, SMALL, VOCAB

SPECIAL = Special()
MASKED = {"objective": "masked"}


def masking(rate: float = 0.3, span: int = 2, seed: int = 1, rows_end: bool = False) -> Masking:
    return Masking(rate, span, seed, SPECIAL, rows_end)


def texts(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(6, 40, (rows, width))


def batch_of(tokens: np.ndarray) -> Batch:
    return Batch(tokens, np.full_like(tokens, IGNORE), 0)


@pytest.mark.parametrize(("rate", "span"), [(0.15, 1), (0.15, 3), (0.3, 2), (0.6, 4)])
def test_about_the_rate_of_the_tokens_is_hidden_in_spans(rate, span):
    hidden = masking(rate, span).hidden(texts(500, 80), np.arange(500), 0)
    assert abs(hidden.mean() - rate) < 0.03
    flat = np.pad(hidden, ((0, 0), (1, 1))).ravel()
    begins = (flat[1:] & ~flat[:-1]).sum()
    runs = hidden.sum() / begins  # on average; neighbouring spans make longer ones
    expected = 1 / (1 - rate) if span == 1 else 0.9 * span  # the end of a row cuts some
    assert runs >= 0.95 * expected


@FIXED
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(0, 3))
def test_the_targets_are_what_was_hidden_and_specials_never_are(rows, epoch):
    width = max(map(len, rows))
    tokens = np.array([row + [SPECIAL.pad] * (width - len(row)) for row in rows])
    found = masking()(batch_of(tokens.copy()), np.arange(len(rows)), epoch)
    hidden = found.targets != IGNORE
    assert (found.targets[hidden] == tokens[hidden]).all() and (found.tokens[hidden] == SPECIAL.unk).all()
    assert (found.tokens[~hidden] == tokens[~hidden]).all() and (tokens[hidden] > 5).all()
    assert found.n_tokens == hidden.sum()
    assert (hidden.any(1) == (tokens > 5).any(1)).all(), "of every row that has a token to hide one is"


def test_what_is_hidden_follows_from_seed_epoch_and_item_alone():
    tokens, items = texts(6, 30), np.arange(6) + 10
    whole = masking().hidden(tokens, items, 2)
    assert (masking().hidden(tokens[3:], items[3:], 2) == whole[3:]).all()
    wider = np.pad(tokens, ((0, 0), (0, 5)), constant_values=SPECIAL.pad)
    assert (masking().hidden(wider, items, 2)[:, :30] == whole).all()
    for other in (masking().hidden(tokens, items, 3), masking(seed=2).hidden(tokens, items, 2)):
        assert (other != whole).any()


@pytest.fixture
def data(names, cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def of(*flags):
        words = [str(flag) for flag in quick("lstm", data=names, objective="masked", **dict(flags))]
        config, _ = parse([*words, "--kind", "lines"])
        store = prepare_text(config, None)
        return with_context(config, store), store

    return of


def test_batches_are_the_same_after_a_resume_and_in_any_share(data):
    config, store = data()
    loader, later = make_loader(config, store), make_loader(config, store)
    for _ in range(len(store.train.offsets) // config.optim.batch_size + 3):  # into the second epoch
        position, expected = loader.state_dict(), loader.next()
    later.load_state_dict(position)
    deal = later.deal()
    assert deal.epoch == 1
    again = later.batch(deal)
    assert (again.tokens == expected.tokens).all() and (again.targets == expected.targets).all()
    for rank in range(2):
        part = later.batch(deal.share(rank, 2))
        mine = np.array_split(expected.targets, 2)[rank]
        assert (part.targets == mine[:, : part.targets.shape[1]]).all()


def test_every_seed_is_validated_on_the_same_gaps(data):
    (one, store), (other, _) = data(), data(("seed", 7))
    pairs = zip(validation_batches(one, store, 0)(), validation_batches(other, store, 0)(), strict=True)
    assert all((a.tokens == b.tokens).all() and a.n_tokens for a, b in pairs)


FAMILIES = {
    "transformer": {}, "transformer alibi": {"positions": "alibi"}, "transformer hashed": {"hash_ngrams": 2},
    "transformer window": {"positions": "rope", "window": 6},
    "transformer batch": {"norm": "batch"}, "transformer grouped": {"n_kv_head": 2, "value_embeddings": True},
    "lstm": {}, "gru": {}, "rnn": {}, "lstm written": {"cells": "written"}, "gru batch": {"norm": "batch"},
}  # fmt: skip
every_family = pytest.mark.parametrize("name", FAMILIES)


def build(name: str) -> LanguageModel:
    config = configure(**{**SMALL, "model": name.split()[0], "norm": "layer", **FAMILIES[name], **MASKED})
    torch.manual_seed(0)
    model = build_model(config, VOCAB).double()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


def rows(*lengths: int) -> torch.Tensor:
    tokens = torch.randint(6, VOCAB, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = SPECIAL.pad
    return tokens


@every_family
def test_every_place_sees_what_comes_before_and_after(name):
    model, tokens = build(name), rows(6)
    before = model(tokens).logits
    for t in range(6):
        changed = tokens.clone()
        changed[0, t] = 6 + (changed[0, t] - 5) % (VOCAB - 6)
        difference = (model(changed).logits - before).abs().amax(-1)[0]
        assert (difference > 1e-9).all()


@every_family
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(name, training):
    model, tokens = build(name), rows(7, 3, 5)
    model.train(training and "batch" not in name)  # statistics of a batch are another with another batch
    targets = torch.full_like(tokens, IGNORE)
    for row, place in ((0, 1), (1, 2), (2, 0)):
        targets[row, place] = 8
    together = model(tokens, targets)
    alone = [model(tokens[i : i + 1, :n], targets[i : i + 1, :n]) for i, n in enumerate((7, 3, 5))]
    torch.testing.assert_close(together.nll_sum, sum(each.nll_sum for each in alone))
    for i, n in enumerate((7, 3, 5)):
        torch.testing.assert_close(together.logits[i, :n], alone[i].logits[0])


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_a_layer_both_ways_is_torchs_own(name):
    config = configure(**{**SMALL, "model": name, "norm": "none", "n_layer": 1, **MASKED})
    model = build_model(config, VOCAB).double().eval()
    theirs = type(model.layers[0])(16, 6, batch_first=True, bidirectional=True).double()
    for part, ours in (("l0", model.layers[0]), ("l0_reverse", model.backward_layers[0])):
        for name_, weight in ours.named_parameters():
            theirs.get_parameter(name_.replace("l0", part)).data.copy_(weight)
    tokens = rows(7)
    torch.testing.assert_close(model.hidden(tokens, None, None)[0], theirs(model.wte(tokens))[0])


def test_a_text_that_is_read_both_ways_is_whole():
    model = build("gru")
    with pytest.raises(ValueError, match="no state before it"):
        model.hidden(rows(4), {"h0": torch.zeros(1, 12)}, None)
    with pytest.raises(ValueError, match="--n-hidden 13 is odd"):
        build_model_with(n_hidden=13)


def build_model_with(**settings):
    from makemore.recurrent import GRU

    return GRU(VOCAB, configure(**{**SMALL, "model": "gru", **MASKED, **settings}).net)


class Says(LanguageModel):
    """Of every hidden place the token 7 with 0.6 and 8 with 0.3; where a neighbour is 7, it is 8 with 0.9."""

    causal = False

    def __init__(self):
        torch.nn.Module.__init__(self)

    def forward(self, tokens, targets=None, state=None, **options):
        p = torch.full((*tokens.shape, 10), 0.02)
        p[..., 7], p[..., 8] = 0.6, 0.3
        p[0, 2, 7] = 0.7
        beside = torch.zeros_like(tokens, dtype=torch.bool)
        beside[:, 1:] |= tokens[:, :-1] == 7
        beside[:, :-1] |= tokens[:, 1:] == 7
        p[beside] = torch.tensor([0.01] * 8 + [0.9, 0.01])
        return Output(p.log(), None, None, {})


def test_the_surest_gap_is_filled_first_and_the_others_know_of_it():
    filled, gaps = fill(Says(), torch.tensor([9, 3, 3, 9]), [1, 2], 2, list(SPECIAL))
    assert filled == [9, 8, 7, 9]
    first, second = gaps
    assert (first.token, second.token) == (8, 7)
    assert [i for i, _ in first.likeliest] == [7, 8], "while both were open"
    assert first.logprob == pytest.approx(np.log(0.9 / 0.93), abs=1e-6)


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_a_run_fills_gaps_and_resumes_exactly(cli, names, family):
    flags = {"data": names, "kind": "lines", "objective": "masked"}
    ok(cli("train.py", *quick(family, out="whole", **flags)))
    ok(cli("train.py", *quick(family, out="parts", **flags), "--steps", 3))
    ok(cli("train.py", "--resume", "--out", "parts", "--steps", 6))
    assert [line["val_loss"] for line in metrics("parts")][-1] == [line["val_loss"] for line in metrics("whole")][-1]
    said = ok(cli("sample.py", "whole", "--fill", "a?n?", "--json", "--logprobs", 3)).out
    found = json.loads(said)
    assert len(found["text"]) == 4 and found["text"][0] == "a" and found["text"][2] == "n"
    assert [len(gap["top_logprobs"]) for gap in found["gaps"]] == [3, 3]
    assert found["text"][1] == found["gaps"][0]["token"] and found["gaps"][0]["logprob"] < 0
    again = json.loads(ok(cli("train.py", "--eval-only", "--out", "whole")).out)
    assert again["val_loss"] == pytest.approx(metrics("whole")[-1]["val_loss"], abs=1e-6)
    shown = ok(cli("sample.py", "whole", "--fill", "a_na", "--gap", "_")).out.splitlines()
    assert len(shown[0]) == 4 and "likeliest" in shown[1] and len(shown) == 3
    refused(cli("sample.py", "whole", "--fill", "?a?Ñ"), "character 'Ñ' (position 3)")
    kept = json.loads(ok(cli("sample.py", "whole", "--fill", "Ñ?Öa?Ñ", "--unknown", "skip", "--json")).out)
    assert re.fullmatch("Ñ.Öa.Ñ", kept["text"]) and len(kept["gaps"]) == 2


def test_gaps_side_by_side_may_hold_the_bytes_of_one_character():
    tokenizer = ByteTokenizer()
    bytes_ = [token for letter in ("é", "日", "x") for token in tokenizer.encode(letter).tolist()]
    assert put_in(tokenizer, "??ab????", "?", bytes_) == "éab日x"
    assert put_in(tokenizer, "?", "?", bytes_[2:3]) == "\ufffd"


def test_a_stream_has_gaps_too(cli, text):
    ok(cli("train.py", *quick("gru", data=text, objective="masked", context=16, hash_ngrams=2)))
    run = load_run("run", device="cpu")
    known = run.tokenizer.decode([6, 7, 8])
    filled = run.fill(f"{known}#{known}", gap="#", likeliest=0)
    assert filled.text.startswith(known) and len(filled.text) == 7 and not filled.gaps[0].likeliest
    assert "->" in Path("run/samples.txt").read_text("utf-8")


@pytest.fixture
def masked_run(cli, names):
    return trained(cli, "transformer", data=names, kind="lines", objective="masked")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sample.py", "run"], "learned to fill gaps"),
        (["sample.py", "run", "--score", "anna"], "learned to fill gaps"),
        (["sample.py", "run", "--fill", "anna"], "--fill has no gap: put a ?"),
        (["sample.py", "run", "--fill", "?" * 200], "reads 10 at a time"),
        (["sample.py", "run", "--fill", "a?", "--num", 3], "--num"),
        (["sample.py", "run", "--fill", "a?", "--gap", "??"], "--gap is '??'"),
        (["-m export", "run", "--to", "web", "page"], "learned to fill gaps"),
        (["-m export", "run", "--to", "hf", "page"], "learned to fill gaps"),
        (["train.py", *quick("gru", out="new"), "--teacher", "run"], "learned to fill gaps"),
        (["-m finetune.instruct", "--init", "run", "--out", "new"], "what can start from it labels texts"),
        (["train.py", *quick("gru", out="new"), "--mask-rate", "0.2"], "--mask-rate means nothing without"),
        (["train.py", *quick("gru", out="new"), "--objective", "masked", "--mix-ngram", 3], "--mix-ngram is about"),
        (["train.py", *quick("gru", out="new"), "--objective", "masked", "--carry-state"], "--carry-state is about"),
        (["train.py", *quick("cnn", out="new"), "--objective", "masked"], "--objective means nothing to --model cnn"),
        (["-m finetune.classify", "--init", "run", "--look-ahead", 3, "--out", "new"], "every token is seen"),
        (["-m explain", "run", "--what", "lens", "--text", "anna"], "expects no next token"),
        (["-m explain", "run", "--what", "groups", "--data", "names.tsv"], "learned to fill gaps"),
        (["-m tune", "--try", "objective=next,masked", "--out", "new"], "--objective changes what"),
        (["-m makemore.scratch.train", "--objective", "masked"], "--objective"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_message(cli, names, masked_run, command, said):
    command = [str(word) for word in command]
    Path("names.tsv").write_text("text\tlabel\nanna\tone\notto\ttwo\n", "utf-8")
    if command[0] == "train.py":
        command += ["--data", str(names), "--kind", "lines"]
    refused(cli(*command), said)


def test_gates_are_of_models_that_read_forwards(cli, names):
    trained(cli, "lstm", data=names, kind="lines", objective="masked")
    refused(cli("-m explain", "run", "--what", "gates", "--text", "anna"), "reads both ways")


def test_attention_and_units_of_one_that_reads_both_ways_are_shown(cli, masked_run):
    ok(cli("-m explain", "run", "--what", "attention", "--text", "anna"))
    weights = np.array(json.loads(Path("explained/attention.json").read_text())["weights"])  # (L, H, T, T)
    assert weights[..., 0, 1:].min() > 0
    ok(cli("-m explain", "run", "--what", "neurons", "--text", "anna"))


def test_a_classifier_starts_from_it_and_reads_both_ways(cli, names, masked_run):
    flags = ["--steps", 4, "--eval-interval", 2, "--no-baseline", "--pooling", "mean"]
    ok(cli("-m finetune.classify", "--init", "run", *flags, "--out", "labels"))
    labeller = load_labeller("labels", "best", "cpu")
    body = labeller.model.body
    assert not body.causal
    both = labeller(["Nakamura", "Na"])
    assert np.allclose(both[1], labeller(["Na"])[0], atol=1e-6), "beside a longer one or alone"
    ok(cli("-m finetune.classify", "--model", "gru", "--objective", "masked", *flags, "--out", "new"))
    assert load_labeller("new", "best", "cpu").model.body.backward_layers is not None


def test_help_tells_of_masks_who_asks_for_them(cli):
    assert "--mask-rate" not in ok(cli("train.py", "--help")).out
    assert "--mask-rate" in ok(cli("train.py", "--objective", "masked", "--help")).out
