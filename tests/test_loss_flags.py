"""The flags of the loss, by the command line: --z-loss, --logit-cap, --prompt-loss-weight; large vocabularies."""

import json

import numpy as np
import pytest
import torch

from data.batches import IGNORE
from data.conversations import Turn
from engine import load_run
from finetune.classify.classifier import Classifier
from finetune.instruct.preference import Preference
from finetune.instruct.templates import Template
from kernels.cross_entropy import linear, linear_op
from makemore import base
from tests.conftest import NAMES
from tests.helpers import evaluated, left, metrics, ok, quick, refused, summary, trained
from tests.variants import VOCAB, build, close, some_tokens

INSTRUCT = "-m finetune.instruct"
SMALL = ("--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--dropout", 0)


def log_sum_exp(run) -> float:
    model = load_run(run).model
    tokens = torch.randint(6, model.vocab_size, (200, 3), generator=torch.Generator().manual_seed(0))
    return model(tokens).logits.logsumexp(-1).square().mean().item()


@pytest.mark.parametrize("model", ["mlp", "bigram", "transformer"])
def test_a_z_loss_pulls_the_log_sum_exp_to_zero_and_is_no_part_of_the_validation(cli, names, model):
    flags = {"data": "names.txt", "kind": "lines", "lr": 0.05}
    ok(cli("train.py", *quick(model, **flags, out="plain"), "--steps", 60))
    ok(cli("train.py", *quick(model, **flags, out="pulled"), "--steps", 60, "--z-loss", 1.0))
    before, after = metrics("plain")[0], metrics("pulled")[0]
    assert before["val_loss"] == after["val_loss"] and log_sum_exp("pulled") < 0.95 * log_sum_exp("plain")


def test_a_capped_model_is_capped_wherever_it_is_used(cli, names):
    run = trained(cli, "transformer", data="names.txt", kind="lines", logit_cap=0.5)
    assert load_run(run).model(torch.tensor([[1, 7, 8]])).logits.abs().max() < 0.5
    told = evaluated(cli)
    assert told["val_loss"] == pytest.approx(summary()["val_loss"], rel=1e-6)
    ok(cli("sample.py", "run", "--num", 2))
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 8))
    assert json.load(open("run/config.json"))["config"]["logit_cap"] == 0.5
    refused(cli("train.py", "--resume", "--out", "run", "--logit-cap", 3), "--logit-cap 3.0 (the run has 0.5)")
    ok(cli("train.py", "--data", names, "--init", "run", "--steps", 2, "--eval-interval", 2, "--out", "more"))
    assert load_run("more").model.logit_cap == 0.5
    refused(cli("-m export", "run", "--to", "hf", "out"), "--logit-cap 0.5")


def test_a_run_from_before_a_flag_was_there_has_its_default(cli, names):
    trained(cli, "transformer", data="names.txt", kind="lines")
    path = names.parent / "run/config.json"
    facts = json.loads(path.read_text())
    del facts["config"]["logit_cap"], facts["config"]["z_loss"]
    path.write_text(json.dumps(facts))
    for flag, value, default in (("--logit-cap", 3.0, None), ("--z-loss", 0.1, 0.0)):
        refused(cli("train.py", "--resume", "--out", "run", flag, value), f"{flag} {value} (the run has {default})")
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 8))


