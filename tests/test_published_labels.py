"""Labelled texts in the shapes in which they are published: folders, tables, lines, JSON, and their own split."""

import gzip
import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.examples import read_examples, read_sides
from data.labelled.example import Columns
from tests.helpers import ok, refused, summary, warnings_of

MODULE = "-m finetune.classify"
QUICK = ("--n-embd", 8, "--n-hidden", 8, "--steps", 2, "--eval-interval", 2, "--batch-size", 8, "--ngrams", 0)
PLAIN = Columns()
REVIEWS = {"pos": ["A joy.\nSee it twice.", "Warm and wise"], "neg": ["A bore.", "Two hours lost"]}


def write(files: dict[str, str], root: Path) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, "utf-8")
    return root


def pairs(path: Path, columns: Columns = PLAIN) -> list[tuple[str, str]]:
    return [(e.text, e.label) for e in read_examples(str(path), columns)[1]]


def imdb(side: str) -> dict[str, str]:
    files = {f"{side}/{c}/{n}_8.txt": text for c, texts in REVIEWS.items() for n, text in enumerate(texts)}
    return files | {f"{side}/urls_pos.txt": "http://x\n", f"{side}/labeledBow.feat": "9 0:1\n"}


def test_a_folder_of_folders_has_a_file_a_text_and_says_what_it_leaves_out(tmp_path, capsys):
    root = write(imdb("train") | {"train/unsup/0_0.txt": "who knows", "train/pos/.hidden": "x"}, tmp_path)
    expected = [(text, label) for label in ("neg", "pos") for text in REVIEWS[label]]
    assert pairs(root / "train") == expected
    assert "3 of what" in (told := capsys.readouterr().err) and "labeledBow.feat, unsup/, urls_pos.txt" in told


def test_a_data_set_of_folders_keeps_its_own_test(cli, tmp_path):
    files = {f"train/{c}/{n}.txt": f"{text} {n}" for c, texts in REVIEWS.items() for n, text in enumerate(texts * 15)}
    write(files | imdb("test") | {"imdb.vocab": "the\n", "README": "x"}, tmp_path / "aclImdb")
    done = ok(cli(MODULE, "--data", "aclImdb", *QUICK, "--out", "run"))
    assert "54 train, 6 val, 4 test, 2 classes" in done.out and "README, imdb.vocab" in done.err
    assert summary()["test"]["classes"].keys() == {"neg", "pos"}


def test_a_folder_of_tables_is_a_data_set_with_its_split(cli, tmp_path):
    rows = [f"what is {n},{'ab'[n % 2]}\n" for n in range(40)]
    files = {"train.csv": "text,label\n" + "".join(rows), "test.csv": "text,label\nwhat is 3,b\nwhat is it,a\n"}
    write(files | {"categories.json": "[]"}, tmp_path / "bank")
    done = ok(cli(MODULE, "--data", "bank", *QUICK, "--out", "run"))
    assert "bank: 36 train, 4 val, 2 test, 2 classes" in done.out
    found = " ".join(warnings_of(done))
    assert "categories.json" in found and "1 of 40 train examples have a text that is in test too" in found
    assert "train.csv line 5 and bank/test.csv line 2" in found
    done = ok(cli(MODULE, "--data", "bank", "--duplicates", "drop", *QUICK, "--out", "drop"))
    assert "bank: 35 train, 4 val, 2 test" in done.out and "left out of train" in done.err
    line = json.loads(ok(cli(MODULE, "--eval-only", "--data", "bank", "--out", "run")).out)
    assert line["examples"] == 2
    write({"bank/test.csv": "text,label\nwhat is 3,a\nwhat is it,a\n"}, tmp_path)
    refused(cli(MODULE, "--resume", "--out", "run", "--steps", 4), "have changed since the run began")


