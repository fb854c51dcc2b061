"""Mixtures with counts: what a part's counts say of the others, loss and gradient, and runs on the command line."""

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from data.batches import IGNORE
from data.tokenizers import Special
from engine.registry import build_model
from engine.run.load import load_run
from makemore.config import NGramConfig
from makemore.counts.folds import leave_one_out
from makemore.counts.left_out import LeftOutCounts
from makemore.counts.levels import context_token, count, discounts
from makemore.counts.mixture import FOLDS
from makemore.counts.ngram import NGram
from tests.conftest import TINY
from tests.helpers import configure, ok, refused, trained
from tests.matrices import matrix

FIXED = settings(max_examples=25, deadline=None, derandomize=True)
BOS, A = 1, 6  # the first id that is no special
VOCAB = A + 4


def by_hand(ids, starts, fold, order, i) -> tuple[float, list[float]]:
    """Likelihood of target `i` and confidence of its context when all of its fold is left out, counted from nothing
    but for the discounts."""
    positions = range(len(ids))
    row = [max(s for s in starts if s <= j) for j in positions]

    def context(j: int, k: int) -> tuple:
        return tuple(ids[b] if b >= row[j] else BOS for b in range(j - k, j))

    p, confidence = 1 / (VOCAB - A + 1), []  # `<eos>` may come too
    for k in range(order):
        tables = {}
        for name, kept in (("all", positions), ("rest", [j for j in positions if fold[j] != fold[i]])):
            if k == order - 1:
                tables[name] = Counter((context(j, k), ids[j]) for j in kept)
            else:
                longer = {(context(j, k + 1), ids[j]) for j in kept}
                tables[name] = Counter((before[1:], target) for before, target in longer)
        discount = discounts(np.array(list(tables["all"].values())))
        after = {target: n for (before, target), n in tables["rest"].items() if before == context(i, k)}
        total = sum(after.values())
        backoff_weight = sum(discount[min(n, 3)] for n in after.values()) / total if total else 1
        if total:
            n = after.get(ids[i], 0)
            p = (n - discount[min(n, 3)]) / total + backoff_weight * p
        confidence += [math.log1p(total), backoff_weight]
    return p, confidence


@FIXED
@given(
    ids=st.lists(st.integers(A, VOCAB - 1), min_size=4, max_size=40),
    order=st.integers(1, 4),
    folds=st.integers(1, 5),
    cuts=st.sets(st.integers(1, 39), max_size=4),
)
def test_leaving_a_fold_out_equals_never_having_counted_it(ids, order, folds, cuts):
    starts = sorted({0, *(cut for cut in cuts if cut < len(ids))})
    position = np.concatenate([np.arange(b - a) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)])
    targets = np.array(ids)
    inputs = np.where(position == 0, BOS, np.roll(targets, 1))
    fold = np.arange(len(ids)) * folds // len(ids)
    levels = count(inputs, targets, position, order, VOCAB)
    likelihood, confidence = leave_one_out(levels, inputs, targets, position, fold, VOCAB, 1 / (VOCAB - A + 1), BOS)
    for i in range(len(ids)):
        p, sure = by_hand(ids, starts, fold, order, i)
        assert math.isclose(likelihood[i], p, rel_tol=1e-4), i
        assert np.allclose(confidence[i], sure, rtol=1e-4, atol=1e-6), i


def mixture_of_noise(seed: int = 0, **options):
    """A mixture of an MLP and counts of a text of 200 random tokens, and that text."""
    torch.manual_seed(seed)
    config = configure(model="mlp", n_layer=1, n_embd=8, n_hidden=8, order=3, norm="none", mix_ngram=3, **options)
    model = build_model(config, VOCAB).double()
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    ids = np.random.default_rng(seed).integers(A, VOCAB, 200)
    model.count(ids[:-1], ids[1:], np.arange(199))
    return model, torch.from_numpy(ids)


def test_the_state_says_what_stood_before_a_row():
    model, ids = mixture_of_noise()
    model.eval()
    state = model.start(ids[None, 9:10], None)
    alone = model.neural(ids[None, 10:20]).logits.log_softmax(-1)
    knowing, unknowing = model(ids[None, 10:20], state=state).logits, model(ids[None, 10:20]).logits
    assert not torch.allclose(knowing[:, 0], unknowing[:, 0]) and torch.allclose(knowing[:, 1:], unknowing[:, 1:])
    whole = model.counts(ids[None, :20]).logits[:, 10:]
    weights = model.gate(model.neural.hidden(ids[None, 10:20], None, None)[0], model.counts.confidence(
        model.counts.context_tokens(ids[None, 10:20], state)[0])[None])  # fmt: skip
    assert torch.allclose(knowing, torch.logaddexp(weights[..., :1] + alone, weights[..., 1:] + whole), atol=1e-5)


