"""The files that a reader of README and docs has, as far as their commands name them."""

import gzip
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard

from tests.conftest import NAMES


def write_texts(folder: Path) -> str:
    """Texts to train on. Returns what most of them say."""
    prose = "".join(f"The sea, the sea. {a} saw {b}.\n\n" for a, b in zip(NAMES, NAMES[3:], strict=False))
    for name in ("poems.txt", "big.txt", "other.txt", "huge.txt", "letters.txt", "a.md", "notes/one.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(prose, "utf-8")
    (folder / "letters.txt.gz").write_bytes(gzip.compress(prose.encode()))
    (folder / "songs.csv").write_text("title,lyrics\n" + "".join(f"{n},la la {n}\n" for n in NAMES), "utf-8")
    sales = "".join(f"2024-{n // 28 + 1:02}-{n % 28 + 1:02},{n % 7 * 10},{n % 5}\n" for n in range(300))
    (folder / "sales.csv").write_text("day,shop,online\n" + sales, "utf-8")
    (folder / "names.txt").write_text("\n".join(NAMES), "utf-8")
    documents = [{"text": prose, "body": prose}] * 3
    (folder / "corpus.jsonl.zst").write_bytes(zstandard.compress("\n".join(map(json.dumps, documents)).encode()))
    (folder / "corpus").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(documents), folder / "corpus/a.parquet")
    return prose


def write_labelled(folder: Path) -> None:
    """Labelled texts, a file or folder a format."""
    (folder / "fra.txt").write_text("".join(f"Hi {n}.\tSalut {n}.\tCC-BY 2.0\n" for n in NAMES), "utf-8")
    (folder / "spam.tsv").write_text("".join(f"ham\tsee {n}\nspam\twin {n}\n" for n in NAMES), "utf-8")
    (folder / "ag_news.csv").write_text("".join(f'"{n % 2}","{n}","win {name}"\n' for n, name in enumerate(NAMES)))
    for name, part in {"train_5500.label": NAMES, "TREC_10.label": NAMES[:3]}.items():
        (folder / name).write_text("".join(f"HUM:ind Who is {n} ?\nLOC:city Where is {n} ?\n" for n in part), "utf-8")
    asked = [[f"{word} {n}", word] for n in NAMES for word in ("see", "win")]
    (folder / "clinc.json").write_text(json.dumps({"train": asked[6:], "val": asked[:4], "test": asked[4:6]}), "utf-8")
    (folder / "polarity").mkdir()
    (folder / "banking77").mkdir()
    for side, label in (("train", "pos"), ("test", "neg")):
        (folder / "polarity" / f"reviews.{label}").write_text("\n".join(f"{label} {n}" for n in NAMES), "utf-8")
        rows = "".join(f"my card {n},card\nmy cash {n},cash\n" for n in NAMES)
        (folder / "banking77" / f"{side}.csv").write_text(f"text,category\n{rows}", "utf-8")
    reviews = [{"review": f"{said}, said {n}", "sentiment": said} for n in NAMES for said in ("good", "bad")]
    rows = "".join('"{review}",{sentiment}\n'.format(**row) for row in reviews)
    (folder / "reviews.csv.gz").write_bytes(gzip.compress(f"review,sentiment\n{rows}".encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(reviews), folder / "reviews.parquet")
    for side in ("train", "valid"):
        lines = "".join(f"__label__tea {n}'s tea\n__label__bread {n}'s bread\n" for n in NAMES)
        (folder / f"cooking.{side}").write_text(lines, "utf-8")
    (folder / "emotions.tsv").write_text("".join(f"joy,love\t{n}\n\tsee {n}\nlove\tmy {n}\n" for n in NAMES), "utf-8")
    for side, label in itertools.product(("train", "test"), ("pos", "neg")):
        (folder / "aclImdb" / side / label).mkdir(parents=True)
        for n, name in enumerate(NAMES):
            (folder / "aclImdb" / side / label / f"{n}_7.txt").write_text(f"{label} {name} {side}", "utf-8")
    (folder / "SST-2").mkdir()
    for side in ("train", "dev"):
        rows = "".join(f"{side} {n} \t{label}\n" for n in NAMES for label in (0, 1))
        (folder / "SST-2" / f"{side}.tsv").write_text(f"sentence\tlabel\n{rows}", "utf-8")


def write_conversations(folder: Path) -> None:
    """Questions and answers, a file a format."""
    said = [{"prompt": f"Who is {n}?", "completion": n} for n in NAMES]
    (folder / "trl.jsonl").write_text("\n".join(map(json.dumps, said)), "utf-8")
    told = [[{"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": n}] for n in NAMES]
    (folder / "chat.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in told), "utf-8")
    shared = [{"conversations": [{"from": "human", "value": n}, {"from": "gpt", "value": n}]} for n in NAMES]
    (folder / "sharegpt.json").write_text(json.dumps(shared), "utf-8")
    alpaca = [{"instruction": "Greet.", "input": n, "output": f"hi {n}"} for n in NAMES]
    (folder / "alpaca.json").write_text(json.dumps(alpaca), "utf-8")
    (folder / "dolly.jsonl").write_text(
        "\n".join(json.dumps({"instruction": "Who?", "context": n, "response": n}) for n in NAMES), "utf-8"
    )
    (folder / "faq.jsonl").write_text("\n".join(json.dumps({"ask": n, "say": n}) for n in NAMES), "utf-8")


def write_preferences(folder: Path) -> None:
    """Better and worse answers, a file a format."""
    spoken = [{side: f"\n\nHuman: {n}\n\nAssistant: {side}" for side in ("chosen", "rejected")} for n in NAMES]
    (folder / "hh.jsonl").write_text("\n".join(map(json.dumps, spoken)), "utf-8")
    liked = [{"prompt": f"Who is {n}?", "chosen": n, "rejected": "no"} for n in NAMES]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, liked)), "utf-8")
    better = [
        {
            "input": {"messages": [{"role": "user", "content": f"Who is {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": n}],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for n in NAMES
    ]
    (folder / "liked.jsonl").write_text("\n".join(map(json.dumps, better)), "utf-8")