def test_shards_of_a_side_are_read_in_their_order(tmp_path):
    lines = [f"{'ab'[n % 2]}\ttext {n}\n" for n in range(4)]
    for n in (0, 1):
        (tmp_path / f"train-0000{n}-of-00002.tsv.gz").write_bytes(gzip.compress("".join(lines[n::2]).encode()))
    _, sides = read_sides(str(tmp_path), Columns())
    assert [e.text for e in sides["train"]] == ["text 0", "text 2", "text 1", "text 3"] and len(sides) == 1


def test_the_side_may_be_the_last_part_of_a_name(tmp_path, capsys):
    content = LINES["train_5500.label"][0]
    write({"TREC.train": content, "TREC.test": content, "rt.neg": "bad\n"}, tmp_path)
    assert {side: len(examples) for side, examples in read_sides(str(tmp_path), PLAIN)[1].items()} == {
        "train": 3,
        "test": 3,
    }
    assert (
        "1 of what" in (told := capsys.readouterr().err) and "not of the train, validation or test side: rt.neg" in told
    )


def test_two_files_for_one_side_are_refused(tmp_path):
    write({"train.csv": "a,b\n", "train.tsv": "a\tb\n", "test.csv": "a,b\n"}, tmp_path)
    with pytest.raises(UserError, match="has train.csv and train.tsv, both for train"):
        read_sides(str(tmp_path), Columns())


def test_a_file_a_class_goes_by_its_suffix_where_the_names_are_equal(tmp_path, capsys):
    root = write({"rt.pos": "good\nfine\n", "rt.neg": "bad\n", "README.md": "about\n", "x.csv": "a,b\n"}, tmp_path)
    assert pairs(root) == [("bad", "neg"), ("good", "pos"), ("fine", "pos")]
    assert "README.md, x.csv" in capsys.readouterr().err


def test_tables_in_a_folder_are_no_classes(tmp_path):
    write({"one.csv": "a,b\n", "two.csv": "a,b\n"}, tmp_path)
    with pytest.raises(UserError, match=r"holds tables \(one.csv, two.csv\), not a text file a class: name one"):
        pairs(tmp_path)


def test_validation_and_test_files_are_used_as_they_are(cli, tmp_path):
    rows = [f"{'ab'[n % 2]}\twhat is {n}\n" for n in range(40)]
    write({"x.tsv": "".join(rows), "v.tsv": "a\thello\nb\tyou\n", "t.tsv": "a\thello\nb\tme\na\thim\n"}, tmp_path)
    done = ok(cli(MODULE, "--data", "x.tsv", "--val-data", "v.tsv", "--test-data", "t.tsv", *QUICK, "--out", "run"))
    assert "x: 40 train, 2 val, 3 test, 2 classes" in done.out
    assert "1 of 2 val examples have a text that is in test too" in done.err
    assert json.loads(cli(MODULE, "--eval-only", "--out", "run").out)["examples"] == 3
    Path("t.tsv").rename("moved.tsv")
    refused(cli(MODULE, "--resume", "--out", "run", "--steps", 4), "no such file, folder or data set: 't.tsv'")
    ok(cli(MODULE, "--resume", "--out", "run", "--steps", 4, "--test-data", "moved.tsv"))
    assert json.loads(cli(MODULE, "--eval-only", "--out", "run").out)["examples"] == 3
    done = ok(cli(MODULE, "--data", "x.tsv", "--val-data", "v.tsv", *QUICK, "--out", "other"))
    assert "36 train, 2 val, 4 test" in done.out
    write({"t.tsv": "a\thello\nc\tme\n"}, tmp_path)
    told = cli(MODULE, "--data", "x.tsv", "--test-data", "t.tsv", *QUICK, "--out", "third")
    refused(told, "t.tsv line 2 has the label 'c'", "no training example has", "there are: a, b")


