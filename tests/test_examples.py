"""Labelled texts: every format, every mistake in them, duplicates and the split."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.examples import (
    BUNDLED,
    Columns,
    Example,
    drop_duplicates,
    labels_of,
    normalised,
    read_examples,
    split_examples,
)

PLAIN = Columns()
TWO = [("free money, now", "spam"), ('see "you" at 8', "ham"), ("naïve 漢字", "ham")]


def pairs(path, columns=PLAIN) -> list[tuple[str, str]]:
    return [(example.text, example.label) for example in read_examples(str(path), columns)[1]]


def write(path, text: str):
    path.write_text(text, "utf-8")
    return path


def test_a_table_of_tabs_takes_quotes_and_later_tabs_as_data(tmp_path):
    path = write(tmp_path / "sms.tsv", 'spam\t"free" money\nham\tat\teight\r\nham\tok\n\n')
    assert pairs(path) == [('"free" money', "spam"), ("at\teight", "ham"), ("ok", "ham")]


def test_a_csv_has_quoted_commas_and_line_ends_and_a_header(tmp_path):
    path = write(tmp_path / "x.csv", 'id,Label,Text\n1,a,"one, two"\n2,b,"three\nfour ""five"""\n')
    assert pairs(path) == [("one, two", "a"), ('three\nfour "five"', "b")]


@pytest.mark.parametrize(("text", "label"), [("body", "kind"), ("3", "2"), ("BODY", "Kind")])
def test_columns_go_by_name_or_by_number(tmp_path, text, label):
    head = "" if text.isdigit() else "id\tkind\tbody\n"
    path = write(tmp_path / "x.tsv", head + "1\ta\tone\n2\tb\ttwo\n")
    assert pairs(path, Columns(text, label)) == [("one", "a"), ("two", "b")]


def test_json_and_json_lines(tmp_path):
    items = [{"text": text, "label": label} for text, label in TWO]
    assert pairs(write(tmp_path / "x.json", json.dumps(items))) == TWO
    assert pairs(write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, items)) + "\n\n")) == TWO
    named = [{"t": text, "y": n % 2} for n, (text, _) in enumerate(TWO)]
    path = write(tmp_path / "y.jsonl", "\n".join(map(json.dumps, named)))
    assert pairs(path, Columns("t", "y")) == [(text, str(n % 2)) for n, (text, _) in enumerate(TWO)]


def test_a_folder_has_a_file_a_class(tmp_path):
    write(tmp_path / "spam.txt", "free money\n\nwin now\n")
    write(tmp_path / "ham.txt", "see you\n")
    assert pairs(tmp_path) == [("see you", "ham"), ("free money", "spam"), ("win now", "spam")]


def test_the_bundled_surnames_are_as_many_and_as_distinct_as_promised():
    name, examples = read_examples("surnames", PLAIN)
    counts = Counter(example.label for example in examples)
    assert name == "surnames" and len(counts) >= 12 and min(counts.values()) >= 150
    assert len(drop_duplicates(examples)) == len(examples) and len(list(BUNDLED.iterdir())) == len(counts)


HALVES = {"high": "\\ud83d", "low": "x\\uDE00", "turned": "\\ude00\\ud83d"}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("item", ['{"text": "a%s", "label": "b"}', '{"text": "a", "label": "%s"}', '{"%s": 1}'])
def test_half_of_a_character_is_refused_wherever_it_stands(tmp_path, half, item):
    good = '{"text": "whole \\ud83d\\ude00", "label": "b"}'
    for name, content, place in (
        ("x.jsonl", f"{good}\n{item % half}\n", "line 2"),
        ("x.json", f"[{good}, {item % half}]", "example 2"),
    ):
        with pytest.raises(UserError, match=f"{name} {place} has half of a character"):
            read_examples(str(write(tmp_path / name, content)), PLAIN)


