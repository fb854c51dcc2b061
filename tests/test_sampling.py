"""Sampling: what `sample.py` prints, in any of its ways."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import engine
from data.errors import UserError
from data.tokenizers import EOS, N_SPECIALS, NEVER_PREDICTED
from engine import load_run
from engine.run import samples
from engine.run.generate import generate
from engine.run.sampling import Sampling
from tests.conftest import NAMES
from tests.helpers import FAMILIES, LINES, STREAM, ok, trained, trained_any
from tests.matrices import matrix

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def sample(cli, *flags, seed: int | None = 1) -> list[str]:
    """The lines that `sample.py run` prints."""
    return ok(cli("sample.py", "run", *flags, *([] if seed is None else ["--seed", seed]))).out.splitlines()


@pytest.mark.parametrize("model", FAMILIES)
def test_names_go_on_from_the_prompt_and_stop_at_their_end(cli, model):
    trained_any(cli, model, **LINES)
    drawn = sample(cli, "--prompt", "el", "--num", 30)
    assert len(drawn) == 30 and all(name.startswith("el") for name in drawn)
    assert len(set(map(len, drawn))) > 2, "all of one length: nothing stopped them"
    assert set("".join(drawn)) <= set("".join(NAMES))
    assert max(map(len, sample(cli, "--num", 30, "--max-new-tokens", 3))) == 3


@pytest.mark.parametrize("model", matrix(FAMILIES, ["ngram", "gru", "transformer"]))
def test_a_stream_goes_on_for_as_long_as_it_was_asked_to(cli, model):
    trained_any(cli, model, **STREAM)
    out = ok(cli("sample.py", "run", "--prompt", "emma met", "--seed", 1, "--max-new-tokens", 50)).out
    assert out.startswith("emma met") and len(out) == len("emma met") + 50 + 1
    assert len(ok(cli("sample.py", "run", "--seed", 1)).out) == 500 + 1


def test_defaults_are_ten_lines_or_one_stream(cli):
    trained_any(cli, **LINES)
    assert len(sample(cli)) == 10
    shutil.rmtree("run")
    trained_any(cli, **STREAM)
    assert ok(cli("sample.py", "run", "--num", 3, "--max-new-tokens", 9)).out.count("-" * 60) == 3


def test_a_prompt_from_a_file(cli, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfemma met ava;\r\nthey\r\n")
    trained_any(cli, **STREAM)
    from_file = ok(cli("sample.py", "run", "--prompt", "@prompt.txt", "--seed", 1)).out
    assert from_file == ok(cli("sample.py", "run", "--prompt", "emma met ava;\nthey", "--seed", 1)).out


def test_the_same_seed_gives_the_same_samples(cli):
    trained_any(cli, **LINES)
    assert sample(cli, seed=1) == sample(cli, seed=1) != sample(cli, seed=2)
    assert sample(cli, seed=None) != sample(cli, seed=None)


@pytest.mark.parametrize("model", ["mlp", "ngram", "bigram"])
def test_greedy_needs_no_seed_and_is_what_the_likeliest_token_gives(cli, model):
    trained_any(cli, model, **STREAM)
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
        trained_any(cli, **kind)
        whole, shown = (ok(cli("sample.py", "run", "--num", 1, "--seed", 4, *flag)).out for flag in ([], ["--stream"]))
        assert whole == shown
        shutil.rmtree("run")


def test_several_streams_differ(cli):
    trained_any(cli, **LINES)
    shown = sample(cli, "--stream", "--num", 8, "--prompt", "a")
    assert len(shown) == 8 and len(set(shown)) > 1 and all(name.startswith("a") for name in shown)


def test_json_lines_hold_the_texts(cli):
    trained_any(cli, **STREAM)
    flags = ["--num", 3, "--max-new-tokens", 40, "--prompt", "emma met"]
    texts = [json.loads(line)["text"] for line in sample(cli, *flags, "--json")]
    plain = ok(cli("sample.py", "run", *flags, "--seed", 1)).out
    assert plain == "".join(f"{text}\n{'-' * 60}\n" for text in texts)


@pytest.mark.parametrize("flag", [[], ["--stream"]], ids=["batch", "stream"])
def test_stop_text_ends_a_sample_before_it(cli, flag):
    trained_any(cli, **STREAM)
    whole = ok(cli("sample.py", "run", "--seed", 5, *flag)).out
    for stop in (whole[30:31], whole[40:43], whole[60:75]):
        cut = ok(cli("sample.py", "run", "--seed", 5, "--stop", stop, *flag)).out
        assert cut == whole[: whole.index(stop)] + "\n"
    assert ok(cli("sample.py", "run", "--seed", 5, "--stop", "never said", *flag)).out == whole


@pytest.mark.parametrize("flag", [[], ["--stream"]], ids=["batch", "stream"])
def test_of_several_stop_texts_the_first_in_the_text_ends_it(cli, flag):
    trained_any(cli, **STREAM)
    whole = ok(cli("sample.py", "run", "--seed", 5, *flag)).out
    late, early = whole[60:64], whole[31:33]
    for stops in ([late, early], [early, late], ["never said", late, early, "never either"]):
        words = [word for stop in stops for word in ("--stop", stop)]
        cut = ok(cli("sample.py", "run", "--seed", 5, *words, *flag)).out
        assert cut == whole[: whole.index(early)] + "\n"
    new = max(whole.index(character) for character in set(whole.rstrip("\n")))  # where two stop texts end at once
    words = ["--stop", whole[new], "--stop", whole[new - 1 : new + 1]]
    assert ok(cli("sample.py", "run", "--seed", 5, *words, *flag)).out == whole[: new - 1] + "\n"
    (one,) = load_run("run").samples("", seed=5, stop=(late, early))
    assert (one.text, one.end) == (whole[: whole.index(early)], "stop")


def test_stop_texts_end_new_names_too(cli):
    trained_any(cli, "ngram", **LINES)
    drawn = sample(cli, "--only-new", "--num", 30, "--stop", "a", "--stop", "e")
    assert len(drawn) == 30 and not set(drawn) & set(NAMES) and not set("".join(drawn)) & {"a", "e"}


def test_bytes_are_never_shown_as_half_a_character(cli, tmp_path):
    (tmp_path / "emoji.txt").write_text("🙂🙃猫é\n" * 40, "utf-8")
    run = load_run(trained_any(cli, "ngram", data="emoji.txt", tokenizer="byte"))
    options = {"seed": 3, "max_new_tokens": 300, "sampling": Sampling(temperature=1.2)}  # some characters get torn
    drawn = bytes(int(token) - N_SPECIALS for token in run.generate_ids("猫", **options)).decode("utf-8", "replace")
    pieces = list(run.pieces("猫", **options))
    assert "".join(pieces) == drawn and "\ufffd" in drawn and sum(drawn.count(c) for c in "🙂🙃猫é") > 20
    flags = ["--prompt", "猫", "--temperature", 1.2, "--max-new-tokens", 300, "--seed", 3]
    assert ok(cli("sample.py", "run", "--stream", *flags)).out == ok(cli("sample.py", "run", *flags)).out
    assert ok(cli("sample.py", "run", *flags)).out == f"猫{drawn}\n"


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_specials_are_never_sampled_and_nothing_follows_the_end(cli, kind):
    run = load_run(trained_any(cli, "bigram", **kind, steps=1))
    steps = run.generate_ids(num=200, max_new_tokens=40, seed=1, sampling=Sampling(temperature=1000))
    rows = torch.stack(list(steps), 1)
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
    trained_any(cli, **LINES)
    before = sample(cli)
    moved.parent.mkdir()
    shutil.move("run", moved)
    (tmp_path / "names.txt").unlink()
    nowhere = {"CHARLM_CACHE": str(tmp_path / "nothing here"), "HOME": "/nonexistent"}
    assert ok(cli("sample.py", moved, "--seed", 1, env=nowhere)).out.splitlines() == before
    assert not (tmp_path / "nothing here").exists()


def test_the_three_lines_of_a_library_user(cli):
    """Those of engine/__init__.py."""
    trained_any(cli, **LINES)
    run = load_run("run")
    drawn = run.generate("ma", num=3)
    assert len(drawn) == 3 and all(name.startswith("ma") for name in drawn)
    assert run.generate("ma", num=10, seed=1) == sample(cli, "--prompt", "ma")


def test_repetition_through_the_command(cli):
    trained_any(cli, "bigram", **STREAM)
    flags = ["--temperature", 0, "--max-new-tokens", 12, "--prompt", "e"]
    plain, varied = (sample(cli, *flags, *more) for more in ([], ["--repetition-penalty", 100]))
    assert len(set("".join(varied))) > len(set("".join(plain)))


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_json_says_why_a_sample_ended(cli, kind):
    run = load_run(trained_any(cli, "ngram", **kind))
    lines = [json.loads(line) for line in sample(cli, "--json", "--num", 40, "--max-new-tokens", 6, "--stop", "el")]
    assert {line["end"] for line in lines} == {"length", "stop"} | ({"eos"} if kind is LINES else set())
    for line in lines:
        assert "el" not in line["text"] and (len(line["text"]) == 6) >= (line["end"] == "length")
    again = list(run.samples("", 40, max_new_tokens=6, stop="el", seed=1))
    assert [(one.text, one.end) for one in again] == [(line["text"], line["end"]) for line in lines]


def test_no_sample_ends_before_its_shortest_length(cli):
    trained_any(cli, "ngram", **LINES)
    drawn = sample(cli, "--num", 50, "--min-new-tokens", 6, "--max-new-tokens", 9)
    assert {6, 9} <= set(map(len, drawn)) <= {6, 7, 8, 9}
    assert min(map(len, sample(cli, "--num", 50))) < 6
    shutil.rmtree("run")
    trained_any(cli, "ngram", **STREAM)
    (whole,) = load_run("run").generate(seed=5, max_new_tokens=80)
    for shown in ([], ["--stream"]):
        flags = ["--seed", 5, "--stop", whole[4], "--min-new-tokens", 20, *shown]
        assert ok(cli("sample.py", "run", *flags)).out == whole[: whole.index(whole[4], 20)] + "\n"


def test_prompts_from_the_lines_of_a_file(cli, tmp_path):
    (tmp_path / "some.txt").write_text("an\nbella\n\nel\n")
    trained_any(cli, **LINES)
    alone = [sample(cli, "--prompt", prompt, "--num", 2) for prompt in ("an", "bella", "", "el")]
    assert sample(cli, "--prompts", "some.txt", "--num", 2) == sum(alone, [])
    assert sample(cli, "--prompts", "some.txt", "--stream", "--num", 2)[::2] == [
        first
        for first, _ in (
            sample(cli, "--prompt", prompt, "--num", 2, "--stream") for prompt in ("an", "bella", "", "el")
        )
    ]
    lines = [json.loads(line) for line in sample(cli, "--prompts", "some.txt", "--json")]
    assert [line["prompt"] for line in lines] == ["an", "bella", "", "el"]
    assert all(line["text"].startswith(line["prompt"]) for line in lines)


@pytest.mark.parametrize("model", FAMILIES)
def test_several_prompts_have_what_each_has_by_itself(cli, model, monkeypatch):
    run = load_run(trained_any(cli, model, **STREAM))
    prompts = ["emma", "noah", "emma met ava; they spoke", "", "noah", "a"]
    alone = [text for prompt in prompts for text in run.generate(prompt, 3, seed=2, max_new_tokens=30)]
    assert run.generate(prompts, 3, seed=2, max_new_tokens=30) == alone
    rows = []
    monkeypatch.setattr(samples, "BATCH_BYTES", 1)
    monkeypatch.setattr(samples, "FIRST_BATCH", 4)
    monkeypatch.setattr(samples, "generate", lambda *a, **b: rows.append(sum(b["copies"])) or generate(*a, **b))
    assert run.generate(prompts, 3, seed=2, max_new_tokens=30) == alone and max(rows) == 3


def test_any_number_of_samples_is_drawn_a_batch_at_a_time(cli, monkeypatch):
    run = load_run(trained_any(cli, **LINES))
    monkeypatch.setattr(samples, "BATCH_BYTES", 1)
    begun = []
    monkeypatch.setattr(
        samples, "generate", lambda *given, **more: begun.append(more["copies"]) or generate(*given, **more)
    )
    drawn = run.samples("a", 35, seed=1)
    first = [next(drawn).text for _ in range(10)]
    assert begun == [[10]] and first == run.generate("a", 10, seed=1)
    assert len(list(drawn)) == 25 and begun[2:] == [[10], [10], [5]]
    many = run.generate("a", 35, seed=1)
    assert many == run.generate("a", 35, seed=1) and many[:10] == first != many[10:20]


def test_the_rows_of_a_batch_follow_from_memory(cli):
    run = load_run(trained_any(cli, "transformer", **STREAM))
    assert 1000 < samples.Drawing(run.model, run.tokenizer, [], run.device, run.request()).rows < 10**6
    long = samples.Drawing(run.model, run.tokenizer, [], run.device, run.request(max_new_tokens=10**7))
    assert long.rows == samples.FIRST_BATCH


def test_what_begins_with_an_at_sign_can_be_said(cli, tmp_path):
    (tmp_path / "at.txt").write_text("@ana @bea\n" * 30)
    trained_any(cli, "bigram", data="at.txt", context=8)
    assert ok(cli("sample.py", "run", "--prompt", "@@ana", "--seed", 1)).out.startswith("@ana")
    (tmp_path / "ana").write_text("@bea")
    scores = {word: ok(cli("sample.py", "run", "--score", word, "--json")).out for word in ("@@ana", "@ana", "@@bea")}
    assert scores["@@ana"] != scores["@ana"] == scores["@@bea"]


def test_drawing_takes_plain_keyword_arguments(cli):
    run = load_run(trained_any(cli, **STREAM))
    plain = run.generate("emma", temperature=0.5, top_k=3, seed=1, max_new_tokens=30)
    assert plain == run.generate("emma", sampling=engine.Sampling(0.5, top_k=3), seed=1, max_new_tokens=30)
    assert plain == run.generate(
        "emma", sampling=engine.Sampling(0.9, top_k=3), temperature=0.5, seed=1, max_new_tokens=30
    )
    assert "".join(run.pieces("emma", temperature=0.5, top_k=3, seed=1, max_new_tokens=30)) == plain[0][4:]
    names = "accept, heal, max_new_tokens, min_new_tokens, min_p, num, prompt, repetition_penalty, sampling, seed, "
    names += "stop, temperature, top_k, top_p, unknown"
    for wrong, near in (("temprature", "temperature"), ("max_tokens", "max_new_tokens")):
        with pytest.raises(TypeError, match=f"no option '{wrong}'. Did you mean '{near}'\\? There are: {names}$"):
            run.generate("emma", **{wrong: 1})
    with pytest.raises(TypeError, match="no option 'logprobs'"):  # which texts alone cannot have
        run.generate("emma", logprobs=3)
    with pytest.raises(TypeError, match="no option 'num'"):
        run.pieces("emma", num=3)
    assert repr(run) == f"Run('{run.folder}', mlp, step {run.facts['step']})"


WRONG = [
    ({"seed": -1}, "--seed is -1; it has to be a whole number from 0"),
    ({"seed": 2**70}, f"--seed is {2**70}; it has to be"),
    ({"seed": "x"}, "--seed is 'x'; it has to be"),
    ({"seed": True}, "--seed is True; it has to be"),
    ({"stop": ""}, "--stop is empty"),
    ({"stop": ["a"]}, "--stop is ['a']; it has to be a text, or several"),
    ({"stop": ("a", "")}, "--stop is empty"),
    ({"stop": tuple("abcde")}, "--stop has 5 texts; it may have 4"),
    ({"top_k": 2.5}, "--top-k is 2.5; it has to be a whole number"),
    ({"top_p": "x"}, "--top-p is 'x'; it has to be a number"),
    ({"min_p": [1]}, "--min-p is [1]; it has to be a number"),
    ({"repetition_penalty": None}, "--repetition-penalty is None; it has to be a number"),
    ({"temperature": "0.5"}, "--temperature is '0.5'; it has to be a number"),
    ({"sampling": 0.5}, "--sampling is 0.5; it has to be a Sampling"),
    ({"num": "3"}, "--num is '3'; it has to be a whole number"),
    ({"max_new_tokens": "8"}, "--max-new-tokens is '8'; it has to be a whole number"),
    ({"min_new_tokens": 1.5, "stop": "a"}, "--min-new-tokens is 1.5; it has to be a whole number"),
    ({"heal": "no"}, "--heal is 'no'; it has to be True or False"),
    ({"unknown": "foo"}, "--unknown is 'foo'; it has to be error, skip or mask"),
    ({"prompt": [5]}, "--prompt is 5; it has to be a text"),
    ({"prompt": None}, "--prompt is None; it has to be a text"),
]


def test_python_is_told_which_value_is_wrong(cli):
    run = load_run(trained_any(cli, **STREAM))
    for wrong, words in WRONG:
        with pytest.raises(UserError, match=re.escape(words)):
            run.generate(**wrong)
    for wrong in ({"num": 0}, {"max_new_tokens": 0}, {"seed": -1}, {"sampling": "x"}, {"unknown": "foo"}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')} is "):
            run.generate_ids(**wrong)
    with pytest.raises(UserError, match="--score is None; it has to be a text"):
        run.score(None)
    with pytest.raises(UserError, match="--unknown is 'foo'"):
        run.score("emma", "foo")
    assert run.generate("emma", np.int64(2), seed=np.int64(3), top_k=np.int32(2), temperature=np.float32(0.5))
