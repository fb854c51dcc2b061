"""Several processes train one run: with the bits of one, where micro-batches are dealt, and the errors of one."""

import datetime
import json
import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from data.batches import Batch
from data.errors import UserError
from engine import runtime, session
from engine.distributed import ranks as ranks_module
from engine.distributed.ranks import Ranks
from engine.pretraining import Pretraining
from engine.run import checkpoint
from engine.training import metrics as metrics_module
from finetune.classify import baselines
from tests.conftest import NAMES, ROOT, TINY
from tests.helpers import INT, KILL, TERM, at_call, facts, left, metrics, ok, once, quick, refused
from tests.matrices import matrix

SMALL = {"data": "text.txt", "batch_size": 4, "steps": 6}
DEALT = {
    "adamw": ("transformer", {"dropout": 0.1}),
    "muon": ("transformer", {"dropout": 0.1, "optimizer": "muon", "n_embd": 16, "n_head": 2}),
    "mixture": ("transformer", {"dropout": 0.1, "mix_ngram": 3, "count_inputs": True}),
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
    "adamw": (
        "train.py",
        quick("transformer", **SMALL, dropout=0, optimizer="adamw", value_embeddings=True, value_residual=True),
    ),
    "micro-batches": ("train.py", quick("gru", **SMALL, dropout=0, grad_accum=3, hash_ngrams=3, hash_rows=64)),
    "classify": ("-m finetune.classify", [*TUNED, "--data", "labels.tsv", "--ngrams", 0, *GRU]),
    "labels": ("-m finetune.classify", [*TUNED, "--data", "labels.tsv", "--label-separator", "o", "--ngrams", 0, *GRU]),
    "instruct": ("-m finetune.instruct", [*TUNED, "--data", "chat.jsonl", *GRU]),
    "lora": ("-m finetune.instruct", [*TUNED, "--data", "chat.jsonl", "--train", "lora", "--init", "before"]),
    "dpo": ("-m finetune.instruct", [*TUNED, "--data", "pairs.jsonl", "--dpo", "--init", "before"]),
}
WAYS = [f"{kind}, {way}" for kind in KINDS for way in ("rows", "shard")]


@pytest.fixture
def double(monkeypatch):
    """Commands compute in float64."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(baselines, "measure_baselines", lambda *_, **__: {})  # in float32 alone
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("case", matrix(WAYS, ["micro-batches, rows", "transformer, shard"]))
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


def test_what_is_summed_over_a_batch_is_summed_over_all_its_rows(cli, ranks, double):
    """Batch norm's statistics and --lm-weight's mean, where the last batch of an epoch has fewer rows than there are
    processes: two of the three compute a row that does not count."""
    words = [*TUNED, "--data", "labels.tsv", "--ngrams", 0, "--batch-size", 39]  # of 40 rows
    words += ["--model", "cnn", *TINY["cnn"], "--norm", "batch", "--optimizer", "sgd", "--lm-weight", 0.5]
    ok(cli("-m finetune.classify", *words))
    trained_by(ranks, 3, "-m finetune.classify", *words, "--out", "together")
    alone, together = (tensors_of(Path(run)) for run in ("run", "together"))
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


SENT = """
import os, sys, torch
import torch.distributed as dist
from engine.distributed import gradients
from engine.distributed.ranks import Ranks

other = os.fork()
rank = int(other != 0)
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
sent, send = [], dist.all_to_all_single
dist.all_to_all_single = lambda *a, **o: sent.append(1) or send(*a, **o)
early, late, never = (torch.zeros(3, requires_grad=True) for _ in range(3))
table = torch.zeros(5, 2, requires_grad=True)
total = gradients.GradientSum([early, late, never], [table], Ranks(rank, 2))
for step in (1, 2):
    for n in range(3):
        total.waits = n < 2
        rows = torch.nn.functional.embedding(torch.tensor([n, rank]), table, sparse=True)
        (((early if n == 0 else late) * (rank + 1)).sum() + rows.sum()).backward()
        total.round()
    total.finish()
    assert early.grad.tolist() == [3.0] * 3 and late.grad.tolist() == [6.0] * 3 and never.grad is None
    assert table.grad.to_dense()[:, 0].tolist() == [2 + 3, 2 + 3, 2, 0, 0]
    assert len(sent) == step, sent
    early.grad = late.grad = table.grad = None
