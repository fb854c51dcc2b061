"""Beside a device that computes by itself, batches are made ahead and saves are written on threads: with the same bits,
and the errors where they belong. Here the device is a CPU that is said to be one."""

import errno
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from data.batches import Batch
from data.errors import UserError
from data.loaders import Loader
from engine import runtime, session
from engine.config.flags import parse
from engine.distributed.dealing import Share
from engine.pretraining import Pretraining
from engine.run import checkpoint
from engine.training.feed import Feed
from engine.training.saver import Saver
from engine.training.trainer import Trainer
from tests.helpers import KILL, STREAM, TERM, at_call, facts, left, left_by, ok, quick, refused, send

RESUME = ("train.py", "--resume", "--out", "run")
HARD = STREAM | {"model": "lstm", "carry_state": True, "dropout": 0.2, "steps": 8, "grad_accum": 2}
CASES = [HARD, STREAM | {"model": "transformer", "optimizer": "muon", "mix_ngram": 3}]
TIME = 20  # seconds until something is hanging


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


@pytest.fixture
def straight(cli):
    """What a run leaves that does one thing after the other."""
    return left_by(cli, **HARD)


@pytest.fixture
def apart(monkeypatch):
    """From here on the CPU counts as a device that computes by itself."""
    monkeypatch.setattr(runtime, "computes_apart", lambda device: True)


@pytest.mark.parametrize("flags", CASES, ids=lambda flags: flags["model"])
def test_a_run_has_the_bits_of_one_that_does_one_thing_after_the_other(cli, tmp_path, monkeypatch, flags):
    ok(cli("train.py", *quick(**flags, out="straight")))
    monkeypatch.setattr(runtime, "computes_apart", lambda device: True)
    ok(cli("train.py", *quick(**flags)))
    assert left(tmp_path / "run") == left(tmp_path / "straight")
    assert facts(tmp_path / "run")["loader"] == facts(tmp_path / "straight")["loader"]


@pytest.mark.parametrize("do", [TERM, KILL], ids=["term", "kill"])
@pytest.mark.parametrize("moment", [(Trainer, "backward", 9), (checkpoint, "save", 3), (checkpoint, "save", 4)])
def test_stopped_anywhere_it_goes_on_exactly(cli, tmp_path, straight, apart, moment, do):
    with at_call(*moment, do):
        assert cli("train.py", *quick(**HARD)).code in (128 + signal.SIGTERM, -signal.SIGKILL)
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


def train(*words) -> None:
    session.train(Pretraining(), *parse([str(word) for word in words]))


def test_the_training_goes_on_while_a_save_is_written_and_changes_nothing_in_it(tmp_path, monkeypatch, straight, apart):
    monkeypatch.chdir(tmp_path)
    steps, order, original, step = threading.Semaphore(0), [], checkpoint.save, Trainer.step

    def slow(folder, *rest):
        order.append(folder.name)
        if len(order) < 3:  # of the first evaluation, after which there are three steps
            assert steps.acquire(timeout=TIME), "no step was taken meanwhile"
        original(folder, *rest)
        order.append("saved")

    def counted(trainer):
        step(trainer)
        steps.release()

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(Trainer, "step", counted)
    train(*quick(**HARD))
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("saver", "batches"))], "a thread is left"
    assert left(tmp_path / "run") == straight
    assert order == ["best", "saved", "last", "saved"] * 4


def test_a_full_disk_is_one_message_and_the_run_goes_on_from_what_was_saved(cli, tmp_path, straight, apart):
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with at_call(checkpoint, "save", 4, fail):  # the last/ of the second evaluation, at step 3
        stopped = cli("train.py", *quick(**HARD))
    refused(stopped, "free some space", "What was saved before is whole")
    assert facts(tmp_path / "run")["step"] == 0
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


def test_an_error_of_the_last_save_is_not_lost(cli, tmp_path, apart):
    with at_call(checkpoint, "save", 8, lambda: (_ for _ in ()).throw(OSError(errno.EIO, "a bad disk"))):
        refused(cli("train.py", *quick(**HARD)), "a bad disk")


