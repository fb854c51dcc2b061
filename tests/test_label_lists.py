"""Lists of labels, read from every shape of file, and a split that keeps each label in training."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data.examples import drop_duplicates, keep_labels_in_training, read_examples
from data.labelled import several
from data.labelled.example import Columns, Example

LISTED = [("a", "b"), (), ("b",), ("a", "c")]
SHAPES = {
    "lines.jsonl": "\n".join(json.dumps({"text": f"t{n}", "label": list(of)}) for n, of in enumerate(LISTED)),
    "pairs.json": json.dumps([[f"t{n}", list(of)] for n, of in enumerate(LISTED)]),
    "columns.json": json.dumps({"text": ["t0", "t1", "t2", "t3"], "label": [list(of) for of in LISTED]}),
    "two.json": json.dumps([{"tags": list(of), "body": f"t{n}"} for n, of in enumerate(LISTED)]),
    "mixed.jsonl": '{"text": "t0", "label": ["a", "b", "a", " "]}\n{"text": "t1", "label": []}\n'
    '{"text": "t2", "label": "b"}\n{"text": "t3", "label": ["a", "c"]}',
}
SEPARATED = {
    "table.csv": (",", 'text,label\nt0,"a,b"\nt1,\nt2,b\nt3,"a, c,,a"\n'),
    "table.tsv": ("|", "a|b\tt0\n\tt1\nb\tt2\na|c\tt3\n"),
    "texts.jsonl": (
        ";",
        "\n".join(json.dumps({"text": f"t{n}", "label": ";".join(of)}) for n, of in enumerate(LISTED)),
    ),
}


def labels_of(path: Path, *args, separator: str | None = None) -> list[tuple[str, ...]]:
    _, examples = read_examples(str(path), Columns(*args), separator=separator)
    return [example.labels for example in several.as_lists(examples)]


@pytest.mark.parametrize("name", SHAPES)
def test_lists_of_labels_are_read(tmp_path, name):
    (tmp_path / name).write_text(SHAPES[name], "utf-8")
    assert labels_of(tmp_path / name) == LISTED
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(SHAPES[name].encode()))
    assert labels_of(tmp_path / f"{name}.gz") == LISTED


@pytest.mark.parametrize("name", SEPARATED)
def test_a_separator_makes_lists_of_labels(tmp_path, name):
    separator, content = SEPARATED[name]
    (tmp_path / name).write_text(content, "utf-8")
    columns = ("2", "1") if name.endswith(".tsv") else ()
    assert labels_of(tmp_path / name, *columns, separator=separator) == LISTED


def test_lines_of_fasttext_may_have_several_labels(tmp_path):
    (tmp_path / "x.txt").write_text("__label__a __label__b one\n__label__a two\n" * 10, "utf-8")
    assert labels_of(tmp_path / "x.txt")[:2] == [("a", "b"), ("a",)]


@pytest.mark.parametrize("noted", ["Sequence", "list", "nothing"])
def test_parquet_has_lists_of_labels_or_of_numbers_with_names(tmp_path, noted):
    number = {"a": 0, "b": 1, "c": 2}
    lists = [[label if noted == "nothing" else number[label] for label in of] for of in LISTED]
    table = pyarrow.table({"text": [f"t{n}" for n in range(4)], "labels": lists})
    names = {"names": ["a", "b", "c"], "_type": "ClassLabel"}
    feature = {"Sequence": {"feature": names, "_type": "Sequence"}, "list": [names], "nothing": None}[noted]
    info = json.dumps({"info": {"features": {"labels": feature}}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "x.parquet")
    assert labels_of(tmp_path / "x.parquet") == labels_of(tmp_path / "x.parquet", None, "labels") == LISTED


def test_a_label_that_is_missing_is_not_a_text_without_labels(tmp_path, capsys):
    rows = [{"text": f"t{n}", "label": ["a"] if n % 2 else []} for n in range(20)] + [{"text": "x", "label": None}]
    (tmp_path / "x.json").write_text(json.dumps(rows), "utf-8")
    assert len(labels_of(tmp_path / "x.json")) == 20 and "example 21 has an empty label" in capsys.readouterr().err
    assert labels_of(tmp_path / "x.json", separator=",")[-1] == ()


def test_a_label_that_occurs_once_is_learned_from_and_copies_stay_together():
    def example(text: str, *labels: str) -> Example:
        return Example(text, "", "", labels)

    sides = {
        "train": [example("one", "a")],
        "val": [
            example("two", "b"),
            example("Two", "c", "a"),
            example("three"),
            example("four", "a"),
            example("5", "e"),
        ],
        "test": [example("six", "d"), example("seven", "b")],
    }
    kept = keep_labels_in_training(sides, ["val", "test"])
    assert [e.text for e in kept["train"]] == ["one", "two", "Two", "5", "six"]
    assert [e.text for e in kept["val"]] == ["three", "four"] and [e.text for e in kept["test"]] == ["seven"]
    assert keep_labels_in_training(sides, []) == sides, "what was published stays"
    assert len(drop_duplicates([example("a", "x", "y"), example("A", "y", "x"), example("a", "x")])) == 2