def test_instructions_have_validation_and_test_files_too(cli, tmp_path):
    for name, count in (("chat", 30), ("val", 3), ("test", 4)):
        said = [{"prompt": f"What is {name} {n}?", "completion": str(n)} for n in range(count)]
        write({f"{name}.jsonl": "\n".join(map(json.dumps, said))}, tmp_path)
    quick = ("--n-embd", 8, "--n-layer", 1, "--n-head", 1, "--steps", 2, "--eval-interval", 2, "--max-answer", 2)
    own = ("--val-data", "val.jsonl", "--test-data", "test.jsonl")
    done = ok(cli("-m finetune.instruct", "--data", "chat.jsonl", *own, *quick, "--out", "run"))
    assert "chat: 30 train, 3 val, 4 test" in done.out
    assert json.loads(ok(cli("-m finetune.instruct", "--eval-only", "--out", "run")).out)["examples"] == 4
    ok(cli("-m finetune.instruct", "--resume", "--out", "run", "--steps", 3))
    told = cli("-m finetune.instruct", "--val-data", "val.jsonl", *quick, "--out", "other")
    refused(told, "--val-data means nothing to the bundled strings")


HEADERS = {
    "imdb.csv": "review,sentiment\n" + '"A joy, twice",positive\nA bore,negative\nWarm,positive\nLost,negative\n',
    "sms.csv": "Category,Message\nham,A joy\nspam,A bore\nham,Warm\nspam,Lost\n",
    "sst.tsv": "sentence\tlabel\nA joy\t1\nA bore\t0\nWarm\t1\nLost\t0\n",
    "yours.csv": "Zug;Wert\nA joy, twice;1\nA bore;0\nWarm;1\nLost;0\n",
    "tabs.csv": "quoi\toui\nA joy\t1\nA bore\t0\nWarm\t1\nLost\t0\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_two_columns_under_any_header_go_by_what_they_hold(tmp_path, capsys, name):
    found = pairs(write({name: HEADERS[name]}, tmp_path) / name)
    assert [text.split(",")[0] for text, _ in found] == ["A joy", "A bore", "Warm", "Lost"]
    assert found[0][1] == found[2][1] != found[1][1]
    first = HEADERS[name].splitlines()[0].replace(";", ",").replace("\t", ",").split(",")
    text, label = first if name != "sms.csv" else reversed(first)
    assert f"'{text}' is taken for the text and '{label}' for the label" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [["ham\tsee you", "ham\tsee me"], ["Title\tsee you", "b\tsee", "b\tme", "c\tit"]])
def test_a_first_row_like_the_others_is_no_header(tmp_path, capsys, rows):
    assert len(pairs(write({"x.tsv": "\n".join(rows)}, tmp_path) / "x.tsv")) == len(rows)
    assert capsys.readouterr().err == ""


NUMBERED = ['"3","Wall St. Bears","short sellers"', '"4","2","chips"', '"3","Oil","higher"', '"4","Wifi","free"']


@pytest.mark.parametrize("head", [[], ["class,title,body"]])
def test_numbers_count_the_columns_of_a_file_without_a_header(tmp_path, head):
    path = write({"ag.csv": "\n".join(head + NUMBERED)}, tmp_path) / "ag.csv"
    assert pairs(path, Columns("3", "1")) == [("short sellers", "3"), ("chips", "4"), ("higher", "3"), ("free", "4")]
    path = (
        write({"yelp.csv": '"3","1","bad food"\n"1","2","good"\n"3","2","bad"\n"1","1","ok"\n'}, tmp_path) / "yelp.csv"
    )
    assert pairs(path, Columns("3", "1"))[0] == ("bad food", "3") and len(pairs(path, Columns("3", "1"))) == 4


def test_two_columns_that_do_not_tell_which_is_the_label_name_the_flags(cli, tmp_path):
    write({"x.csv": "".join(f"one {n},two {n}\n" for n in range(9))}, tmp_path)
    told = cli(MODULE, "--data", "x.csv", *QUICK, "--out", "run")
    refused(told, "class 'one 0' of x has a single example", "--text-column and --label-column say which are meant")