def test_in_training_the_loss_is_that_of_counts_without_the_part_that_a_row_is_in():
    model, ids = mixture_of_noise()
    tokens, targets = ids[None, 30:40], ids[None, 31:41].clone()
    targets[0, 4] = IGNORE
    out = model.train()(tokens, targets, model.start(None, torch.tensor([30])), want_logits=False)
    inside = np.arange(199) * FOLDS // 199
    levels = count(ids[:-1].numpy(), ids[1:].numpy(), np.arange(199), 3, VOCAB)
    known, sure = leave_one_out(levels, ids[:-1].numpy(), ids[1:].numpy(), np.arange(199), inside, VOCAB, 1 / 5, BOS)
    hidden = model.neural.hidden(tokens, None, None)[0]
    weights = model.gate(hidden, torch.from_numpy(sure[30:40])[None])
    own = model.neural(tokens).logits.log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    mixed = torch.logaddexp(
        weights[..., 0] + own, weights[..., 1] + torch.from_numpy(known[30:40]).double().log()[None]
    )
    valid = targets != IGNORE
    assert math.isclose(out.nll_sum.item(), -mixed[valid].sum().item(), rel_tol=1e-6) and out.n_tokens == 9
    assert out.state["position"].tolist() == [40]

    out.nll_sum.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (-(mixed + own)[valid].sum() / 2).backward()
    assert all(torch.allclose(a, p.grad, rtol=1e-4, atol=1e-6) for a, p in zip(found, model.parameters(), strict=True))


def test_a_row_carried_on_goes_by_its_place():
    model, ids = mixture_of_noise()
    tokens, targets = ids[None, 30:40], ids[None, 31:41]
    whole = model(tokens, targets, model.start(None, torch.tensor([30])))
    first = model(tokens[:, :6], targets[:, :6], model.start(None, torch.tensor([30])))
    state = {name: part.detach() for name, part in first.state.items()}
    second = model(tokens[:, 6:], targets[:, 6:], state)
    assert math.isclose(whole.nll_sum.item(), (first.nll_sum + second.nll_sum).item(), rel_tol=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=st.lists(st.lists(st.integers(A, VOCAB - 1), min_size=1, max_size=9), min_size=2, max_size=30))
def test_what_training_reads_of_counts_equals_never_having_counted_its_part(rows):
    order, special = 4, Special()
    position = np.concatenate([np.arange(len(row)) for row in rows])
    targets = np.concatenate(rows)
    inputs = np.where(position == 0, BOS, np.roll(targets, 1))
    left_out = LeftOutCounts(VOCAB, NGramConfig(order=order), special)
    left_out.leave_out(count(inputs, targets, position, order, VOCAB), inputs, targets, position)
    part = left_out.part.numpy()
    assert part.tolist() == [i % 10 for i, row in enumerate(rows) for _ in row]
    context_tokens = np.stack([context_token(inputs, position, k) for k in range(1, order)])
    found = left_out.distribution(torch.from_numpy(context_tokens), left_out.part.long())
    for i in set(part):
        rest, alone = part != i, NGram(VOCAB, NGramConfig(order=order), special)
        alone.fit(inputs[rest], targets[rest], position[rest])
        wanted = alone.distribution(torch.from_numpy(context_tokens[:, part == i]))
        assert torch.allclose(found[part == i], wanted, rtol=1e-5), i


@pytest.mark.parametrize("more", [(), ("--count-inputs",)], ids=["mixed", "read"])
@pytest.mark.parametrize("kind", ["stream", "lines"])
def test_counts_are_not_trusted_for_containing_the_answer(cli, tmp_path, kind, more):
    """Characters at random: counts know their own text by heart and are of no use for another."""
    letters = np.random.default_rng(0).choice(list("abcdefgh"), (4000, 8))
    (tmp_path / "noise.txt").write_text("\n".join(map("".join, letters)))
    flags = ("--data", "noise.txt", "--kind", kind, "--model", "mlp", *TINY["mlp"], "--mix-ngram", 6, *more)
    ok(cli("train.py", *flags, "--steps", 150, "--eval-interval", 150, "--lr", 0.01, "--out", "run"))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["val_loss"] < math.log(9) + 0.03 and summary["train_loss"] > 2
    ok(cli("train.py", "--data", "noise.txt", "--kind", kind, "--model", "ngram", "--order", 6, "--out", "alone"))
    assert json.loads((tmp_path / "alone/summary.json").read_text())["val_loss"] > summary["val_loss"]


MIXED = [*TINY, *(f"{model} reads" for model in TINY if model != "bigram")]


