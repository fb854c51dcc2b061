"""Several processes train one run: with the bits of one, where micro-batches are dealt, and the errors of one."""

import json
from pathlib import Path

import pytest
import torch

from engine.run import checkpoint
from finetune.classify import baselines
from tests.conftest import NAMES, TINY
from tests.helpers import metrics, ok, quick
from tests.matrices import matrix

SMALL = {"data": "text.txt", "batch_size": 4, "steps": 6}
DEALT = {
    "adamw": ("transformer", {"dropout": 0.1}),
    "muon": ("transformer", {"dropout": 0.1, "optimizer": "muon", "n_embd": 16, "n_head": 2}),
    "mixture": ("transformer", {"dropout": 0.1, "mix_ngram": 3}),
    "hashes": ("gru", {"hash_ngrams": 3, "hash_rows": 64}),
    "lines": ("mlp", {"data": "names.txt", "kind": "lines"}),
}


@pytest.fixture(autouse=True)
def texts(text, names, tmp_path):
    """What the runs are trained on."""
    (tmp_path / "labels.tsv").write_text("".join(f"{'long' if len(name) > 5 else 'short'}\t{name}\n" for name in NAMES))
    for file, line in (
        ("chat.jsonl", lambda name: {"prompt": f"Greet.\n{name}", "completion": f"hi {name}"}),
        ("pairs.jsonl", lambda name: {"prompt": f"Leave.\n{name}", "chosen": "bye", "rejected": "hi"}),
    ):
        (tmp_path / file).write_text("\n".join(json.dumps(line(name)) for name in NAMES))


def trained_by(ranks, world: int, *words) -> None:
    """Train in `world` processes, of which the first alone speaks."""
    results = [process.wait() for process in ranks(world, *words)]
    for rank, result in enumerate(results):
        ok(result)
        assert rank == 0 or (result.out, result.err) == ("", "")


def same_runs(one: Path, other: Path) -> bool:
    """Whether the weights, the optimizer's state, the losses and the position in the text are the same bits."""
    loaded = [checkpoint.load(path / "last", ("model", "trainer")) for path in (one, other)]
    for part in ("model", "trainer"):
        a, b = (tensors[part] for tensors, _ in loaded)
        assert a.keys() == b.keys()
        if not all(torch.equal(a[name], b[name]) for name in a):
            return False
    facts = [
        facts | {"progress": {n: v for n, v in facts["progress"].items() if n not in ("seconds", "elapsed")}}
        for _, facts in loaded
    ]
    return facts[0] == facts[1] and losses(one) == losses(other)


def losses(run: Path) -> list:
    return [(line["val_loss"], line["train_loss"], line["tokens"]) for line in metrics(run)]


CASES = [f"{case} {world}" for case in DEALT for world in (2, 4)]


@pytest.mark.parametrize("case", matrix(CASES, ["muon 4", "mixture 2", "hashes 2"]))
def test_dealt_micro_batches_are_one_process_to_the_bit(cli, ranks, case):
    name, world = case.split()
    model, flags = DEALT[name]
    words = ["train.py", *quick(model, **SMALL | flags, grad_accum=4)]
    ok(cli(*words))
    trained_by(ranks, int(world), *words, "--out", "together")
    assert same_runs(Path("run"), Path("together"))


TUNED = ["--steps", 4, "--eval-interval", 2, "--batch-size", 4, "--warmup", 2, "--out", "run", "--dropout", 0]
GRU, TRANSFORMER = (["--model", model, *TINY[model]] for model in ("gru", "transformer"))
KINDS = {
    **{family: ("train.py", quick(family, **SMALL, dropout=0)) for family in TINY if family != "bigram"},
    "bigram": ("train.py", quick("bigram", **SMALL)),
    # SGD: a bias before a batch norm has a gradient of rounding errors alone, which Adam makes as large as any.
    "batch norm": ("train.py", quick("cnn", **SMALL, dropout=0, norm="batch", optimizer="sgd")),
    "carried state": ("train.py", quick("lstm", **SMALL, dropout=0, carry_state=True)),
    "hashes": ("train.py", quick("gru", **SMALL, dropout=0, hash_ngrams=3, hash_rows=64)),
    "lines": ("train.py", quick("rnn", **SMALL | {"data": "names.txt", "kind": "lines"}, dropout=0)),
    "mixture": ("train.py", quick("transformer", **SMALL, dropout=0, mix_ngram=3)),
    "adamw": ("train.py", quick("transformer", **SMALL, dropout=0, optimizer="adamw")),
    "classify": ("-m finetune.classify", [*TUNED, "--data", "labels.tsv", "--ngrams", 0, *GRU]),
    "instruct": ("-m finetune.instruct", [*TUNED, "--data", "chat.jsonl", *GRU]),
    "lora": ("-m finetune.instruct", [*TUNED, "--data", "chat.jsonl", "--train", "lora", "--init", "before"]),
    "dpo": ("-m finetune.instruct", [*TUNED, "--data", "pairs.jsonl", "--dpo", "--init", "before"]),
}
WAYS = [f"{kind}, {way}" for kind in KINDS for way in ("rows", "shard")]


@pytest.fixture
def double(monkeypatch):
    """Commands compute in float64."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(baselines, "measure_baselines", lambda *_: {})  # in float32 alone
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", matrix(WAYS, ["lstm, rows", "transformer, shard"]))
def test_divided_rows_and_weights_are_one_process_but_for_rounding(cli, ranks, double, case):
    """In float64: in float32 an unstable phase of a training makes any rounding error grow."""
    kind, way = case.split(", ")
    script, words = KINDS[kind]
    if "before" in words:
        ok(cli("-m finetune.instruct", *TUNED, "--data", "chat.jsonl", *TRANSFORMER, "--tokenizer", "byte"))
        Path("run").rename("before")
    ok(cli(script, *words))
    trained_by(ranks, 2, script, *words, "--out", "together", *(["--shard"] if way == "shard" else []))
    alone, together = (tensors_of(Path(run)) for run in ("run", "together"))
    assert alone.keys() == together.keys()
    tolerance = 1e-5 if "muon" in str(words) or kind == "transformer" else 1e-12  # Muon's iteration is in float32
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=tolerance, atol=tolerance, msg=name)
    for one, other in zip(metrics(Path("run")), metrics(Path("together")), strict=True):
        numbers = [[v for n, v in line.items() if n != "seconds" and v is not None] for line in (one, other)]
        assert numbers[1] == pytest.approx(numbers[0], rel=tolerance, abs=tolerance)


def tensors_of(run: Path) -> dict:
    loaded, _ = checkpoint.load(run / "last", ("model", "trainer"))
    return loaded["model"] | loaded["trainer"]
