"""`finetune.translate --spans`: pairs out of texts without translations, and `--init` from a run that learned them."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pairs.pair import TextPair
from data.pairs.spans import MARK, WAYS, hidden
from finetune.translate.translator import load_translator
from tests.helpers import left, metrics, ok, refused
from tests.variants import FIXED

MODULE = "-m finetune.translate"
FEW = ["--steps", 4, "--eval-interval", 2, "--batch-size", 4, "--n-embd", 8]
SIZES = {"gru": ["--n-hidden", 12], "transformer": ["--n-layer", 1, "--n-head", 2]}


@FIXED
@given(st.lists(st.text("abcdefg ", min_size=1, max_size=20), min_size=1, max_size=5), st.integers(0, 9))
def test_what_was_hidden_put_back_gives_the_text(texts, seed):
    pairs = hidden([TextPair(text, "") for text in texts], seed, WAYS)
    assert len(pairs) == WAYS * len(texts)
    for text, pair in zip([text for text in texts for _ in range(WAYS)], pairs, strict=True):
        parts, gaps = pair.text.split(MARK), pair.target.split(MARK)
        assert len(parts) == len(gaps) + 1 and all(gaps)
        assert parts[0] + "".join(gap + part for gap, part in zip(gaps, parts[1:], strict=True)) == text


def test_a_text_is_hidden_in_several_ways_the_same_ones_each_time():
    texts = [TextPair("the sea, the sea and the sea", "")]
    pairs = hidden(texts, 1, WAYS)
    assert len({pair.text for pair in pairs}) == WAYS and pairs == hidden(texts, 1, WAYS)
    assert pairs != hidden(texts, 2, WAYS)


@pytest.fixture
def pairs(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [letters[i % 26 :][:5] + letters[: 3 + i % 4] for i in range(60)]
    Path(tmp_path, "pairs.tsv").write_text("".join(f"{word}\t{word.upper()}\n" for word in words), "utf-8")
    return "pairs.tsv"


@pytest.mark.parametrize("model", SIZES)
def test_a_run_starts_from_one_that_learned_spans(cli, names, pairs, model):
    sizes = ["--model", model, *FEW, *SIZES[model]]
    ok(cli(MODULE, "--data", names, "--spans", *sizes, "--out", "spans"))
    said = [json.loads(line) for line in Path("spans/generations.jsonl").read_text("utf-8").splitlines()]
    assert said and all(MARK in each["source"] for each in said)
    start = ["--init", "spans", "--extend-vocabulary", *FEW[:6], "--lr", 1e-9]
    ok(cli(MODULE, "--data", pairs, *start, "--optimizer", "adamw", "--weight-decay", 0, "--out", "new"))
    parent, child = load_translator("spans", device="cpu"), load_translator("new", device="cpu")
    assert "Z" in child.tokenizer.alphabet and "Z" not in parent.tokenizer.alphabet
    there = child.model.state_dict()
    for name, weight in parent.model.state_dict().items():
        slices = tuple(slice(0, size) for size in weight.shape)
        torch.testing.assert_close(there[name][slices], weight, atol=1e-5, rtol=0)
    refused(cli(MODULE, "--data", pairs, "--init", "spans", "--n-embd", 16, "--out", "other"), "--n-embd 16 (the run")


def test_it_resumes_exactly(cli, names):
    flags = ["--data", names, "--spans", "--model", "gru", *FEW, *SIZES["gru"]]
    ok(cli(MODULE, *flags, "--out", "whole"))
    ok(cli(MODULE, *flags, "--steps", 2, "--out", "parts"))
    ok(cli(MODULE, "--resume", "--out", "parts", "--steps", 4))
    assert metrics("parts")[-1]["val_loss"] == metrics("whole")[-1]["val_loss"]
    assert left(Path("parts"))["best/model.safetensors"] == left(Path("whole"))["best/model.safetensors"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "dates", "--spans"], "--spans means nothing to the bundled dates"),
        (["--data", "hours", "--spans"], "hours is a series of numbers"),
        (["--data", "enwik8:nothing", "--spans"], "'enwik8' has no part 'nothing'"),
        (["--data", "marked.txt", "--spans"], "marked.txt line 2 has a '_'"),
        (["--data", "empty.txt", "--spans"], "empty.txt has no lines"),
        (["--data", "nothing.txt", "--spans"], "no such file: nothing.txt"),
        (["--init", "plain"], "plain is not a run of"),
        (["--init", "nowhere"], "nowhere"),
        (["--init", "gpt2:weights"], "gpt2:weights"),
    ],
)
def test_what_cannot_be_is_one_message(cli, names, flags, said):
    Path("marked.txt").write_text("anna\nan_na\n", "utf-8")
    Path("empty.txt").write_text("\n \n", "utf-8")
    if "plain" in flags:
        ok(cli("train.py", "--data", names, "--kind", "lines", "--model", "bigram", "--steps", 2, "--out", "plain"))
    refused(cli(MODULE, *flags, *FEW, "--out", "new"), said)
