"""Saving between evaluations: `--save-interval`."""

import signal

import pytest

from data.loaders import Loader
from engine import session
from engine.config.flags import parse
from engine.pretraining import Pretraining
from engine.run import checkpoint
from engine.training.trainer import Trainer
from tests.helpers import KILL, STREAM, TERM, at_call, facts, left, left_by, metrics, ok, quick, refused, summary

RESUME = ("train.py", "--resume", "--out", "run")
HARD = STREAM | {"model": "lstm", "carry_state": True, "dropout": 0.2, "steps": 8, "optimizer": "muon"}


@pytest.fixture(autouse=True)
def texts(names, text):
    """names.txt and text.txt stand where the commands run."""


@pytest.fixture
def straight(cli):
    """What a run leaves that nothing interrupted, and that saves at each evaluation: at steps 0, 3, 6 and 8."""
    return left_by(cli, **HARD)


@pytest.mark.parametrize("nth", [5, 6, 8])
def test_a_run_goes_on_exactly_from_a_save_between_evaluations(cli, tmp_path, straight, nth):
    with at_call(Loader, "deal", nth, KILL):
        cli("train.py", *quick(**HARD, save_interval=2))
    assert facts(tmp_path / "run")["step"] == (nth - 1) // 2 * 2
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight
    assert [line["step"] for line in metrics()] == [0, 3, 6, 8]


@pytest.fixture
def saves(tmp_path, monkeypatch):
    """The checkpoints that train.py saves with some flags, in their order, and the steps they are of."""
    order, original = [], checkpoint.save

    def save(folder, tensors, about, *rest):
        order.append((folder.name, about["step"]))
        original(folder, tensors, about, *rest)

    def of(*words) -> list[tuple[str, int]]:
        session.train(Pretraining(), *parse([str(word) for word in words]))
        return order

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "save", save)
    return of


def test_fewer_saves_than_evaluations_and_one_at_the_end(saves):
    order = saves(*quick(**HARD, save_interval=5))
    assert [step for name, step in order if name == "last"] == [0, 5, 8]
    assert [step for name, step in order if name == "best"] == [0, 3, 6, 8]


def test_the_interval_can_be_changed_and_taken_back(cli, tmp_path, straight):
    with at_call(Loader, "deal", 4, TERM):
        assert cli("train.py", *quick(**HARD)).code == 128 + signal.SIGTERM
    with at_call(Loader, "deal", 3, KILL):  # in step 7
        cli(*RESUME, "--save-interval", 1)
    assert facts(tmp_path / "run")["step"] == 6
    with at_call(Loader, "deal", 2, KILL):  # in step 8: a save only with the evaluations
        cli(*RESUME, "--save-interval", "None")
    assert facts(tmp_path / "run")["step"] == 6
    ok(cli(*RESUME))
    assert left(tmp_path / "run") == straight


def test_weights_that_are_not_finite_do_not_replace_the_last_good_ones(cli, tmp_path):
    flags = quick("bigram", **STREAM, save_interval=2) + ["--grad-clip", 0, "--optimizer", "sgd"]

    def spoil() -> None:
        Trainer.clip = spoiled

    def spoiled(trainer: Trainer) -> None:
        for parameter in trainer.model.parameters():
            parameter.grad.fill_(float("inf"))

    with at_call(Trainer, "clip", 1, spoil):
        stopped = cli("train.py", *flags)
    refused(stopped, "not finite", "keeps the last good checkpoint")
    assert facts(tmp_path / "run")["step"] == 0
    ok(cli(*RESUME))


def test_a_best_of_steps_that_were_lost_is_replaced_where_none_is_better(cli, tmp_path):
    with at_call(Loader, "deal", 5, KILL):
        cli("train.py", *quick("bigram", **STREAM, save_interval=5))
    last = tmp_path / "run/last"
    assert facts(tmp_path / "run", "best")["step"] == 3 and facts(tmp_path / "run")["step"] == 0
    tensors, about = checkpoint.load(last, ("model", "trainer"))
    about["progress"]["best_val"] = 0.001  # as if what is computed again came out worse than what was lost
    checkpoint.save(last, tensors, about, checkpoint.belongs_to(last))
    ok(cli(*RESUME, "--eval-interval", 2))
    assert summary()["best_step"] == facts(tmp_path / "run", "best")["step"] >= 4


def test_a_model_that_counts_is_not_saved_in_between(cli):
    refused(cli("train.py", "--model", "ngram", "--data", "text.txt", "--save-interval", 5), "--save-interval")