dist.destroy_process_group()
assert not rank or os.waitpid(other, 0)[1] == 0
"""


def test_gradients_that_wait_are_sent_once_a_step(cli, tmp_path):
    (tmp_path / "sent.py").write_text(SENT)
    ok(cli(str(tmp_path / "sent.py"), tmp_path / "store"))


def tensors_of(run: Path) -> dict:
    loaded, _ = checkpoint.load(run / "last", ("model", "trainer"))
    return loaded["model"] | loaded["trainer"]


LONG = quick("transformer", **SMALL, dropout=0.1, grad_accum=4)


@pytest.fixture
def straight(cli):
    """What a run of one process leaves that nothing interrupted."""
    run = once(cli, "train.py", *LONG)
    kept = left(run)
    shutil.rmtree(run)
    return kept


def on_rank(rank: int, do):
    """`do`, in one of the processes."""
    return lambda: do() if os.environ.get("RANK") == str(rank) else None


def go_on(cli, ranks, world: int) -> None:
    words = ("train.py", "--resume", "--out", "run")
    trained_by(ranks, world, *words) if world > 1 else ok(cli(*words))


@pytest.mark.parametrize("seed", matrix(range(20), [0, 7]))
def test_a_signal_to_any_process_at_any_moment_stops_all_and_nothing_is_lost(cli, ranks, straight, seed):
    rng = random.Random(seed)
    rank, nth = rng.randrange(2), rng.randrange(1, 15)  # of 12 batches of training and 3 of evaluation
    signum = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    with at_call(Batch, "to", nth, on_rank(rank, lambda: os.kill(os.getpid(), signum))):
        results = [process.wait() for process in ranks(2, "train.py", *LONG)]
    assert {result.code for result in results} == {128 + signum}, results
    assert "saved at step" in results[0].out and (results[1].out, results[1].err) == ("", "")
    go_on(cli, ranks, rng.choice([1, 2, 4]))
    assert left(Path("run")) == straight


@pytest.mark.parametrize("seed", matrix(range(20), [1]))
def test_a_process_that_dies_ends_the_others_with_one_message(cli, ranks, straight, seed):
    rng = random.Random(seed)
    rank, nth, world = rng.randrange(2), rng.randrange(2, 16), rng.choice([1, 2, 4])
    # torchrun ends the other one, while it waits for who may know better
    with at_call(Batch, "to", nth, on_rank(rank, KILL)), at_call(Ranks, "_wait_for_another", 1, TERM):
        dead, other = (process.wait() for process in sorted(ranks(2, "train.py", *LONG), key=lambda p: p.rank != rank))
    assert dead.code == -signal.SIGKILL and other.code == 2 and "Traceback" not in other.err
    assert other.err.count("another process of this training has ended and did not say why") == 1
    go_on(cli, ranks, world)
    assert left(Path("run")) == straight


@pytest.mark.parametrize("rank", [0, 2])
def test_a_bug_in_one_process_is_one_traceback_and_a_mistake_one_message(ranks, rank):
    for error, said in ((ValueError("a bug"), "ValueError: a bug"), (UserError("no such luck"), "error: no such luck")):

        def fail(error=error):
            raise error

        with at_call(Batch, "to", 3, on_rank(rank, fail)):
            results = [process.wait() for process in ranks(3, "train.py", *LONG[:-2], "--batch-size", 6, "--overwrite")]
        assert {result.code for result in results} <= {1, 2}
        everything = "".join(result.out + result.err for result in results)
        assert everything.count(said) == 1 and everything.count("Traceback") == (said.startswith("Value")), everything
        assert "has ended" not in everything


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_does_not_answer_any_more_is_one_message(ranks, rank):
    """As gloo puts it when what was sent to a host that is gone was not acknowledged for long enough."""

    def give_up():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:4772: Connection timed out. This is")

    with at_call(Batch, "to", 3, on_rank(rank, give_up)):
        results = [process.wait() for process in ranks(2, "train.py", *LONG)]
    assert {result.code for result in results} <= {1, 2}
    everything = "".join(result.out + result.err for result in results)
    assert everything.count("another process of this training has ended") == 1 and "Traceback" not in everything


def test_who_is_cut_off_at_the_very_end_by_a_stop_that_was_agreed_is_silent(ranks):
    def cut_off():
        raise RuntimeError("Connection closed by peer")

    with at_call(Batch, "to", 5, INT), at_call(runtime.Interrupted, "__init__", 1, on_rank(1, cut_off)):
        results = [process.wait() for process in ranks(2, "train.py", *LONG)]
    assert results[0].code == 130 and "saved at step" in results[0].out
    assert (results[1].code, results[1].out, results[1].err) == (1, "", "")


@pytest.mark.parametrize("rank", matrix([0, 1], [1]))
def test_ctrl_c_before_the_training_is_said_once(ranks, rank):
    with at_call(Pretraining, "read", 1, on_rank(rank, INT)):
        results = [process.wait() for process in ranks(2, "train.py", *LONG)]
    assert results[rank].code == 130 and results[1 - rank].code, results
    everything = "".join(result.out + result.err for result in results)
    assert everything.count("\n") == 1 and everything.endswith("stopped\n")


def test_mistakes_are_said_once(ranks):
    for words, said in (
        (["--data", "nosuch"], "no such file, folder or data set: 'nosuch'"),
        (["--model", "ngram", "--data", "names.txt"], "counts once, in one process"),
        (
            [*quick(**SMALL), "--batch-size", 7],
            "2 processes cannot divide a step of 1 batch of 7 rows evenly; what fits: "
            "1 process, or in a new run --batch-size 6 or 8, or --grad-accum 2 (of whole batches)",
        ),
        (["--data", "-"], "--data - reads standard input, which one process alone can"),
    ):
        results = [process.wait() for process in ranks(2, "train.py", *words)]
        assert results[0].code == 2 and said in " ".join(results[0].err.split())
        assert results[1].code and not results[1].out + results[1].err
        assert not Path("run").exists()


def test_several_processes_evaluate_nothing(cli, ranks):
    ok(cli("train.py", *quick(**SMALL)))
    results = [process.wait() for process in ranks(2, "train.py", "--eval-only", "--out", "run")]
    assert [result.code for result in results] == [2, 2] and not results[1].err
    refused(results[0], "--eval-only takes one process")


@pytest.mark.parametrize("rank, world", [("0", None), (None, "2"), ("0", "two"), ("-1", "2"), ("2", "2")])
def test_a_process_that_is_told_half_of_it_does_not_train_alone(cli, rank, world):
    env = {name: value for name, value in (("RANK", rank), ("WORLD_SIZE", world)) if value is not None}
    refused(cli("train.py", *quick(**SMALL), env=env), f"RANK='{rank or ''}' and WORLD_SIZE='{world or ''}'")
    assert not Path("run").exists()


def test_who_meets_nobody_says_so(cli, monkeypatch):
    monkeypatch.setattr(ranks_module, "MEETING", datetime.timedelta(seconds=1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in "01":
        env = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        result = cli("train.py", *quick(**SMALL), env=env)
        refused(result, "the processes of this training cannot reach each other")


def test_one_process_sends_metrics_to_a_log(ranks, monkeypatch):
    def begin(folder, config):
        Path(f"begun by {os.environ['RANK']}").touch()
        return lambda line: None

    monkeypatch.setitem(metrics_module._LOGGERS, "wandb", begin)
    monkeypatch.setattr(session, "check_log", lambda log: None)
    trained_by(ranks, 2, "train.py", *quick(**SMALL, log="wandb"))
    assert [path.name for path in Path().glob("begun by *")] == ["begun by 0"]


def test_a_model_is_not_sharded_in_one_process(cli):
    refused(cli("train.py", *quick(**SMALL), "--shard"), "--shard divides a model among several processes", "torchrun")
    assert not Path("run").exists()


def test_a_sharded_run_goes_on_in_one_process(cli, ranks):
    trained_by(ranks, 2, "train.py", *quick(**SMALL), "--shard")
    ok(cli("train.py", "--resume", "--out", "run", "--steps", 8))
    trained_by(ranks, 2, "train.py", "--resume", "--out", "run", "--steps", 10)
    assert facts(Path("run"))["step"] == 10


def test_torchrun_trains_one_run_and_stops_it(cli, process):
    """The launcher itself: two processes, ended by one signal to it, gone on with by one."""
    words = [word if word != 6 else 100_000 for word in LONG]
    running = process("-m torch.distributed.run", "--nproc-per-node", 2, ROOT / "train.py", *words)
    while running.poll() is None and not Path("run/last/facts.json").exists():
        time.sleep(0.05)
    running.terminate()
    out, err = running.communicate(timeout=60)
    assert out.count("saved at step") == 1 and "go on with: python train.py --resume --out run" in out
    assert err.count("finishing the step and saving") == 1
    step = facts(Path("run"))["step"]
    ok(cli("train.py", "--resume", "--out", "run", "--steps", step + 3))
