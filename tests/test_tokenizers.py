"""The tokenizers: round trips over all of Unicode, specials, unknown characters, decoding piece by piece, JSON."""

import base64
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import bpe
from data.errors import UserError
from data.tokenizers import EOS, N_SPECIALS, SPECIALS, UNK, ByteTokenizer, CharTokenizer
from data.vocabulary import check_name, from_json

FIXED = settings(max_examples=60, deadline=None, derandomize=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
HARD = "e\u0301 naïve 漢字 한국 👩\u200d👩\u200d👧 𝒳 \U0010ffff <eos> \r\n\t\x85\u2028"
TOKENIZERS = ["char", "byte", "bpe"]


PROSE = "the sea, the sea, the open sea: it's 1849 and the shells sing — naïve songs"


def tokenizer_for(kind: str, text: str):
    if kind == "bpe":
        return bpe.learn([f"{PROSE}\n", text], 300)
    return ByteTokenizer() if kind == "byte" else CharTokenizer(text)


@pytest.mark.parametrize("kind", TOKENIZERS)
@FIXED
@given(text=TEXTS)
@example(text=HARD)
def test_text_survives_a_round_trip_and_never_becomes_a_special(kind, text):
    tokenizer = tokenizer_for(kind, text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not len(ids) or N_SPECIALS <= ids.min() and ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_special_spelled_out_is_ordinary_text(kind):
    text = "".join(SPECIALS)
    tokenizer = tokenizer_for(kind, text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and ids.min() >= N_SPECIALS


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_specials_have_the_first_six_ids_and_decode_to_nothing(kind):
    tokenizer = tokenizer_for(kind, "ab")
    assert tokenizer.specials == {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "<user>": 4, "<assistant>": 5}
    (a,), (b,) = tokenizer.encode("a").tolist(), tokenizer.encode("b").tolist()
    assert tokenizer.decode([0, 1, a, 4, 5, b, 2]) == "ab"
    assert tokenizer.decode([a, UNK, b]) == "a\ufffdb"


def test_character_ids_follow_the_code_points():
    assert CharTokenizer("zaé漢a").encode("azé漢").tolist() == [6, 7, 8, 9]


def test_bytes_follow_the_specials_in_order():
    assert ByteTokenizer().vocab_size == 262
    assert ByteTokenizer().encode("A€").tolist() == [N_SPECIALS + byte for byte in b"A\xe2\x82\xac"]


def test_an_unknown_character_is_named_with_its_place_and_the_way_out():
    tokenizer = CharTokenizer("".join(map(chr, range(32, 97))))
    with pytest.raises(UserError) as error:
        tokenizer.encode("COSTS ABOUT €5 OR £4")
    assert str(error.value) == (
        "character '€' (position 12) is not in this model's vocabulary of 65; use --unknown skip"
    )


@pytest.mark.parametrize("known, form", [("caf\u00e9", "NFC"), ("cafe\u0301", "NFD")])
def test_a_text_in_the_other_unicode_form_is_told_so(known, form):
    tokenizer = CharTokenizer(known)
    other = "cafe\u0301 \u03b2" if form == "NFC" else "caf\u00e9 \u03b2"  # one that no form knows besides
    with pytest.raises(
        UserError, match=rf"accents .* their letters \({form}\), so write the text in that form, or use"
    ):
        tokenizer.encode(other)
    with pytest.raises(UserError) as error:
        tokenizer.encode(known + "x")
    assert "NF" not in str(error.value)


def test_unknown_positions_count_characters_not_code_units():
    with pytest.raises(UserError, match=r"'€' \(position 2\)"):
        CharTokenizer("😀").encode("😀😀€")


@FIXED
@given(known=TEXTS.filter(bool), text=TEXTS)
def test_skip_leaves_unknown_characters_out_and_mask_marks_them(known, text):
    tokenizer = CharTokenizer(known)
    assert tokenizer.decode(tokenizer.encode(text, "skip")) == "".join(c for c in text if c in known)
    masked = tokenizer.encode(text, "mask")
    assert (masked == UNK).tolist() == [c not in known for c in text]
    assert tokenizer.decode(masked) == "".join(c if c in known else "\ufffd" for c in text)


@pytest.mark.parametrize("halves", ["a\ud83d", "\ude00", "a\ud83d\ude00"])
def test_halves_of_characters_are_in_no_alphabet(halves):
    """JSON puts them together again, and the alphabet would be another."""
    for make in (CharTokenizer, lambda text: from_json({"type": "char", "characters": text})):
        with pytest.raises(UserError, match="halves of characters"):
            make(halves)


def test_no_byte_is_unknown_not_even_a_lone_surrogate_from_the_shell():
    assert len(ByteTokenizer().encode("a\udcff")) == 4
    with pytest.raises(UserError, match="position 1"):
        CharTokenizer("a").encode("a\udcff")


@pytest.mark.parametrize("kind", TOKENIZERS)
@FIXED
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200)))
@example(text=HARD, cuts=[*range(200)])
def test_decoding_in_pieces_never_shows_half_a_character(kind, text, cuts):
    tokenizer = tokenizer_for(kind, text)
    decoder, shown = tokenizer.decoder(), ""
    for piece in np.split(tokenizer.encode(text), sorted(cuts)):
        shown += decoder.feed(piece.tolist())
        assert text.startswith(shown)
    assert shown + decoder.flush() == text == tokenizer.decode(tokenizer.encode(text))


