"""Mistakes in what is asked of `sample.py`, and what looks like one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.helpers import LINES, STREAM, ok, quick, refused, trained, words_of

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--prompt", "anné"], ["'é'", "position 3", "vocabulary of 2", "--unknown skip"]),
        (["--prompt", "a\nb"], ["--prompt", "line end"]),
        (["--prompt", "@nowhere.txt"], ["nowhere.txt", "--prompt", "No such file"]),
        (["--prompt", "@latin.txt"], ["latin.txt", "not UTF-8", "offset 3"]),
        (["--prompt", "two", "words"], ["words"]),
        (["--temperature", -1], ["--temperature is -1"]),
        (["--temperature", "nan"], ["--temperature is nan"]),
        (["--temperature", "inf"], ["--temperature is inf"]),
        (["--temperature", "warm"], ["--temperature", "'warm'"]),
        (["--top-p", 0], ["--top-p is 0"]),
        (["--top-p", 1.5], ["--top-p is 1.5"]),
        (["--top-p", "nan"], ["--top-p is nan"]),
        (["--top-k", 0], ["--top-k is 0"]),
        (["--min-p", 2], ["--min-p is 2"]),
        (["--repetition-penalty", 0], ["--repetition-penalty is 0"]),
        (["--num", 0], ["--num is 0"]),
        (["--num", -3], ["--num is -3"]),
        (["--max-new-tokens", 0], ["--max-new-tokens is 0"]),
        (["--seed", 10**20], ["--seed is 100000000000000000000"]),
        (["--stop", ""], ["--stop is empty"]),
        (["--stop", "a", "--stop", ""], ["--stop is empty"]),
        ([word for text in "abcde" for word in ("--stop", text)], ["--stop has 5 texts; it may have 4"]),
        (["--stream", "--json"], ["--stream", "--json"]),
        (["--logprobs", -1], ["--logprobs is -1; it has to be a whole number from 0 to 20"]),
        (["--logprobs", 21], ["--logprobs is 21"]),
        (["--logprobs", "few"], ["--logprobs", "few"]),
        (["--stream", "--logprobs", 0], ["--stream and --logprobs exclude each other"]),
        (["--chat", "--logprobs", 0], ["--logprobs goes with --message"]),
        (["--score-lines", "names.txt", "--logprobs", 0], ["--logprobs", "--score-lines"]),
        (["--score", "anna", "--stop", "a"], ["--stop", "--score"]),
        (["--checkpoint", "newest"], ["--checkpoint", "'newest'"]),
        (["--device", "gpu"], ["'gpu'"]),
        (["--num", 10**9], ["--num is 1000000000", "10,000,000"]),
        (["--max-new-tokens", 10**10], ["--max-new-tokens is 10000000000", "100,000,000"]),
        (["--min-new-tokens", -1], ["--min-new-tokens is -1"]),
        (["--min-new-tokens", 9, "--max-new-tokens", 8], ["--min-new-tokens is 9", "--max-new-tokens", "8"]),
        (["--stream", "--only-new"], ["--stream", "--only-new"]),
        (["--prompt", "a", "--prompts", "names.txt"], ["--prompt", "--prompts"]),
        (["--prompts", "nowhere.txt"], ["nowhere.txt", "--prompts", "No such file"]),
        (["--prompts", "latin.txt"], ["latin.txt", "--prompts", "not UTF-8"]),
        (["--prompts", "some.txt"], ["line 2 of some.txt: character 'é' (position 3)"]),
        (["--prompts", "some.txt", "--stream"], ["line 2 of some.txt: character 'é' (position 3)"]),
        (["--score-lines", "some.txt"], ["line 2 of some.txt: character 'é' (position 3)"]),
        (["--no-heal"], ["--no-heal", "bpe:N", "char"]),
        (["--score-lines", "nowhere.txt"], ["nowhere.txt", "--score-lines", "No such file"]),
        (["--score-lines", "names.txt", "--num", 2], ["--num", "--score-lines"]),
        (["--score-lines", "names.txt", "--score", "a"], ["--score", "--score-lines"]),
        (["--score", ""], ["nothing to score"]),
        (["--score", "@empty.txt"], ["nothing to score"]),
        (["--score", "éé", "--unknown", "skip"], ["nothing to score"]),
        (["--score", "éé"], ["'é'", "position 0"]),
        (["--score", "anna", "--stream"], ["--stream", "--score"]),
        (["--score", "anna", "--prompt", "a"], ["--prompt", "--score"]),
        (["--score", "anna", "--seed", 0], ["--seed", "--score"]),
        (["--score", "anna", "--temperature", 0.5], ["--temperature", "--score"]),
    ],
    ids=words_of,
)
def test_a_wrong_way_of_sampling_is_refused(cli, tmp_path, flags, words):
    trained(cli, **LINES)
    (tmp_path / "latin.txt").write_bytes(b"ann\xe9")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "some.txt").write_text("anna\nanné\nava\n", "utf-8")
    refused(cli("sample.py", "run", *flags), *words)


@pytest.mark.parametrize("flags", [["--temperature", 1e-50], ["--temperature", 1000], ["--top-p", 1e-50]], ids=words_of)
def test_extreme_but_sensible_numbers_sample(cli, flags):
    trained(cli, **LINES)
    assert len(ok(cli("sample.py", "run", "--seed", 1, *flags)).out.splitlines()) == 10


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_prompt_in_another_encoding_is_no_crash(cli, tokenizer):
    trained(cli, **LINES, tokenizer=tokenizer)
    ok(cli("sample.py", "run", "--prompt", "ann\udce9", "--unknown", "skip"))


def test_a_file_name_in_another_encoding_is_no_crash(cli):
    name = os.fsdecode(b"na\xefve.txt")
    Path("text.txt").rename(name)
    ok(cli("train.py", *quick(**STREAM | {"data": name, "out": os.fsdecode(b"caf\xe9")})))
    ok(cli("sample.py", os.fsdecode(b"caf\xe9"), "--seed", 1))


def test_a_terminal_that_cannot_show_a_character_is_no_crash(cli, process, tmp_path):
    (tmp_path / "cjk.txt").write_text("猫が好き\n" * 60, "utf-8")
    trained(cli, data="cjk.txt", context=8)
    out, err = process("sample.py", "run", "--prompt", "猫", env={"PYTHONIOENCODING": "ascii"}).communicate()
    assert err == "" and len(out) > 500


@pytest.mark.parametrize("word", ["--score", "--prompt"])
def test_nothing_that_the_model_of_a_stream_knows(cli, word):
    trained(cli, **STREAM)
    result = cli("sample.py", "run", word, "€€", "--unknown", "skip", *(["--seed", 1] if word == "--prompt" else []))
    ok(result) if word == "--prompt" else refused(result, "nothing to score")


def test_a_stream_has_no_end_that_could_be_put_off(cli):
    trained(cli, **STREAM)
    refused(cli("sample.py", "run", "--min-new-tokens", 3), "--min-new-tokens", "--stop")
    ok(cli("sample.py", "run", "--min-new-tokens", 3, "--stop", "a"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["sample.py", "no run", "--num", "1000000000000"], "--num is 1000000000000"),
        (["sample.py", "no run", "--max-new-tokens", "1000000000000"], "--max-new-tokens is 1000000000000"),
        (["sample.py", "no run", "--score", ""], "--score is empty"),
    ],
    ids=words_of,
)
def test_what_can_be_known_wrong_is_refused_before_torch_and_the_run_are_loaded(words, message):
    check = """
import runpy, sys
sys.argv, sys.path[0] = sys.argv[1:], "."
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code, "torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", check, *words], cwd=ROOT, capture_output=True, text=True)
    assert message in done.stderr and done.stderr.split()[-2:] == ["2", "False"], done.stderr


def test_the_help_says_which_way_a_switch_stands(cli):
    told = " ".join(ok(cli("sample.py", "--help")).out.split())
    assert "--no-heal" in told and "(default: True)" not in told
