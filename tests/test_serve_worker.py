"""The worker behind python -m serve, without HTTP: what joins, leaves, waits, fails and is refused."""

import threading

import pytest

from engine import load_run
from engine.run.company import Company
from serve.bodies import Completion
from serve.errors import Refused
from serve.served import Served
from serve.worker import Failed, Full, Job, Worker
from tests.helpers import STREAM, trained


class Heard:
    """What a worker gave to a sink."""

    def __init__(self) -> None:
        self.drawn: list = []
        self.end: object = None
        self.calls, self.is_over = 0, threading.Event()

    def __call__(self, drawn, end) -> None:
        self.drawn += drawn
        self.calls += 1
        self.end = end
        if end is not None:
            self.is_over.set()


@pytest.fixture
def worker(cli, names, text):
    trained(cli, "transformer", **STREAM)
    worker = Worker(load_run("run"), 2, 3, lambda give: give())
    yield worker
    worker.close()


def job(worker: Worker, heard: Heard, **how) -> Job:
    return Job(worker.run.prompt_ids("a"), worker.run.request(**{"max_new_tokens": 20} | how), heard)


def test_a_text_that_nobody_wants_costs_at_most_two_steps(worker, monkeypatch):
    heard, stays = Heard(), Heard()
    left = job(worker, heard, max_new_tokens=100_000)
    step, taken = Company.step, []

    def leaving(company, most):
        """Its client leaves when the next steps are just to be taken."""
        leaves = worker.counts.steps > 20 and left.is_wanted
        if leaves:
            worker.cancel([left])
        told = step(company, most)
        if leaves:
            taken.append((most > 1, company.taken))
        return told

    monkeypatch.setattr(Company, "step", leaving)
    worker.submit([left, job(worker, stays, max_new_tokens=300)])
    assert stays.is_over.wait(30)
    assert taken == [(True, 1)] and worker.counts.cancelled == 1 and stays.end == "length"
    assert 20 < worker.counts.tokens - 300 < 300


def test_the_queue_is_bounded_and_parcels_are_few(worker):
    heard = [Heard() for _ in range(5)]
    worker.submit([job(worker, each, max_new_tokens=400) for each in heard])
    with pytest.raises(Full):
        worker.submit([job(worker, Heard())])
    assert all(each.is_over.wait(60) for each in heard) and worker.counts.refused == 1
    assert [len(each.drawn) for each in heard] == [400] * 5 and all(each.calls < 200 for each in heard)


@pytest.mark.parametrize("where", ["step", "join"])
def test_a_worker_that_fails_says_so_and_goes_on(worker, monkeypatch, where):
    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(f"engine.run.company.Company.{where}", lambda *_: 1 / 0)
        worker.submit([job(worker, heard)])
        assert heard.is_over.wait(30) and isinstance(heard.end, Failed)
    again = Heard()
    worker.submit([job(worker, again)])
    assert again.is_over.wait(30) and again.end == "length" and worker.counts.failures == 1


def test_a_request_is_bounded_before_it_is_queued(worker):
    served = Served("run", worker.run, worker, 10)
    with pytest.raises(Refused, match="max_tokens is 11; at most 10"):
        served.completion_jobs(Completion(prompt="a", max_tokens=11), lambda n: Heard())
