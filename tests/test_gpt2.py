"""GPT-2's tokenizer: its file of merges, its ids, and where that file is looked for. The merges here are made up."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import gpt2
from data.bpe import BPETokenizer
from data.errors import UserError
from data.vocabulary import check_name, from_json, make
from tests.matrices import matrix

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
WRITTEN = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(0x100 + n) for n, byte in enumerate(OTHERS)}
PAIRS = [(a, b) for a in range(256) for b in range(256)][:50_000]
FILE = "#version: 0.2\n" + "".join(f"{WRITTEN[a]} {WRITTEN[b]}\n" for a, b in PAIRS)


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2.GPT2Tokenizer(gpt2.read_merges(FILE))


@pytest.fixture
def merges(tmp_path, monkeypatch):
    """A folder that holds the file, and nothing else on this machine that does."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    content = FILE.encode()
    (folder / "vocab.bpe").write_bytes(content)
    made_up = dataclasses.replace(
        gpt2.MERGES, size=len(content), sha256=hashlib.sha256(content).hexdigest(), url="http://127.0.0.1:9/vocab.bpe"
    )
    monkeypatch.setattr(gpt2, "MERGES", made_up)
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    return folder


def test_the_bytes_come_first_in_gpt2s_order_and_then_a_merge_a_line(tokenizer):
    assert [tokenizer.encode(character)[0] for character in "!a~"] == [0, 64, 93]
    assert tokenizer.tokens[188] == b"\0" and tokenizer.tokens[198] == b"\n" and tokenizer.tokens[220] == b" "
    assert tokenizer.tokens[256:] == [bytes(pair) for pair in PAIRS]


def test_the_ids_are_gpt2s_and_five_specials_follow(tokenizer):
    assert tokenizer.vocab_size == 50_262 and tokenizer.specials == {
        "<pad>": 50_257, "<bos>": 50_258, "<eos>": 50_256, "<unk>": 50_259, "<user>": 50_260, "<assistant>": 50_261,
    }  # fmt: skip
    counts = tokenizer.characters()
    assert counts[50_256] == 1 and not counts[50_257:].any()
    assert counts[tokenizer.encode("é")].sum() == 1 and tokenizer.decode([64, 50_256, 50_259, 65]) == "a\ufffdb"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(st.characters(codec="utf-8")))
@example(text="naïve 漢字 👩\u200d👧 <|endoftext|><eos> \r\n\t\x85")
def test_text_survives_a_round_trip_and_never_becomes_a_special(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and (not len(ids) or ids.max() < 50_256)


def test_it_survives_json_and_is_no_other_tokenizer(tokenizer):
    stored = json.loads(json.dumps(tokenizer.to_json()))
    again = from_json(stored)
    assert isinstance(again, gpt2.GPT2Tokenizer)
    assert again.encode("sea shells").tolist() == tokenizer.encode("sea shells").tolist()
    with pytest.raises(UserError, match="255 tokens instead of 50256"):
        from_json(stored | {"tokens": stored["tokens"][:255]})
    assert type(from_json(stored | {"type": "bpe"})) is BPETokenizer


def test_the_file_comes_from_the_data_folder_or_tiktokens_cache(merges, tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_DATA", str(merges))
    check_name("gpt2")
    assert make("gpt2", "", []).tokens[-1] == bytes(PAIRS[-1])
    monkeypatch.delenv("CHARLM_DATA")
    (tmp_path / "tiktoken").mkdir()
    name = hashlib.sha1(gpt2.MERGES.url.encode()).hexdigest()
    (merges / "vocab.bpe").rename(tmp_path / "tiktoken" / name)
    assert gpt2.load().vocab_size == 50_262


def test_without_the_file_the_mistake_says_which_one_goes_where(merges):
    with pytest.raises(UserError, match=r"call it vocab.bpe and put it into a folder that \$CHARLM_DATA names"):
        gpt2.load()


def test_another_file_of_that_name_is_refused(merges, monkeypatch):
    monkeypatch.setenv("CHARLM_DATA", str(merges))
    (merges / "vocab.bpe").write_text(FILE[::-1])
    with pytest.raises(UserError, match="vocab.bpe fails its SHA-256"):
        gpt2.load()


@pytest.mark.parametrize("model", matrix(["transformer", "mlp", "ngram"], ["transformer"]))
def test_a_run_keeps_its_tokenizer_and_its_specials(cli, merges, names, model):
    sizes = () if model == "ngram" else ("--n-embd", 8, "--n-layer", 1, "--batch-size", 4, "--steps", 2)
    given = ("--model", model, "--tokenizer", "gpt2", "--kind", "lines", *sizes)
    done = cli("train.py", "--data", names, *given, "--out", "run", env={"CHARLM_DATA": str(merges)})
    assert done.code == 0 and "50262 ids" in done.out, done.err
    (merges / "vocab.bpe").unlink()
    drawn = cli("sample.py", "run", "--num", 3, "--seed", 1, "--max-new-tokens", 4)
    assert drawn.code == 0 and len(drawn.out.split("\n")) == 4, drawn.err
    assert cli("train.py", "--eval-only", "--out", "run").code == 0
