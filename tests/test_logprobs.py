"""Samples with the probabilities of their tokens: the model's own, and those that the server gives."""

import json
import math

import pytest

from engine import load_run
from engine.run import likeliest
from engine.run.company import Company
from engine.run.healing import heal
from makemore.base import PART
from tests.helpers import FAMILIES, LINES, STREAM, ok, trained, trained_any
from tests.matrices import matrix
from tests.test_scoring import logits_after

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def samples(cli, *flags) -> list[dict]:
    """The lines of `sample.py run --json`."""
    return [json.loads(line) for line in ok(cli("sample.py", "run", "--json", "--seed", 1, *flags)).out.splitlines()]


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("kind", matrix([LINES, STREAM], [STREAM]), ids=lambda kind: kind["data"])
def test_probabilities_are_the_models_own_and_change_no_sample(cli, model, kind):
    """A context of 12 is passed; temperature, cuts and penalty shape what is drawn and not what is told."""
    trained_any(cli, model, **kind)
    flags = ["--num", 2, "--prompt", "el", "--max-new-tokens", 25, "--temperature", 0.5, "--top-k", 9]
    flags += ["--repetition-penalty", 1.2]
    found, plain = samples(cli, *flags, "--logprobs", 3), samples(cli, *flags)
    assert [{name: value for name, value in one.items() if name != "logprobs"} for one in found] == plain
    run = load_run("run")
    texts = {run.token_text(i): i for i in range(run.model.vocab_size)}
    for one in found:
        ids = run.prompt_ids("el")
        for each in one["logprobs"]:
            logits = logits_after(run, ids).double()
            logits[run.suppressed] = -math.inf
            log_p = logits.log_softmax(-1)
            ids.append(texts[each["token"]])
            assert each["logprob"] == pytest.approx(float(log_p[ids[-1]]), abs=1e-5)
            likeliest = [top["logprob"] for top in each["top_logprobs"]]
            assert likeliest == pytest.approx(log_p.topk(3).values.tolist(), abs=1e-5)
            assert likeliest == pytest.approx(
                [float(log_p[texts[top["token"]]]) for top in each["top_logprobs"]], abs=1e-5
            )
        assert run.tokenizer.decode(ids) == one["text"]


WISHES = [
    {"temperature": 0.8}, {"stop": ("a", " th")}, {"repetition_penalty": 1.3}, {"min_new_tokens": 6, "stop": "e"},
]  # fmt: skip


@pytest.mark.parametrize("flags", [{}, {"tokenizer": "bpe:300", "mix_ngram": 3}], ids=["char", "healed mixture"])
def test_a_sample_is_told_what_the_server_tells(cli, flags, monkeypatch):
    """Also where a text is read in several parts."""
    trained(cli, "gru", **STREAM, **flags)
    run = load_run("run")
    for seed in range(12):
        prompt = ("the ", "", "wh")[seed % 3]
        wish = {"seed": seed, "max_new_tokens": 20} | WISHES[seed % len(WISHES)]
        company, ids = Company(run), run.prompt_ids(prompt)
        healing = heal(run.tokenizer, ids, run.prompt_ids()) if prompt else None
        company.join(ids, run.request(**wish), healing, logprobs=4)
        drawn = []
        while company.members:
            drawn += [each for _, each in company.step()]
        monkeypatch.setattr(likeliest, "PART", 3 if seed % 2 else PART)
        (one,) = run.samples(prompt, logprobs=4, **wish)
        assert one.new == "".join(each.text for each in drawn)
        assert [token.text for token in one.tokens] == [run.token_text(each.id) for each in drawn]
        assert [token.logprob for token in one.tokens] == pytest.approx([each.logprob for each in drawn], abs=1e-5)
        for token, each in zip(one.tokens, drawn, strict=True):
            assert [p for _, p in token.likeliest] == pytest.approx([p for _, p in each.likeliest], abs=1e-5)


def test_a_table_stands_below_each_sample(cli):
    trained_any(cli, "ngram", **LINES)
    flags = ["--num", 4, "--seed", 1]
    lines = ok(cli("sample.py", "run", *flags, "--logprobs", 2)).out.splitlines()
    names = ok(cli("sample.py", "run", *flags)).out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == names
    tokens = [line.split()[3] for line in lines if line.startswith("  ") and "logprob" not in line]
    assert "".join(json.loads(token) for token in tokens).replace("\n", "") == "".join(names)
    columns = {line.index('"') for line in lines if '"' in line}
    assert len(columns) == 1
    alone = ok(cli("sample.py", "run", *flags, "--logprobs", 0)).out
    assert "likeliest" not in alone and alone.count("logprob") == 4


def test_each_of_several_prompts_and_only_new_ones(cli, tmp_path):
    (tmp_path / "some.txt").write_text("an\nel\n")
    trained_any(cli, "ngram", **LINES)
    for flags in (["--prompts", "some.txt", "--num", 3], ["--only-new", "--num", 6]):
        for one in samples(cli, *flags, "--logprobs", 0):
            assert set(one["logprobs"][0]) == {"token", "logprob", "bits", "characters"}
            said = "".join(each["token"] for each in one["logprobs"])
            assert one.get("prompt", "") + said == one["text"] + "\n" * (one["end"] == "eos")


def test_what_cannot_be_drawn_is_not_among_the_likeliest(cli, tmp_path):
    (tmp_path / "ab.txt").write_text("ab\nba\n" * 20)
    run = load_run(trained(cli, "bigram", data="ab.txt", kind="lines", context=8))
    (one,) = run.samples("a", seed=1, logprobs=20)
    assert {text for token in one.tokens for text, _ in token.likeliest} == {"a", "b", "\n"}
    company = Company(run)
    company.join(run.prompt_ids("a"), run.request(seed=1), logprobs=20)
    ((_, drawn),) = company.step()
    assert len(drawn.likeliest) == 3 and all(math.isfinite(p) for _, p in drawn.likeliest)
