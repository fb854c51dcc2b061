"""Scoring a text, and that decoding is what the model says, with a cache and without one."""

import json
import math

import pytest
import torch

from data.tokenizers import EOS
from engine import Run, load_run
from tests.helpers import FAMILIES, LINES, STREAM, ok, quick, refused, trained, trained_any

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def logits_after(run: Run, ids: list[int]) -> torch.Tensor:
    """(V,), without a cache: what `read` depends on, encoded anew."""
    with torch.no_grad():
        return run.model(torch.tensor([ids[run.model.window_start(len(ids) - 1) :]])).logits[0, -1]


def greedy(run: Run, prompt: str, count: int) -> str:
    """The likeliest text, without a cache."""
    ids = run.prompt_ids(prompt)
    for _ in range(count):
        logits = logits_after(run, ids)
        logits[run.suppressed] = -math.inf
        ids.append(int(logits.argmax()))
    return run.tokenizer.decode(ids)


def score(cli, text: str, *flags) -> dict:
    return json.loads(ok(cli("sample.py", "run", "--json", "--score", text, *flags)).out)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_the_score_is_the_sum_of_the_models_own_probabilities(cli, model, kind):
    trained_any(cli, model, **kind)
    text = "emma" if kind is LINES else "emma met ava; they spoke of noah"
    run = load_run("run")
    ids = run.tokenizer.encode(text, "skip").tolist()
    before = run.prompt_ids()
    wanted = ids + ([EOS] if kind is LINES else [])
    nats = 0.0
    for n, target in enumerate(wanted):
        nats -= float(logits_after(run, before + ids[:n]).double().log_softmax(-1)[target])
    found = score(cli, text, "--unknown", "skip")
    assert found["tokens"] == found["characters"] == len(wanted)
    assert found["nats_per_token"] == pytest.approx(nats / len(wanted), rel=1e-5)
    assert found["bits_per_char"] == pytest.approx(nats / len(wanted) / math.log(2), rel=1e-5)


@pytest.mark.parametrize("model", FAMILIES)
def test_lines_score_as_they_evaluate(cli, tmp_path, model):
    trained_any(cli, model, **LINES)
    (tmp_path / "val.txt").write_text("emma\nolivia\nbella\nmila\n")
    evaluated = json.loads(ok(cli("train.py", "--eval-only", "--out", "run", "--val-data", "val.txt")).out)
    found = score(cli, "@val.txt")
    assert found["bits_per_char"] == pytest.approx(evaluated["val_bits_per_char"], rel=1e-5)
    assert found["tokens"] == evaluated["val_tokens"]
    plain = ok(cli("sample.py", "run", "--score", "@val.txt")).out
    assert plain == f"{found['bits_per_char']:.4f} bits per character over {found['characters']} characters\n"


@pytest.mark.parametrize("model", FAMILIES)
def test_a_stream_scores_as_it_evaluates_within_one_window(cli, tmp_path, model):
    content = "emma met ava"
    trained_any(cli, model, **STREAM)
    (tmp_path / "val.txt").write_text("\n" + content)  # its first character is not predicted
    evaluated = json.loads(ok(cli("train.py", "--eval-only", "--out", "run", "--val-data", "val.txt")).out)
    assert score(cli, content)["bits_per_char"] == pytest.approx(evaluated["val_bits_per_char"], rel=1e-5)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_each_character_has_its_part_of_the_score(cli, model, kind):
    trained_any(cli, model, **kind)
    text = "emma\nava" if kind is LINES else "emma met ava; they spoke of noah"  # past the context
    found = score(cli, text)
    each = found["logprobs"]
    assert "".join(one["token"] for one in each) == text + ("\n" if kind is LINES else "")
    assert {one["characters"] for one in each} == {1} and set(each[0]) == {"token", "logprob", "bits", "characters"}
    assert sum(one["bits"] for one in each) / found["characters"] == pytest.approx(found["bits_per_char"])
    assert [one["bits"] for one in each] == pytest.approx([-one["logprob"] / math.log(2) for one in each])
    shown = score(cli, text, "--logprobs", 2)
    assert [one["logprob"] for one in shown["logprobs"]] == pytest.approx([one["logprob"] for one in each], rel=1e-5)
    assert shown["bits_per_char"] == found["bits_per_char"] and all(
        len(one["top_logprobs"]) == 2 for one in shown["logprobs"]
    )