@pytest.mark.parametrize("case", matrix(MIXED, ["mlp", "lstm", "transformer", "transformer reads"]))
def test_every_neural_family_trains_evaluates_samples_and_scores_mixed(cli, names, case):
    model, *reads = case.split()
    run = trained(cli, model, data=names, kind="lines", mix_ngram=3, **({"count_inputs": True} if reads else {}))
    fixed, trained_ = (load_file(run / which / "model.safetensors") for which in ("base", "best"))
    assert all(name.startswith("counts.") for name in fixed) and "gate.c_fc.weight" in trained_
    assert not set(fixed) & set(trained_)
    again = json.loads(ok(cli("train.py", "--eval-only", "--out", run)).out)
    assert again["val_loss"] == pytest.approx(json.loads((run / "summary.json").read_text())["val_loss"], rel=1e-6)
    ok(cli("sample.py", "run", "--num", 3, "--seed", 1))
    ok(cli("sample.py", "run", "--score", "emma"))


def test_a_stream_is_evaluated_with_its_true_history(cli, text):
    run = load_run(trained(cli, "mlp", data=text, context=8, mix_ngram=5))
    content = text.read_text()
    ids = [BOS] * 3 + run.tokenizer.encode(content[int(len(content) * 0.9) :]).tolist()
    nll, count = 0.0, 0  # contexts of 4 tokens, the last of which the window has itself
    for i in range(3, len(ids) - 1, 8):
        window = torch.tensor([ids[i : i + 9]])
        out = run.model(window[:, :-1], window[:, 1:], run.model.start(torch.tensor([ids[i - 3 : i]]), None))
        nll, count = nll + out.nll_sum.item(), count + int(out.n_tokens)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["val_tokens"] == count and summary["val_loss"] == pytest.approx(nll / count, rel=1e-5)


def test_a_run_that_was_killed_before_its_counts_were_stored_goes_on(cli, names):
    run = trained(cli, "mlp", data=names, kind="lines", mix_ngram=3)
    before = load_file(run / "best/model.safetensors")
    for name in ("base", "best", "last"):
        shutil.rmtree(run / name)
    ok(cli("train.py", "--resume", "--out", "run"))
    after = load_file(run / "best/model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    ok(cli("sample.py", "run"))


def test_a_mixture_can_begin_from_another_and_counts_its_own_text(cli, names, text):
    trained(cli, "mlp", data=names, kind="lines", mix_ngram=3, tokenizer="byte")
    ok(cli("train.py", "--init", "run", "--data", text, "--kind", "stream", "--steps", 2, "--out", "next"))
    first, second = (load_file(f"{name}/base/model.safetensors") for name in ("run", "next"))
    assert first["counts.grams_2"].shape != second["counts.grams_2"].shape
    ok(cli("sample.py", "next", "--prompt", "a"))


def test_fine_tuning_goes_on_from_the_neural_model_alone(cli, names, tmp_path):
    trained(cli, "gru", data=names, kind="lines", mix_ngram=3, tokenizer="byte")
    rows = "".join(f"{'ab'[i % 2]}\t{'ab'[i % 2]} name {i}\n" for i in range(60))
    (tmp_path / "set.tsv").write_text(f"label\ttext\n{rows}")
    flags = ("--data", "set.tsv", "--init", "run", "--steps", 2, "--eval-interval", 2, "--out", "labels")
    ok(cli("-m finetune.classify", *flags))
    assert not [name for name in load_file("labels/best/model.safetensors") if "counts" in name or "gate" in name]


def test_fine_tuning_does_not_begin_from_what_reads_counts(cli, names, tmp_path):
    trained(cli, "gru", data=names, kind="lines", mix_ngram=3, count_inputs=True, tokenizer="byte")
    (tmp_path / "set.tsv").write_text("label\ttext\n" + "".join(f"{'ab'[i % 2]}\tname {i}\n" for i in range(60)))
    refused(cli("-m finetune.classify", "--data", "set.tsv", "--init", "run"), "run reads the counts of its own text")


REFUSED = {
    "read alone": (("--count-inputs",), "--count-inputs reads the counts of --mix-ngram; give both"),
    "read by none": (("--model", "bigram", "--count-inputs"), "--count-inputs means nothing to --model bigram"),
    "ngram": (("--model", "ngram", "--mix-ngram", 3), "--mix-ngram means nothing to --model ngram"),
    "counted": (("--model", "bigram", "--counts", "--mix-ngram", 3), "--mix-ngram given, but --counts counts once"),
    "many": (("--mix-ngram", 17), "--mix-ngram is 17; it has to be from 1 to 16, or 0 for none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_end_in_one_message(cli, case):
    flags, *words = REFUSED[case]
    refused(cli("train.py", *flags), *words)


@pytest.mark.parametrize("format_", ["hf", "onnx"])
def test_a_mixture_is_not_exported(cli, names, format_):
    trained(cli, "transformer", data=names, kind="lines", mix_ngram=3)
    refused(cli("-m export", "run", "--to", format_, "out"), "mixes with counts (--mix-ngram)")