def test_a_comma_stays_the_delimiter_beside_other_marks(tmp_path, capsys):
    rows = ["one; two; three,a", "four; five", "six; seven; eight,b", "nine; ten; eleven,a", "x; y; z,b"]
    found = pairs(write({"x.csv": "\n".join(rows)}, tmp_path) / "x.csv")
    assert found[0] == ("one; two; three", "a") and len(found) == 4
    assert "x.csv line 2 has 1 columns where 2 are needed" in capsys.readouterr().err
    ragged = write({"x.csv": "one; two,a\nthree; four,b,\nfive; six,a\nseven; eight,b\n"}, tmp_path) / "x.csv"
    assert [label for _, label in pairs(ragged)] == ["a", "b", "a", "b"]


def test_of_two_columns_one_name_is_enough(tmp_path):
    path = write({"x.csv": "a,b\none,1\ntwo,2\n"}, tmp_path) / "x.csv"
    assert pairs(path, Columns(text="a")) == pairs(path, Columns(label="b")) == [("one", "1"), ("two", "2")]
    with pytest.raises(UserError, match="has no column 'c'; it has: a, b"):
        pairs(path, Columns(text="c"))


def test_a_short_row_or_an_empty_text_costs_that_row(cli, tmp_path):
    rows = [f"{'ab'[n % 2]}\twhat is {n}" for n in range(40)]
    rows[3], rows[7], rows[9], rows[11] = "a\t ", "onlythis", "\tno label", "b\t"
    write({"x.tsv": "\n".join(rows)}, tmp_path)
    done = ok(cli(MODULE, "--data", "x.tsv", *QUICK, "--out", "run"))
    assert "4 of 40 rows are left out: x.tsv line 4 has an empty text; x.tsv line 8 has 1 columns" in done.err
    assert "x.tsv line 10 has an empty label; and 1 more" in done.err and "28 train, 4 val, 4 test" in done.out
    rows[13] = "a\t"
    write({"x.tsv": "\n".join(rows)}, tmp_path)
    told = cli(MODULE, "--data", "x.tsv", *QUICK, "--out", "other")
    refused(told, "x.tsv line 4 has an empty text; 5 of 40 rows cannot be used")


def test_parquet_has_named_columns(tmp_path, capsys):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"sentence": ["A joy", "A bore", "Warm"], "label": [1, 0, 1]}
    parquet.write_table(arrow.table(columns), tmp_path / "train-00000-of-00001.parquet")
    parquet.write_table(arrow.table(columns | {"idx": [0, 1, 2]}), tmp_path / "test-00000-of-00001.parquet")
    own = pairs(tmp_path / "train-00000-of-00001.parquet")
    assert own == [("A joy", "1"), ("A bore", "0"), ("Warm", "1")]
    assert "'sentence' is taken for the text" in capsys.readouterr().err
    info = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    noted = arrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
    parquet.write_table(noted, tmp_path / "named.parquet")
    assert [label for _, label in pairs(tmp_path / "named.parquet")] == ["pos", "neg", "pos"]
    with pytest.raises(UserError, match="but: sentence, label, idx; --text-column and --label-column"):
        pairs(tmp_path / "test-00000-of-00001.parquet")
    _, sides = read_sides(str(tmp_path), Columns("sentence", "label"))
    assert {side: len(examples) for side, examples in sides.items()} == {"train": 3, "test": 3}


