"""Sampling and scoring: what `sample.py` prints, how tokens are drawn, and that decoding is what the model says."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizers import EOS, N_SPECIALS, NEVER_PREDICTED
from engine import Run, load_run
from engine.generate import Sampling, draw
from tests.conftest import NAMES, TINY
from tests.helpers import ok, quick, refused, trained

LINES = {"data": "names.txt", "kind": "lines"}
STREAM = {"data": "text.txt", "context": 12}
FAMILIES = [*TINY, "ngram"]


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


def train(cli, model: str = "mlp", **flags) -> Path:
    """`run`, of any family."""
    if model in TINY:
        return trained(cli, model, **flags)
    words = [f"--{name}={value}" for name, value in flags.items() if name != "context"]
    ok(cli("train.py", "--model", model, *words, "--out", "run"))
    return Path("run").resolve()


def sample(cli, *flags, seed: int | None = 1) -> list[str]:
    """The lines that `sample.py run` prints."""
    return ok(cli("sample.py", "run", *flags, *([] if seed is None else ["--seed", seed]))).out.splitlines()


def logits_after(run: Run, ids: list[int]) -> torch.Tensor:
    """(V,), without a cache: what `read` depends on, encoded anew."""
    with torch.no_grad():
        return run.model(torch.tensor([ids[run.model.window_start(len(ids) - 1) :]])).logits[0, -1]


def greedy(run: Run, prompt: str, count: int) -> str:
    """The likeliest text, without a cache."""
    ids = run.prompt_ids(prompt)
    for _ in range(count):
        logits = logits_after(run, ids)
        logits[run.never] = -math.inf
        ids.append(int(logits.argmax()))
    return run.tokenizer.decode(ids)


# ---- the command


@pytest.mark.parametrize("model", FAMILIES)
def test_names_go_on_from_the_prompt_and_stop_at_their_end(cli, model):
    train(cli, model, **LINES)
    drawn = sample(cli, "--prompt", "el", "--num", 30)
    assert len(drawn) == 30 and all(name.startswith("el") for name in drawn)
    assert len(set(map(len, drawn))) > 2, "all of one length: nothing stopped them"
    assert set("".join(drawn)) <= set("".join(NAMES))
    assert max(map(len, sample(cli, "--num", 30, "--max-new-tokens", 3))) == 3


@pytest.mark.parametrize("model", FAMILIES)
def test_a_stream_goes_on_for_as_long_as_it_was_asked_to(cli, model):
    train(cli, model, **STREAM)
    out = ok(cli("sample.py", "run", "--prompt", "emma met", "--seed", 1, "--max-new-tokens", 50)).out
    assert out.startswith("emma met") and len(out) == len("emma met") + 50 + 1
    assert len(ok(cli("sample.py", "run", "--seed", 1)).out) == 500 + 1


def test_defaults_are_ten_lines_or_one_stream(cli):
    train(cli, **LINES)
    assert len(sample(cli)) == 10
    shutil.rmtree("run")
    train(cli, **STREAM)
    assert ok(cli("sample.py", "run", "--num", 3, "--max-new-tokens", 9)).out.count("-" * 60) == 3


def test_a_prompt_from_a_file(cli, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfemma met ava;\r\nthey\r\n")
    train(cli, **STREAM)
    from_file = ok(cli("sample.py", "run", "--prompt", "@prompt.txt", "--seed", 1)).out
    assert from_file == ok(cli("sample.py", "run", "--prompt", "emma met ava;\nthey", "--seed", 1)).out


def test_the_same_seed_gives_the_same_samples(cli):
    train(cli, **LINES)
    assert sample(cli, seed=1) == sample(cli, seed=1) != sample(cli, seed=2)
    assert sample(cli, seed=None) != sample(cli, seed=None)


@pytest.mark.parametrize("model", ["mlp", "ngram", "bigram"])
def test_greedy_needs_no_seed_and_is_what_the_likeliest_token_gives(cli, model):
    train(cli, model, **STREAM)
    said = sample(cli, "--temperature", 0, "--max-new-tokens", 60, seed=None)
    for flags in (["--temperature", 0], ["--top-k", 1], ["--temperature", 1e-30]):
        assert sample(cli, *flags, "--max-new-tokens", 60) == said


def test_the_k_likeliest_are_no_more_than_k_however_many_are_equal(cli, tmp_path):
    (tmp_path / "ties.txt").write_text("ab\nac\nad\nae\n" * 5)
    texts = ["--data", "ties.txt", "--val-data", "ties.txt"]
    ok(cli("train.py", "--model", "bigram", "--counts", *texts, "--out", "run"))
    drawn = {sample(cli, "--prompt", "a", "--top-k", 2, "--max-new-tokens", 1, seed=n)[0] for n in range(12)}
    assert len(drawn) == 2


def test_a_stream_shown_while_it_is_drawn_is_the_same_text(cli):
    for kind in (LINES, STREAM):
        train(cli, **kind)
        whole, shown = (ok(cli("sample.py", "run", "--num", 1, "--seed", 4, *flag)).out for flag in ([], ["--stream"]))
        assert whole == shown
        shutil.rmtree("run")


def test_several_streams_differ(cli):
    train(cli, **LINES)
    shown = sample(cli, "--stream", "--num", 8, "--prompt", "a")
    assert len(shown) == 8 and len(set(shown)) > 1 and all(name.startswith("a") for name in shown)


def test_json_lines_hold_the_texts(cli):
    train(cli, **STREAM)
    flags = ["--num", 3, "--max-new-tokens", 40, "--prompt", "emma met"]
    texts = [json.loads(line)["text"] for line in sample(cli, *flags, "--json")]
    plain = ok(cli("sample.py", "run", *flags, "--seed", 1)).out
    assert plain == "".join(f"{text}\n{'-' * 60}\n" for text in texts)


@pytest.mark.parametrize("flag", [[], ["--stream"]], ids=["batch", "stream"])
def test_stop_text_ends_a_sample_before_it(cli, flag):
    train(cli, **STREAM)
    whole = ok(cli("sample.py", "run", "--seed", 5, *flag)).out
    for stop in (whole[30:31], whole[40:43], whole[60:75]):
        cut = ok(cli("sample.py", "run", "--seed", 5, "--stop", stop, *flag)).out
        assert cut == whole[: whole.index(stop)] + "\n"
    assert ok(cli("sample.py", "run", "--seed", 5, "--stop", "never said", *flag)).out == whole


def test_bytes_are_never_shown_as_half_a_character(cli, tmp_path):
    (tmp_path / "emoji.txt").write_text("🙂🙃猫é\n" * 40, "utf-8")
    run = load_run(train(cli, "ngram", data="emoji.txt", tokenizer="byte"))
    options = {"seed": 3, "max_new_tokens": 300, "sampling": Sampling(temperature=1.2)}  # some characters get torn
    drawn = bytes(int(token) - N_SPECIALS for token in run.stream("猫", **options)).decode("utf-8", "replace")
    pieces = list(run.pieces("猫", **options))
    assert "".join(pieces) == drawn and "\ufffd" in drawn and sum(drawn.count(c) for c in "🙂🙃猫é") > 20
    flags = ["--prompt", "猫", "--temperature", 1.2, "--max-new-tokens", 300, "--seed", 3]
    assert ok(cli("sample.py", "run", "--stream", *flags)).out == ok(cli("sample.py", "run", *flags)).out
    assert ok(cli("sample.py", "run", *flags)).out == f"猫{drawn}\n"


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_specials_are_never_sampled_and_nothing_follows_the_end(cli, kind):
    run = load_run(train(cli, "bigram", **kind, steps=1))
    rows = torch.stack(list(run.stream(num=200, max_new_tokens=40, seed=1, sampling=Sampling(temperature=1000))), 1)
    forbidden = [*NEVER_PREDICTED] + ([] if kind is LINES else [EOS])
    assert not torch.isin(rows, torch.tensor(forbidden)).any()
    assert len(rows.unique()) == run.tokenizer.vocab_size - len(forbidden)
    ended = (rows == EOS).cumsum(1) > 0
    assert (rows[ended] == EOS).all()


def test_a_text_that_spells_a_special_is_text(cli, tmp_path):
    (tmp_path / "odd.txt").write_text("<eos>a<unk>b<bos><pad>" * 20)
    run = load_run(trained(cli, data="odd.txt", context=8))
    ids = run.prompt_ids("<eos>a<unk>")
    assert len(ids) == len("<eos>a<unk>") and min(ids) >= N_SPECIALS
    assert ok(cli("sample.py", "run", "--prompt", "<eos>a<unk>")).out.startswith("<eos>a<unk>")


def test_a_run_needs_neither_its_text_nor_the_cache_nor_its_place(cli, tmp_path):
    moved = tmp_path / "elsewhere" / "my run"
    train(cli, **LINES)
    before = sample(cli)
    moved.parent.mkdir()
    shutil.move("run", moved)
    (tmp_path / "names.txt").unlink()
    nowhere = {"CHARLM_CACHE": str(tmp_path / "nothing here"), "HOME": "/nonexistent"}
    assert ok(cli("sample.py", moved, "--seed", 1, env=nowhere)).out.splitlines() == before
    assert not (tmp_path / "nothing here").exists()


def test_the_three_lines_of_a_library_user(cli):
    """Those of engine/__init__.py."""
    train(cli, **LINES)
    run = load_run("run")
    drawn = run.generate("ma", num=3)
    assert len(drawn) == 3 and all(name.startswith("ma") for name in drawn)
    assert run.generate("ma", num=10, seed=1) == sample(cli, "--prompt", "ma")


# ---- drawing


def frequencies(logits: list[float], seen: list[int] | None = None, **options) -> torch.Tensor:
    """How often each token is drawn."""
    n = 20_000
    marks = torch.zeros(n, len(logits), dtype=torch.bool)
    marks[:, seen or []] = True
    generator = torch.Generator().manual_seed(0)
    drawn = draw(torch.tensor(logits).double().repeat(n, 1), Sampling(**options), generator, marks)
    return torch.bincount(drawn, minlength=len(logits)) / n


P = [0.5, 0.25, 0.15, 0.07, 0.03]
LOGITS = [math.log(p) + 3 for p in P]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, P),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, [p**2 for p in P]),
        ({"temperature": 2}, [p**0.5 for p in P]),
        ({"top_k": 1}, [1, 0, 0, 0, 0]),
        ({"top_k": 3}, [*P[:3], 0, 0]),
        ({"top_k": 99}, P),
        ({"top_p": 0.4}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.6}, [*P[:2], 0, 0, 0]),
        ({"top_p": 0.8}, [*P[:3], 0, 0]),
        ({"top_p": 1.0}, P),
        ({"min_p": 0.2}, [*P[:3], 0, 0]),
        ({"min_p": 1.0}, [1, 0, 0, 0, 0]),
        ({"min_p": 0.0}, P),
        ({"temperature": 0.5, "top_p": 0.9}, [0.25, 0.0625, 0, 0, 0]),
        ({"top_k": 4, "min_p": 0.2}, [*P[:3], 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_distribution_that_was_asked_for(options, expected):
    expected = torch.tensor(expected, dtype=torch.float)
    assert torch.allclose(frequencies(LOGITS, **options), expected / expected.sum(), atol=0.012)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_the_order_of_the_vocabulary_makes_no_difference(order):
    found = frequencies([LOGITS[i] for i in order], top_p=0.8)
    expected = torch.tensor([P[i] if i < 3 else 0 for i in order])
    assert torch.allclose(found, expected / expected.sum(), atol=0.012)


def test_repetition_makes_seen_tokens_less_likely_whatever_their_sign():
    logits = [2.0, 2.0, -1.0, -1.0]
    expected = torch.tensor([2.0 / 1.5, 2.0, -1.0 * 1.5, -1.0]).softmax(0)
    assert torch.allclose(frequencies(logits, seen=[0, 2], repetition_penalty=1.5), expected, atol=0.012)
    assert frequencies(logits, seen=[0], repetition_penalty=2.0, temperature=0)[1] == 1


def test_repetition_through_the_command(cli):
    train(cli, "bigram", **STREAM)
    flags = ["--temperature", 0, "--max-new-tokens", 12, "--prompt", "e"]
    plain, varied = (sample(cli, *flags, *more) for more in ([], ["--repetition-penalty", 100]))
    assert len(set("".join(varied))) > len(set("".join(plain)))


@given(
    logits=st.lists(st.floats(-1e30, 1e30) | st.just(-math.inf), min_size=2, max_size=8),
    temperature=st.sampled_from([0, 1e-300, 1e-6, 0.7, 1.0, 1000.0]),
    top_k=st.none() | st.integers(1, 9),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    min_p=st.none() | st.floats(0, 1),
    penalty=st.sampled_from([0.01, 1.0, 1.3, 100.0]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_is_asked_for_something_possible_is_drawn(logits, temperature, top_k, top_p, min_p, penalty):
    if max(logits) == -math.inf:
        logits[0] = 0.0
    values = torch.tensor([logits] * 3, dtype=torch.float64)
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    seen = torch.zeros_like(values, dtype=torch.bool)
    seen[1:, 0] = True
    drawn = draw(values.clone(), sampling, torch.Generator().manual_seed(0), seen)
    assert all(math.isfinite(logits[i]) for i in drawn.tolist())
    if temperature == 0 or top_k == 1:
        assert logits[int(drawn[0])] == max(logits)


# ---- scoring, and decoding with and without a cache


def score(cli, text: str, *flags) -> dict:
    return json.loads(ok(cli("sample.py", "run", "--json", "--score", text, *flags)).out)


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_the_score_is_the_sum_of_the_models_own_probabilities(cli, model, kind):
    train(cli, model, **kind)
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
    train(cli, model, **LINES)
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
    train(cli, model, **STREAM)
    (tmp_path / "val.txt").write_text("\n" + content)  # its first character is not predicted
    evaluated = json.loads(ok(cli("train.py", "--eval-only", "--out", "run", "--val-data", "val.txt")).out)
    assert score(cli, content)["bits_per_char"] == pytest.approx(evaluated["val_bits_per_char"], rel=1e-5)


def test_bytes_are_scored_by_the_character(cli, tmp_path):
    (tmp_path / "emoji.txt").write_text("🙂🙃猫é\n" * 40, "utf-8")
    trained(cli, data="emoji.txt", context=16, tokenizer="byte")
    found = score(cli, "🙂猫é")
    assert (found["characters"], found["tokens"]) == (3, 9)
    assert found["bits_per_char"] == pytest.approx(found["nats_per_token"] / math.log(2) * 3)


@pytest.mark.parametrize(
    "model, flags",
    [(model, {}) for model in FAMILIES]
    + [("transformer", {"positions": positions, "window": 5}) for positions in ("learned", "rope", "alibi")]
    + [("transformer", {"context": 1})],
)
def test_decoding_with_a_cache_is_decoding_without_one_past_the_context(cli, model, flags):
    """Greedy, so that one wrong logit shows; 40 tokens under a context of 12."""
    run = load_run(train(cli, model, **STREAM | flags))
    said = ok(cli("sample.py", "run", "--temperature", 0, "--prompt", "emma met", "--max-new-tokens", 40)).out
    assert said == greedy(run, "emma met", 40) + "\n"


def test_what_is_skipped_is_not_scored(cli):
    train(cli, **LINES)
    assert score(cli, "eémma€", "--unknown", "skip") == score(cli, "emma")
    refused(cli("sample.py", "run", "--score", "emma€"), "'€'", "position 4", "--unknown skip")


def test_each_checkpoint_scores_for_itself(cli, tmp_path):
    (tmp_path / "train.txt").write_text("abc" * 99)
    (tmp_path / "val.txt").write_text("cba" * 99)  # the longer the training, the worse
    flags = {"data": "train.txt", "val_data": "val.txt", "context": 8, "lr": 0.5, "eval_interval": 1}
    ok(cli("train.py", *quick("bigram", **flags, warmup=0)))
    assert score(cli, "abcabc", "--checkpoint", "last")["bits_per_char"] < score(cli, "abcabc")["bits_per_char"]