def test_the_second_signal_leaves_while_a_save_is_waited_for(cli, tmp_path, straight, apart):
    def hang() -> None:
        send(signal.SIGTERM, times=1)()
        time.sleep(0.3)  # until the training waits for this save
        send(signal.SIGTERM, times=1)()
        time.sleep(TIME)

    began = time.monotonic()
    with at_call(checkpoint, "save", 4, hang):
        assert cli("train.py", *quick(**HARD)).code == 128 + signal.SIGTERM
    assert time.monotonic() - began < TIME
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


def test_what_goes_wrong_with_a_batch_is_told_in_its_step(cli, tmp_path, straight, apart):
    def fail() -> None:
        raise UserError("this text is gone")

    with at_call(Loader, "batch", 13, fail):  # of the seventh step
        refused(cli("train.py", *quick(**HARD)), "this text is gone")
    assert facts(tmp_path / "run")["step"] == 6
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


class Whole:
    """One process has all."""

    def shares(self, deals):
        return [Share(n, 0, deal) for n, deal in enumerate(deals)]


def test_the_position_is_that_of_the_batches_given_out():
    class Numbers(Loader):
        def _epoch_order(self, rng):
            return np.arange(5)

        def _batch(self, items):
            return Batch(items[None], items[None], len(items))

    def given(feed: Feed, n: int) -> list:
        steps = [feed.next() for _ in range(n)]
        return [batch.tokens.tolist() for step in steps for batch in step.batches]

    one, other = (Feed(Numbers(2, 1), Whole(), 3, lambda batch: batch, ahead) for ahead in (False, True))
    with one, other:
        assert other.position == one.position
        for n in (1, 3):
            assert given(one, n) == given(other, n)
            assert one.position == other.position
    assert one.loader.state_dict() == other.loader.state_dict()
    with other:
        assert given(one, 2) == given(other, 2)


def test_what_is_saved_is_what_was_there_when_it_was_given(tmp_path):
    weights = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(3, dtype=torch.int64)}
    entered = Saver(tmp_path, None, in_background=True)
    with entered as saver:
        for value in (1.0, 2.0):
            with saver.one_save():
                saver.save("best", {"model": weights}, {})
                saver.save("last", {"model": weights, "trainer": {"m": weights["a"]}}, {})
            kept = {name: tensor.clone() for name, tensor in weights.items()}
            weights["a"].add_(value)
            weights["b"].zero_()
            saver.wait()
            for name in ("best", "last"):
                read = checkpoint.load(tmp_path / name, ("model",))[0]["model"]
                assert all(torch.equal(read[n], kept[n]) for n in kept)


def test_a_batch_for_a_gpu_waits_in_pinned_memory_and_is_pinned_once(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    ids = np.arange(6).reshape(2, 3)
    near = Batch(ids, ids, 6, position=ids[:, 0], starts=ids[0]).near(torch.device("cuda"))
    assert len(pinned) == 4 and all(isinstance(near[n], torch.Tensor) for n in (0, 1)) and near.weight is None
    assert near.near(torch.device("cuda")) == near and len(pinned) == 4
    assert near.to(torch.device("cpu")).tokens.tolist() == ids.tolist()


@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["whole", "shard"])
def test_several_processes_have_the_same_bits_too(ranks, tmp_path, monkeypatch, more):
    """Saving between evaluations, where all of them gather what one writes."""
    flags = {"data": "text.txt", "batch_size": 4, "grad_accum": 2, "optimizer": "muon", "n_embd": 16, "n_head": 2}
    words = ["train.py", *quick("transformer", **flags), *more]
    for result in [process.wait() for process in ranks(2, *words, "--out", "straight")]:
        ok(result)
    monkeypatch.setattr(runtime, "computes_apart", lambda device: True)
    for result in [process.wait() for process in ranks(2, *words, "--save-interval", 2)]:
        ok(result)
    assert left(tmp_path / "run") == left(tmp_path / "straight")
    assert facts(tmp_path / "run")["loader"] == facts(tmp_path / "straight")["loader"]