@FIXED
@given(ids=st.lists(st.integers(0, 261)), cut=st.integers(0, 100))
def test_decoding_any_ids_in_pieces_equals_decoding_them_at_once(ids, cut):
    decoder = ByteTokenizer().decoder()
    pieces = decoder.feed(ids[:cut]) + decoder.feed(ids[cut:]) + decoder.flush()
    assert pieces == ByteTokenizer().decode(ids)


def test_a_torn_character_is_held_back_and_then_shown_as_a_replacement():
    decoder = ByteTokenizer().decoder()
    assert decoder.feed(ByteTokenizer().encode("é€").tolist()[:-1]) == "é"
    assert decoder.flush() == "\ufffd"


@pytest.mark.parametrize("kind", TOKENIZERS)
@FIXED
@given(text=TEXTS)
@example(text=HARD)
def test_characters_add_up_to_the_length_of_the_text(kind, text):
    tokenizer = tokenizer_for(kind, text)
    counts = tokenizer.characters()
    assert counts.shape == (tokenizer.vocab_size,)
    assert counts[tokenizer.encode(text)].sum() == len(text)
    assert counts[:N_SPECIALS].tolist() == [int(i == EOS) for i in range(N_SPECIALS)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@FIXED
@given(text=TEXTS)
@example(text=HARD)
def test_json_brings_the_same_tokenizer_back(kind, text):
    tokenizer = tokenizer_for(kind, text)
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(again) is type(tokenizer) and again.vocab_size == tokenizer.vocab_size
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


BYTES = [base64.b64encode(bytes([b])).decode() for b in range(256)]
FOREIGN_BPE = [
    {"type": "bpe"},
    {"type": "bpe", "pattern": "(a+)+b", "tokens": BYTES},
    {"type": "bpe", "pattern": bpe.GPT2_PATTERN, "tokens": BYTES[1:]},
    {"type": "bpe", "pattern": bpe.GPT2_PATTERN, "tokens": [*BYTES, BYTES[7]]},
    {"type": "bpe", "pattern": bpe.GPT2_PATTERN, "tokens": [*BYTES, "not base64"]},
    {"type": "bpe", "pattern": bpe.GPT2_PATTERN, "tokens": [*BYTES, 5]},
]


@pytest.mark.parametrize("stored", [None, [], {}, {"type": "char"}, {"type": "char", "characters": 5}, *FOREIGN_BPE])
def test_foreign_json_is_refused(stored):
    with pytest.raises(UserError, match="not a tokenizer"):
        from_json(stored)


@pytest.mark.parametrize(("distinct", "dtype"), [(65_530, np.uint16), (65_531, np.uint32)])
def test_ids_are_stored_in_the_narrowest_type_that_holds_them(distinct, dtype):
    alphabet = "".join(map(chr, range(0x10000, 0x10000 + distinct)))
    ids = CharTokenizer(alphabet).encode(alphabet)
    assert ids.dtype == dtype and ids.tolist() == [*range(N_SPECIALS, N_SPECIALS + distinct)]


def test_an_unknown_tokenizer_name_suggests_the_nearest():
    with pytest.raises(UserError, match="'chars'.*Did you mean 'char'"):
        check_name("chars")


def test_merges_are_the_most_frequent_pairs_inside_words():
    tokenizer = bpe.learn(["low low low low lower lower newest newest newest newest newest newest widest widest"], 262)
    assert tokenizer.tokens[256:] == [b"es", b"est", b" n", b"ew", b"lo", b" new"]
    assert tokenizer.vocab_size == 262 + N_SPECIALS
    assert tokenizer.decode(tokenizer.encode("new slowest")) == "new slowest"


def test_a_text_without_more_pairs_makes_fewer_tokens():
    assert bpe.learn(["ab ab"], 1000).vocab_size == N_SPECIALS + 256 + len([b"ab", b" ab"])


@FIXED
@given(text=TEXTS, cuts=st.lists(st.integers(0, 300)))
@example(text=f"{PROSE}\n\n  {PROSE} ", cuts=[*range(0, 170, 3)])
def test_a_text_in_chunks_has_the_tokens_of_the_whole(text, cuts):
    tokenizer = tokenizer_for("bpe", "")
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    pieces = [tokenizer.encode(piece).tolist() for piece in bpe.whole_words(chunks)]
    assert sum(pieces, []) == tokenizer.encode(text).tolist()


def test_bpe_of_a_lone_surrogate_from_the_shell():
    tokenizer = tokenizer_for("bpe", "")
    assert tokenizer.decode(tokenizer.encode("a\udcffb")) == "a\ufffdb"


@pytest.mark.parametrize("name", ["bpe", "bpe:", "bpe:255", "bpe:x", "bpe:-300", "bpe:99999999", "bpe:٣٠٠"])
def test_an_impossible_size_is_refused(name):
    with pytest.raises(UserError, match="write bpe:N, N being 256 bytes . merges"):
        check_name(name)


def test_bpe_through_the_command_line(cli, text):
    sizes = ("--n-embd", 16, "--n-head", 2, "--n-layer", 1, "--context", 16, "--batch-size", 2)
    done = cli("train.py", "--data", text, "--tokenizer", "bpe:300", *sizes, "--steps", 3, "--out", "run")
    assert done.code == 0 and "306 ids" in done.out, done.err
    sampled = cli("sample.py", "run", "--prompt", "émma 漢", "--max-new-tokens", 20, "--stream", "--seed", 1)
    assert sampled.code == 0 and sampled.out.startswith("émma 漢")
    scored = json.loads(cli("sample.py", "run", "--score", "emma met ava", "--json").out)
    assert scored["bits_per_char"] > 0 and cli("train.py", "--eval-only", "--out", "run").code == 0
    resumed = cli("train.py", "--resume", "--out", "run", "--steps", 5)
    assert resumed.code == 0, resumed.err
    refused = cli("train.py", "--data", text, "--tokenizer", "bpe:12")
    assert refused.code == 2 and "write bpe:N" in refused.err


def test_bpe_of_lines_never_crosses_them(cli, names):
    sizes = ("--n-embd", 16, "--n-head", 2, "--n-layer", 1, "--batch-size", 2)
    done = cli(
        "train.py", "--data", names, "--kind", "lines", "--tokenizer", "bpe:280", *sizes, "--steps", 3, "--out", "run"
    )
    assert done.code == 0, done.err
    tokens = [base64.b64decode(t) for t in json.loads(open("run/tokenizer.json").read())["tokens"]]
    everything = names.read_text()
    assert len(tokens) == 280 and all(token.decode() in everything for token in tokens[256:])