REFUSED = {
    "negative": ("train.py", ("--z-loss", -1), "--z-loss is -1.0; it has to be at least 0 and finite"),
    "infinite": ("train.py", ("--z-loss", "inf"), "--z-loss is inf"),
    "counted": ("train.py", ("--model", "bigram", "--counts", "--z-loss", 1), "--z-loss given, but --counts"),
    "no cap": ("train.py", ("--logit-cap", 0), "--logit-cap is 0.0; it has to be above 0 and finite"),
    "family": ("train.py", ("--model", "gru", "--logit-cap", 3), "--logit-cap means nothing to --model gru"),
    "classes": (
        "-m finetune.classify",
        ("--model", "transformer", "--logit-cap", 3),
        "it means nothing without --lm-weight",
    ),
    "weight": (INSTRUCT, ("--prompt-loss-weight", -1), "--prompt-loss-weight is -1.0; it has to be at least 0"),
    "pairs": (
        INSTRUCT,
        ("--dpo", "--init", "run", "--data", "p.json", "--prompt-loss-weight", 1),
        "--prompt-loss-weight means nothing to --dpo",
    ),
    "pulled pairs": (
        INSTRUCT,
        ("--dpo", "--init", "run", "--data", "p.json", "--z-loss", 1),
        "--z-loss means nothing to --dpo",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_nothing_is_refused(cli, names, case):
    script, flags, message = REFUSED[case]
    if "--init" in flags:
        trained(cli, "mlp", data="names.txt", kind="lines")
    refused(cli(script, *flags), message)


def test_prompts_are_learned_with_their_weight_and_validation_stays_on_the_answers(cli, tmp_path):
    items = [{"instruction": "Say what follows:", "input": name, "output": name[0]} for name in NAMES]
    (tmp_path / "a.json").write_text(json.dumps(items))
    flags = ("--data", "a.json", *SMALL, "--steps", 30, "--eval-interval", 15, "--batch-size", 8, "--lr", 1e-2)
    ok(cli(INSTRUCT, *flags, "--out", "none"))
    ok(cli(INSTRUCT, *flags, "--prompt-loss-weight", 0, "--out", "zero"))
    ok(cli(INSTRUCT, *flags, "--prompt-loss-weight", 0.5, "--out", "half"))
    assert left(tmp_path / "none") == left(tmp_path / "zero")
    assert metrics("none")[0]["val_loss"] == metrics("half")[0]["val_loss"]
    assert metrics("half")[-1]["tokens"] > 5 * metrics("none")[-1]["tokens"], "prompts are targets too"
    prompt = [load_run(run).score("Say what follows:").loss for run in ("none", "half")]
    assert prompt[1] < 0.9 * prompt[0]
    first, later = metrics("half")[:2]
    assert 0.75 < later["train_loss"] / first["val_loss"] < 1, "a mean by the weights"
    ok(cli(INSTRUCT, "--resume", "--out", "half", "--steps", 40))


def test_what_is_learned_of_a_prompt_is_its_text_and_not_its_markers(cli, names):
    tokenizer = load_run(trained(cli, "mlp", data="names.txt", kind="lines")).tokenizer
    special, template = tokenizer.special, Template("chatml", tokenizer)
    turns = (Turn("user", "emma"), Turn("assistant", "ava"))
    plain, weighted = template.row(turns), template.row(turns, prompt_weight=0.25)
    assert plain.weight is None and np.array_equal(plain.tokens, weighted.tokens)
    learned = weighted.targets != IGNORE
    markers = np.isin([*weighted.tokens[1:], special.eos], [special.user, special.assistant])
    assert np.array_equal(learned, ~markers) and tokenizer.decode(weighted.targets[learned][:4]) == "emma"
    answer = plain.targets != IGNORE
    assert (weighted.weight[answer] == 1).all() and (weighted.weight[~answer] == 0.25).all()


def language_loss(model):
    tokens, targets = some_tokens(8), torch.full((3, 8), IGNORE)
    targets[:, -1] = torch.tensor([0, 1, 1])
    torch.manual_seed(0)
    return Classifier(model, 2, lm_weight=1.0).double().train()(tokens, targets).nll_sum


def preference(model):
    tokens, targets = some_tokens(8)[:2], some_tokens(8, seed=1)[:2]
    targets[:, :3] = IGNORE
    other = Preference(model, 0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    return other(tokens, targets).nll_sum


@pytest.mark.parametrize("caller", [language_loss, preference])
@pytest.mark.parametrize("name", ["transformer", "transformer capped", "mlp"])
def test_other_losses_hold_a_chunk_of_the_logits_of_a_large_vocabulary_too(monkeypatch, name, caller):
    found, sizes = [], []
    of_chunk = linear_op.loss_and_gradient
    monkeypatch.setattr(linear, "CHUNK_BYTES", 24 * VOCAB)
    monkeypatch.setattr(
        linear_op, "loss_and_gradient", lambda logits, *rest: sizes.append(logits.nbytes) or of_chunk(logits, *rest)
    )
    for small in (4096, 0):
        monkeypatch.setattr(base, "SMALL_VOCABULARY", small)
        model = build(name)
        if not small:
            monkeypatch.setattr(model, "head", None)  # what would hold them
        loss = caller(model)
        loss.backward()
        found.append((loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)))
        assert bool(sizes) == (small == 0)
    assert max(sizes) == 24 * VOCAB and all(close(whole, chunked) for whole, chunked in zip(*found, strict=True))