LINES = {
    "train_5500.label": (
        "DESC:manner How did it start ?\nLOC:city Which one ?\nDESC:def What is it ?\n",
        ["DESC", "LOC"],
    ),
    "rt.all": ("1 a joy\n0 a bore\n1 warm\n0 lost\n1 again\n", ["1", "0"]),
    "train.ft.txt.gz": ("__label__2 Great CD: fine\n__label__1 Bad: worn\n__label__2 So\n", ["2", "1"]),
    "SMSSpamCollection": ("ham\tsee you\nspam\tcall now\nham\tat eight\n", ["ham", "spam"]),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_may_begin_with_their_label(tmp_path, name):
    content, labels = LINES[name]
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    found = pairs(path)
    assert [label for _, label in found[:2]] == labels and len(found) == content.count("\n")
    first = content.splitlines()[0]
    assert found[0][0] == first.split(maxsplit=1)[1]


def test_fine_labels_are_asked_for_and_a_line_of_another_kind_is_left_out(tmp_path, capsys):
    content = LINES["train_5500.label"][0] * 5 + "no label here\n"
    path = write({"x.label": content}, tmp_path) / "x.label"
    assert pairs(path, Columns(label="fine"))[0] == ("How did it start ?", "DESC:manner") and len(pairs(path)) == 15
    told = capsys.readouterr().err
    assert "x.label line 16 begins with no LABEL:fine" in told and "with --label-column fine all of" in told
    with pytest.raises(UserError, match="--label-column may be coarse or fine"):
        pairs(path, Columns(label="2"))


ITEMS = [("A joy", "pos"), ("A bore", "neg"), ("Warm", "pos")]
OBJECTS = [{"sentence": text, "label": label} for text, label in ITEMS]
COLUMNS = {"text": [text for text, _ in ITEMS], "label": [label for _, label in ITEMS]}
JSON = {
    "lines.json": "\n".join(map(json.dumps, OBJECTS)),
    "lines.ndjson": "\n".join(map(json.dumps, OBJECTS)),
    "columns.json": json.dumps(COLUMNS),
    "pandas.json": json.dumps({key: dict(enumerate(column)) for key, column in COLUMNS.items()}),
    "pairs.json": json.dumps(ITEMS),
    "pairs.jsonl": "\n".join(map(json.dumps, ITEMS)),
}


@pytest.mark.parametrize("name", JSON)
def test_json_has_objects_pairs_or_columns(tmp_path, name):
    assert pairs(write({name: JSON[name]}, tmp_path) / name) == ITEMS


def test_json_of_splits_has_its_own_split(cli, tmp_path):
    rows = [[f"what is {n}", "ab"[n % 2]] for n in range(20)]
    content = {"val": ITEMS[:0] + [["hello", "a"]], "train": rows, "test": {"text": ["me", "you"], "label": ["b", "a"]}}
    write({"clinc.json": json.dumps(content | {"oos_val": [["x", "oos"]]})}, tmp_path)
    done = ok(cli(MODULE, "--data", "clinc.json", *QUICK, "--out", "run"))
    assert "clinc: 20 train, 1 val, 2 test, 2 classes" in done.out and "'oos_val' left out" in done.err
    done = ok(cli(MODULE, "--data", "clinc.json", "--val-data", "clinc.json", *QUICK, "--out", "other"))
    assert "20 train, 1 val, 2 test" in done.out and "--val-data takes the place of the 1 val examples" in done.err


BAD_JSON = {
    "ragged": ({"text": ["a", "b"], "label": ["x"]}, "neither columns nor splits"),
    "nested": ([{"text": "a", "label": [["x"], "y"]}], "example 1: 'label' is a list of other things than texts and"),
    "object": ([{"text": "a", "label": {"x": 1}}], "example 1: 'label' is neither a text nor a number nor a list"),
    "twice": ({"train": [["a", "b"]], "val": [["a", "b"]], "dev": [["a", "b"]]}, "two keys for one side"),
    "no keys": ([{"a": "x", "b": "y", "c": "z"}] * 3, "has no key 'text'; it has: a, b, c. --text-column and"),
    "empty side": ({"train": [["a", "b"]], "test": []}, "x.json 'test' holds no examples"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_of_another_shape_is_refused(tmp_path, case):
    value, message = BAD_JSON[case]
    with pytest.raises(UserError, match=message):
        pairs(write({"x.json": json.dumps(value)}, tmp_path) / "x.json")


def test_names_of_columns_mean_nothing_to_pairs_and_lines(tmp_path):
    path = write({"x.json": json.dumps(ITEMS), "x.all": LINES["rt.all"][0]}, tmp_path)
    with pytest.raises(UserError, match="without names: leave out --label-column"):
        pairs(path / "x.json", Columns(label="b"))
    with pytest.raises(UserError, match="--text-column is for tables and JSON"):
        pairs(path / "x.all", Columns(text="b"))