def test_a_pair_of_escapes_is_a_character(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text": "\\ud83d\\ude00", "label": "\\\\ud83d"}\n')
    assert pairs(path) == [("\U0001f600", "\\ud83d")]


def test_a_name_of_a_class_that_is_no_text_is_refused(tmp_path):
    write(tmp_path / "sp\udce4m.txt", "free money\n")  # a name in latin-1, as the system gives it
    with pytest.raises(UserError, match="line 1 has half of a character"):
        read_examples(str(tmp_path), PLAIN)


def test_line_ends_of_old_macs_and_control_characters_of_cp1252(tmp_path, capsys):
    path = tmp_path / "x.tsv"
    path.write_bytes(b"spam\tfree \x93money\x94\rham\tsee you\rham\tok\r")
    _, found = read_examples(str(path), PLAIN, "latin-1")
    assert [example.label for example in found] == ["spam", "ham", "ham"]
    assert "--encoding cp1252" in capsys.readouterr().err


def test_numbers_pass_over_a_header_and_a_label_may_be_any_number(tmp_path):
    path = write(tmp_path / "x.csv", "text,label\none,a\ntwo,b\n")
    assert pairs(path, Columns("1", "2")) == [("one", "a"), ("two", "b")]
    assert pairs(write(tmp_path / "x.jsonl", '{"text": "a", "label": 1.0}\n')) == [("a", "1.0")]


MISTAKES = {
    "no header": ("x.tsv", "a\tb\tc\n", PLAIN, "line 1 names no columns 'text' and 'label'"),
    "no column": ("x.csv", "text,label\na,b\n", Columns(text="txt"), "no column 'txt'; it has: text, label.*'text'"),
    "no number": ("x.tsv", "a\tb\n", Columns("3", "1"), "has 2 columns; there is no column 3"),
    "one number": ("x.tsv", "a\tb\n", Columns("2"), "give --label-column too"),
    "odd number": ("x.tsv", "a\tb\n", Columns("²", "1"), "has no column '²'"),
    "column zero": ("x.tsv", "a\tb\n", Columns("0", "1"), "there is no column 0"),
    "deep": ("x.json", "[" * 200_000, PLAIN, "is not JSON"),
    "short row": ("x.tsv", "text\tlabel\na\tb\nonly\n", PLAIN, "line 3 has 1 columns where 2 are needed"),
    "bad csv": ("x.csv", 'text,label\n"a,b\n', PLAIN, "line 2: a quote that begins here never ends"),
    "no key": (
        "x.jsonl",
        '{"text": "a", "label": "b"}\n{"txt": "a", "label": "b"}\n',
        PLAIN,
        "line 2 has no key 'text'",
    ),
    "not json": ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', PLAIN, "line 2 is not JSON"),
    "no object": ("x.jsonl", "3\n", PLAIN, "line 1 is not an object"),
    "nested": ("x.jsonl", '{"text": ["a"], "label": "b"}\n', PLAIN, "'text' is neither a text nor a number"),
    "no list": ("x.json", '{"text": "a"}', PLAIN, "is not a list of examples: it holds one dict"),
    "broken": ("x.json", "[{", PLAIN, "is not JSON"),
    "empty text": ("x.tsv", "a\tb\na\t \n", PLAIN, "line 2 has an empty text"),
    "empty label": ("x.jsonl", '{"text": "a", "label": ""}\n', PLAIN, "empty label. Where a text may have any number"),
    "nothing": ("x.tsv", "\n\n", PLAIN, "holds no examples"),
    "format": (
        "x.xlsx",
        "a",
        PLAIN,
        "give a .tsv, .csv, .json, .jsonl, .parquet file, lines of one kind .*or a folder",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_file_names_the_place_and_the_way_out(tmp_path, case):
    name, content, columns, message = MISTAKES[case]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        read_examples(str(path), columns)
    assert name in str(error.value)


def test_columns_mean_nothing_to_a_folder(tmp_path):
    write(tmp_path / "a.txt", "x\n")
    with pytest.raises(UserError, match="--label-column is for tables"):
        read_examples(str(tmp_path), Columns(label="b"))


@pytest.mark.parametrize(
    ("labels", "message"), [("aa", "all 2 texts of x have the label 'a'"), ("aab", "class 'b' of x has a single")]
)
def test_classes_that_cannot_be_learned_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        labels_of([Example(str(n), label, "") for n, label in enumerate(labels)], "x")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from(["Ab", "ab ", "a  b", "c", "d", "e", "F", "f", "g"]), st.sampled_from("xy"))
    ),
    seed=st.integers(0, 9),
)
def test_no_text_is_on_two_sides_and_nothing_is_lost(drawn, seed):
    examples = [Example(text, label, f"{n}") for n, (text, label) in enumerate(drawn)]
    examples += [Example(f"{label}{n}", label, f"{label}{n}") for label in "xy" for n in range(30)]
    sides = split_examples(examples, seed)
    assert sorted(e.where for side in sides.values() for e in side) == sorted(e.where for e in examples)
    texts = [{normalised(e.text) for e in side} for side in sides.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert {k: [e.where for e in v] for k, v in split_examples(examples, seed).items()} == {
        k: [e.where for e in v] for k, v in sides.items()
    }


def test_a_few_texts_are_held_out_whole_and_never_the_last_of_a_class():
    examples = [Example("same", "b", f"{n}") for n in range(4)] + [Example(f"a{n}", "a", f"a{n}") for n in range(3)]
    sides = split_examples(examples, 0)
    assert {e.label for e in sides["train"]} == {"a", "b"} and len(sides["train"]) == 5
    with pytest.raises(UserError, match="2 different texts are too few to hold out two"):
        split_examples(examples[:5], 0)


def test_the_split_keeps_a_tenth_of_every_class_and_follows_its_seed():
    examples = [Example(f"{label}{n}", label, "") for label, count in (("x", 400), ("y", 50)) for n in range(count)]
    sides = split_examples(examples, 0)
    assert [Counter(e.label for e in sides[side]) for side in ("val", "test")] == [{"x": 40, "y": 5}] * 2
    assert {e.text for e in sides["test"]} != {e.text for e in split_examples(examples, 1)["test"]}


def test_dropping_duplicates_keeps_the_first_and_other_labels():
    examples = [
        Example(t, y, str(n)) for n, (t, y) in enumerate([("A b", "x"), ("a  B", "x"), ("a b", "y"), ("c", "x")])
    ]
    assert [e.where for e in drop_duplicates(examples)] == ["0", "2", "3"]