def test_the_score_of_each_token_is_a_line_above_the_total(cli):
    trained_any(cli, "ngram", **LINES)
    total = ok(cli("sample.py", "run", "--score", "emma")).out
    for count in (0, 2):
        heading, *lines, last = ok(cli("sample.py", "run", "--score", "emma", "--logprobs", count)).out.splitlines()
        assert heading.split() == ["logprob", "bits", "p", "token"] + ["likeliest"] * bool(count)
        assert last + "\n" == total
        each = score(cli, "emma", "--logprobs", count)["logprobs"]
        for line, one in zip(lines, each, strict=True):
            quoted = [json.dumps(one["token"])]
            for top in one.get("top_logprobs", []):
                quoted += [json.dumps(top["token"]), f"{math.exp(top['logprob']):.1%}"]
            numbers = [f"{one['logprob']:.4f}", f"{one['bits']:.3f}", f"{math.exp(one['logprob']):.1%}"]
            assert line.startswith("  ") and line.split() == numbers + quoted


def test_tokens_of_several_characters_say_how_many(cli):
    trained(cli, "gru", **STREAM, tokenizer="bpe:300")
    text = "the cat sat on the mat"
    each = score(cli, text, "--unknown", "skip")["logprobs"]
    assert "".join(one["token"] for one in each) == text and max(one["characters"] for one in each) > 1
    assert [one["characters"] for one in each] == [len(one["token"]) for one in each]


def test_bytes_are_scored_by_the_character(cli, tmp_path):
    (tmp_path / "emoji.txt").write_text("🙂🙃猫é\n" * 40, "utf-8")
    trained(cli, data="emoji.txt", context=16, tokenizer="byte")
    found = score(cli, "🙂猫é")
    assert (found["characters"], found["tokens"]) == (3, 9)
    parts = [(f"token:{6 + byte}", int(byte & 0xC0 != 0x80)) for byte in "🙂猫é".encode()]
    assert [(one["token"], one["characters"]) for one in found["logprobs"]] == parts
    assert found["bits_per_char"] == pytest.approx(found["nats_per_token"] / math.log(2) * 3)


@pytest.mark.parametrize(
    "model, flags",
    [(model, {}) for model in FAMILIES]
    + [("transformer", {"positions": positions, "window": 5}) for positions in ("learned", "rope", "alibi")]
    + [("transformer", {"context": 1})],
)
def test_decoding_with_a_cache_is_decoding_without_one_past_the_context(cli, model, flags):
    """Greedy, so that one wrong logit shows; 40 tokens under a context of 12."""
    run = load_run(trained_any(cli, model, **STREAM | flags))
    said = ok(cli("sample.py", "run", "--temperature", 0, "--prompt", "emma met", "--max-new-tokens", 40)).out
    assert said == greedy(run, "emma met", 40) + "\n"


def test_what_is_skipped_is_not_scored(cli):
    trained_any(cli, **LINES)
    assert score(cli, "eémma€", "--unknown", "skip") == score(cli, "emma")
    refused(cli("sample.py", "run", "--score", "emma€"), "'€'", "position 4", "--unknown skip")


def test_each_checkpoint_scores_for_itself(cli, tmp_path):
    (tmp_path / "train.txt").write_text("abc" * 99)
    (tmp_path / "val.txt").write_text("cba" * 99)  # the longer the training, the worse
    flags = {"data": "train.txt", "val_data": "val.txt", "context": 8, "lr": 0.5, "eval_interval": 1}
    ok(cli("train.py", *quick("bigram", **flags, warmup=0)))
    assert score(cli, "abcabc", "--checkpoint", "last")["bits_per_char"] < score(cli, "abcabc")["bits_per_char"]


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_each_line_of_a_file_is_scored_by_itself(cli, tmp_path, kind):
    trained_any(cli, **kind)
    (tmp_path / "some.txt").write_text("emma\n\nava\n")
    lines = ok(cli("sample.py", "run", "--score-lines", "some.txt", "--json")).out.splitlines()
    empty = {"bits_per_char": None, "nats_per_token": None, "tokens": 0, "characters": 0}
    texts = {text: score(cli, text) for text in ("emma", "ava")}
    for facts in texts.values():
        del facts["logprobs"]
    texts = {"emma": texts["emma"], "": empty, "ava": texts["ava"]}
    assert [json.loads(line) for line in lines] == [{"text": text} | facts for text, facts in texts.items()]
    plain = ok(cli("sample.py", "run", "--score-lines", "some.txt")).out
    shown = ["-" if facts is empty else f"{facts['bits_per_char']:.4f}" for facts in texts.values()]
    assert plain == "".join(f"{bits}\t{text}\n" for bits, text in zip(shown, texts, strict=True))
