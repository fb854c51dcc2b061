"""Sampling: what `sample.py` prints, in any of its ways."""

import json
import shutil

import pytest
import torch

from data.tokenizers import EOS, N_SPECIALS, NEVER_PREDICTED
from engine import load_run
from engine.generate import Sampling
from tests.conftest import NAMES
from tests.helpers import FAMILIES, LINES, STREAM, ok, trained, trained_any

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


@pytest.mark.parametrize("model", FAMILIES)
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


def test_bytes_are_never_shown_as_half_a_character(cli, tmp_path):
    (tmp_path / "emoji.txt").write_text("🙂🙃猫é\n" * 40, "utf-8")
    run = load_run(trained_any(cli, "ngram", data="emoji.txt", tokenizer="byte"))
    options = {"seed": 3, "max_new_tokens": 300, "sampling": Sampling(temperature=1.2)}  # some characters get torn
    drawn = bytes(int(token) - N_SPECIALS for token in run.stream("猫", **options)).decode("utf-8", "replace")
    pieces = list(run.pieces("猫", **options))
    assert "".join(pieces) == drawn and "\ufffd" in drawn and sum(drawn.count(c) for c in "🙂🙃猫é") > 20
    flags = ["--prompt", "猫", "--temperature", 1.2, "--max-new-tokens", 300, "--seed", 3]
    assert ok(cli("sample.py", "run", "--stream", *flags)).out == ok(cli("sample.py", "run", *flags)).out
    assert ok(cli("sample.py", "run", *flags)).out == f"猫{drawn}\n"


@pytest.mark.parametrize("kind", [LINES, STREAM], ids=["lines", "stream"])
def test_specials_are_never_sampled_and_nothing_follows_the_end(cli, kind):
    run = load_run(trained_any(cli, "bigram", **kind, steps=1))
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
