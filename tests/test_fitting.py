"""Whether a training fits into memory: said before the first step, tried without a trace, and --grad-accum auto."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches import IGNORE, Batch
from data.errors import UserError
from data.tokenizers import Special
from engine import fitting, memory, runtime, trial
from engine.config.settings import replace
from engine.distributed.ranks import ALONE
from engine.registry import build_model
from engine.task import Batches
from engine.training.trainer import Trainer
from tests.conftest import NAMES, TINY
from tests.helpers import LINES, STREAM, at_call, configure, facts, left, metrics, ok, quick, refused, summary
from tests.test_optimizers import Given

pytestmark = pytest.mark.usefixtures("names", "text")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_hidden": 16, "context": 8, "order": 3, "warmup": 0}
VOCABULARY = 20


@pytest.fixture
def limit(monkeypatch):
    """A device that has memory for so many rows at once; the calls that were made."""
    asked: list[tuple[int, bool]] = []

    def of(rows_that_fit: int) -> list[tuple[int, bool]]:
        def probe(model, batches, config, device, rows, accumulates):
            asked.append((rows, accumulates))
            if rows > rows_that_fit:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(fitting, "probe", probe)
        return asked

    return of


def settings_of(run: str = "run") -> tuple[int, int]:
    kept = json.loads(Path(run, "config.json").read_text("utf-8"))["config"]
    return kept["batch_size"], kept["grad_accum"]


@pytest.mark.parametrize("kind", [STREAM, LINES], ids=["stream", "lines"])
def test_a_step_is_cut_into_the_fewest_batches_that_fit(cli, tmp_path, limit, kind):
    asked = limit(5)
    flags = kind | {"dropout": 0.1}
    said = ok(cli("train.py", *quick("gru", **flags, grad_accum="auto", out="found"), "--batch-size", 12)).out
    assert asked == [] or asked == [(12, False), (6, True), (4, True)]  # a command may run in a process of its own
    assert "a step of 12 rows: 3 batches of 4, as many as fit into the memory of cpu" in said
    assert settings_of("found") == (4, 3)
    ok(cli("train.py", *quick("gru", **flags, grad_accum=3, out="given")))
    assert left(tmp_path / "found") == left(tmp_path / "given")
    ok(cli("train.py", *quick("gru", **kind, out="whole"), "--batch-size", 12))
    assert summary("whole")["tokens"] == summary("found")["tokens"], "the rows of a step are the same"


def test_a_cpu_says_what_fits_by_what_a_row_keeps(cli, monkeypatch):
    words = quick("transformer", **STREAM, dropout=0.1, dtype="float32", grad_accum="auto")
    monkeypatch.setattr(memory, "free", lambda device: 10**9)
    ok(cli("train.py", *words, "--out", "much"))
    assert settings_of("much") == (4, 1)
    needed: list[memory.Needs] = []
    estimate = trial.estimate

    def noted(*of):
        needed.append(estimate(*of))
        return needed[-1]

    monkeypatch.setattr(trial, "estimate", noted)
    # As much memory as half of the step needs, besides the weights.
    monkeypatch.setattr(
        memory, "free", lambda device: sum(needed[0][:3]) + 0.5 * fitting.HEADROOM * needed[0][3] if needed else 0
    )
    assert "2 batches of 2" in ok(cli("train.py", *words)).out and settings_of() == (2, 2)
    monkeypatch.setattr(memory, "free", lambda device: None)
    refused(cli("train.py", *words, "--overwrite"), "nobody says how much memory cpu has; give a number")


def test_what_fits_is_not_cut(cli, limit):
    limit(4)
    assert "a step of" not in ok(cli("train.py", *quick("mlp", **LINES, grad_accum="auto"))).out
    assert settings_of() == (4, 1)


def test_a_run_keeps_what_was_found(cli, tmp_path, limit):
    limit(2)
    line = ("train.py", *quick("mlp", **STREAM, grad_accum="auto", schedule="constant"), "--go-on")
    ok(cli(*line))
    assert settings_of() == (2, 2)
    limit(4)  # on a larger machine
    assert "is complete" in ok(cli(*line)).out
    ok(cli(*line, "--steps", 8))
    resume = ("train.py", "--out", "run", "--resume")
    ok(cli(*resume, "--steps", 10, "--grad-accum", "auto"))
    ok(cli(*resume, "--steps", 12, "--grad-accum", "auto", "--batch-size", 4))
    assert settings_of() == (2, 2) and facts(tmp_path / "run")["step"] == 12
    ok(
        cli(
            "train.py",
            *quick("mlp", **STREAM, grad_accum=2, schedule="constant", out="same"),
            "--batch-size",
            2,
            "--steps",
            12,
        )
    )
    assert left(tmp_path / "same")["last/model.safetensors"] == left(tmp_path / "run")["last/model.safetensors"]
    refused(cli(*resume, "--grad-accum", "auto", "--batch-size", 6), "--batch-size 6 (the run has 4)")
    refused(cli(*line, "--batch-size", 8), "--batch-size 8 (the run has 4)")
    refused(cli(*resume, "--grad-accum", 4), "--grad-accum 4 (the run has 2)")


def test_where_not_even_a_row_fits_there_is_no_run(cli, limit):
    limit(0)
    ended = cli("train.py", *quick("transformer", **LINES, grad_accum="auto"))
    refused(ended, "out of memory: a batch of 1 rows", "--activation-checkpointing", "lower --context")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("train.py", quick("gru", **STREAM, carry_state=True), "--carry-state reads on from the whole of it"),
        ("train.py", quick("mlp", **LINES, shard=True), "--shard divides"),
        ("train.py", ["--model", "ngram", "--data", "names.txt"], "--grad-accum given"),
        ("-m makemore.scratch.train", ["--model", "mlp"], "--grad-accum auto"),
        ("-m bench.step", quick("mlp", **LINES)[:-2], "--grad-accum auto is found by a run"),
    ],
    ids=["state", "shard", "counts", "NumPy", "bench"],
)
def test_where_nothing_is_to_be_found_auto_is_refused(cli, command, flags, words):
    refused(cli(command, *flags, "--grad-accum", "auto"), words)


@pytest.mark.parametrize(
    ("world", "in_order", "expected"),
    [
        (1, False, [(12, 1, 12), (6, 2, 6), (4, 3, 4), (3, 4, 3), (2, 6, 2), (1, 12, 1)]),
        (2, False, [(12, 1, 6), (4, 3, 2), (1, 12, 1)]),  # two batches of 6 rows are no fewer at once
        (2, True, [(12, 1, 6), (6, 2, 3), (4, 3, 2), (2, 6, 1)]),  # every batch is divided by rows
    ],
)
def test_several_processes_are_counted_in(world, in_order, expected):
    ranks = type("Several", (), {"world": world, "rank": 0})()
    config = configure(model="gru", batch_size=12, grad_accum="auto", carry_state=in_order, **SIZES)
    model = build_model(config, VOCABULARY, Special())
    found = [(c.optim.batch_size, c.optim.grad_accum, rows) for c, rows in fitting.candidates(config, model, ranks)]
    assert found == expected


def test_several_processes_agree(ranks, monkeypatch):
    def probe(model, batches, config, device, rows, accumulates):
        import os

        if rows > (4 if os.environ["RANK"] == "0" else 1):  # one has less memory than the other
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fitting, "probe", probe)
    for process in ranks(2, "train.py", *quick("mlp", **STREAM, grad_accum="auto")):
        ok(process.wait())
    assert settings_of() == (1, 4)


def test_what_cannot_fit_is_said_before_there_is_a_run(cli, monkeypatch):
    monkeypatch.setattr(memory, "capacity", lambda device: 300_000)
    words = quick("transformer", **STREAM, optimizer="adamw")
    ended = cli("train.py", *words, "--batch-size", 64)
    refused(ended, "out of memory: a batch of 64 rows of up to 12 tokens does not fit into the 0.3 MB of cpu")
    refused(ended, "of cpu: it needs at least weights 0.0 MB, gradients 0.0 MB, optimizer 0.1 MB, activations 0.")
    refused(ended, "--batch-size 32 --grad-accum 2", "--activation-checkpointing")
    assert not Path("run").exists()
    ok(cli("train.py", *words))


def test_on_a_gpu_what_is_free_counts(monkeypatch):
    config, model, batches = at_work("transformer", dtype="float32")
    free = memory.needs(model, config.optim, 0).total
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    for room, fits in ((-1, False), (10**6, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, room=room: (free + room, 10**9))
        if fits:
            fitting.check(config, CUDA, model, batches, ALONE)
        else:
            with pytest.raises(UserError, match="into the 1.0 GB of cuda, .* of it free: it needs at least weights"):
                fitting.check(config, CUDA, model, batches, ALONE)


def batch_of(rows: int, length: int, valid: int) -> Batch:
    random = np.random.default_rng(rows)
    tokens, targets = random.integers(6, VOCABULARY, (2, rows, length))
    targets[:, valid:] = IGNORE
    return Batch(tokens, targets, rows * valid)


class Few(Given):
    """Three batches; no row is longer than 8 tokens."""

    longest = 8

    def __init__(self) -> None:
        self.made = [batch_of(4, 6, 6), batch_of(4, 7, 2), batch_of(4, 5, 5)]
        self.batch_size, self.epoch, self.position, self._order = 4, 0, 0, None

    def deal(self):
        self.position += 1
        return super().deal()._replace(items=np.arange(4) + 4 * self.position)

    def batch(self, deal):
        return self.made[(deal.items[0] // 4 - 1) % 3]


def at_work(family: str, **options):
    """The configuration, the model and the batches of a run."""
    config = configure(model=family, batch_size=4, **SIZES | options)
    model = build_model(config, VOCABULARY, Special()).train()
    return config, model, Batches(Few(), lambda: iter(()), np.ones(VOCABULARY, np.int64))


def test_the_largest_batch_has_all_rows_as_long_as_the_longest():
    config, model, batches = at_work("transformer")
    trainer = Trainer(model, batches.train, batches.val, batches.characters, config, Path(), CPU, None)
    found = trial.largest(trainer, 10)
    assert found.tokens.shape == found.targets.shape == (10, 8)
    assert (found.targets[:, :2] == IGNORE).all() and np.array_equal(found.tokens[:4, 2:], batches.train.made[0].tokens)
    assert batches.train.position == 0, "the loader is where it was"
    trainer.model.takes_packed = lambda device: True
    assert np.array_equal(trial.largest(trainer, 4).tokens, batches.train.made[0].tokens), (
        "the fullest of the next ones"
    )


@pytest.mark.parametrize("family", ["transformer", "lstm", "cnn", "bigram", "mlp"])
@pytest.mark.parametrize("compiled", [False, True])
def test_trying_leaves_nothing_behind(family, compiled, monkeypatch):
    options = {
        "norm": "batch",
        "dropout": 0.1,
        "hash_ngrams": 2,
        "hash_rows": 64,
        "compile": "on" if compiled else "off",
    }
    config, model, batches = at_work(family, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, seen = torch.get_rng_state(), []
    backward = Trainer.backward

    def noting(trainer, batch, divisor):
        total = backward(trainer, batch, divisor)
        seen.append([p.grad is not None for p in model.parameters()])
        if compiled and len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return total

    monkeypatch.setattr(Trainer, "backward", noting)
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    trial.try_step(model, batches, config, CPU, 4, accumulates=True)
    assert len(seen) == 1 + compiled and all(map(all, seen))
    assert torch.equal(torch.get_rng_state(), state) and "forward" not in vars(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model", ["transformer", "cnn", "lstm"])
def test_a_run_that_was_tried_has_the_bits_of_one_that_was_not(cli, tmp_path, monkeypatch, model):
    flags = {"dropout": 0.1, "norm": "batch", "mix_ngram": 3}
    ok(cli("train.py", *quick(model, **LINES | flags, out="plain")))

    def tried(config, device, model, batches, ranks, deal):
        trial.try_step(model, batches, config, device, 4, accumulates=False)
        return config, batches

    monkeypatch.setattr(fitting, "settle", tried)
    ok(cli("train.py", *quick(model, **LINES | flags)))
    assert left(tmp_path / "run") == left(tmp_path / "plain")


def test_a_step_that_does_not_fit_is_told_with_its_sizes(monkeypatch):
    config, model, batches = at_work("transformer", n_embd=64)
    backward = Trainer.backward

    def small(trainer, batch, divisor):
        if len(batch.tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(trainer, batch, divisor)

    monkeypatch.setattr(Trainer, "backward", small)
    monkeypatch.setattr(fitting, "probe", trial.try_step)
    with pytest.raises(
        UserError, match="does not fit into the .* of cpu: it needs about weights 0.4 MB, .*activations"
    ):
        fitting._try_or_refuse(config, CPU, model, batches, ALONE)
    fitting._try_or_refuse(replace(config, batch_size=2), CPU, model, batches, ALONE)
    monkeypatch.setattr(Trainer, "backward", backward)
    fitting._try_or_refuse(config, CPU, model, batches, ALONE)


def test_what_is_estimated_is_what_is_kept():
    config, model, batches = at_work("transformer", dropout=0.1)
    one, four = (trial.estimate(model, batches, config, CPU, rows) for rows in (1, 4))
    assert four.activations == 4 * one.activations
    assert four[:3] == one[:3] == memory.needs(model, config.optim, 0)[:3]
    least = memory.least_activations(model, 4 * 8, torch.float32)
    assert 0 < least < four.activations < 20 * least
    model.recomputes = True
    again = trial.estimate(model, batches, config, CPU, 4).activations
    assert model.recomputes and 0.5 * four.activations < again < four.activations, "one block of two, and their inputs"
    assert memory.least_activations(model, 4 * 8, torch.float32) == 0


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "muon"])
def test_the_state_of_an_optimizer_is_known_before_it_is_there(optimizer):
    config, model, batches = at_work("transformer", optimizer=optimizer, hash_ngrams=2, hash_rows=64)
    trainer = Trainer(model, batches.train, batches.val, batches.characters, config, Path(), CPU, None)
    trainer.step()
    held = sum(
        value.numel() * value.element_size()
        for o in trainer.optimizers
        for state in o.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
    assert memory.optimizer_bytes(model, config.optim) == held


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    ],
    ids=["CUDA", "cuBLAS", "CPU"],
)
def test_memory_that_is_out_in_a_later_step_is_told_too(cli, error):
    def fail() -> None:
        raise error

    with at_call(Trainer, "backward", 5, fail):
        ended = cli("train.py", *quick("gru", **LINES, eval_interval=2))
    refused(ended, "out of memory: a batch of 4 rows of up to", "--batch-size 2 --grad-accum 2 (or --grad-accum auto)")
    assert "--activation-checkpointing" not in ended.err
    assert metrics()[-1]["step"] == 4
    with at_call(Trainer, "backward", 1, fail):
        again = cli("train.py", "--resume", "--out", "run")
    refused(again, "out of memory: a batch of 4 rows", "go on where there is more memory: a run keeps its sizes")
    assert "--grad-accum" not in again.err


def test_a_compiler_is_not_blamed_for_memory_that_is_out(monkeypatch):
    def compiled(*of, **how):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "compile", lambda forward: compiled)
    _, model, _ = at_work("mlp")
    runtime.compile_or_warn(model)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.zeros(1, 3, dtype=torch.long))


TUNED = ["--steps", 4, "--eval-interval", 2, "--batch-size", 3, "--warmup", 2, "--dropout", 0.1]
TASKS = {
    "classify": (
        "-m finetune.classify",
        [*TUNED, "--data", "labels.tsv", "--no-baseline", "--model", "gru", *TINY["gru"]],
    ),
    "instruct": ("-m finetune.instruct", [*TUNED, "--data", "chat.jsonl", "--model", "gru", *TINY["gru"]]),
    "dpo": ("-m finetune.instruct", [*TUNED, "--data", "pairs.jsonl", "--dpo", "--init", "before"]),
}


@pytest.mark.parametrize("task", TASKS)
def test_fine_tuning_is_tried_and_cut_too(cli, tmp_path, monkeypatch, task):
    rows = [{"prompt": f"Leave.\n{name}", "completion": "bye"} for name in NAMES]
    pairs = [{"prompt": row["prompt"], "chosen": "bye", "rejected": "hi"} for row in rows]
    for file, found in (("chat.jsonl", rows), ("pairs.jsonl", pairs)):
        (tmp_path / file).write_text("\n".join(map(json.dumps, found)))
    (tmp_path / "labels.tsv").write_text("".join(f"{'long' if len(name) > 5 else 'short'}\t{name}\n" for name in NAMES))
    if task == "dpo":
        ok(cli("-m finetune.instruct", *TASKS["instruct"][1], "--out", "before"))
    command, words = TASKS[task]
    ok(cli(command, *words, "--out", "plain"))
    settle = fitting.settle

    def tried(config, device, model, batches, ranks, deal):
        trial.try_step(model, batches, config, device, 3, accumulates=True)
        return settle(config, device, model, batches, ranks, deal)

    monkeypatch.setattr(fitting, "settle", tried)
    ok(cli(command, *words, "--out", "run"))
    assert left(tmp_path / "run") == left(tmp_path / "plain")
    monkeypatch.setattr(memory, "free", lambda device: 10**12)
    assert "a step of" not in ok(cli(command, *words, "--grad-accum", "auto", "--out", "auto")).out
    assert left(tmp_path / "auto") == left(tmp_path / "plain")
