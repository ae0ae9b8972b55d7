"""Stops, with real signals to this process."""

import os
import signal
import time

import pytest

from ssm_metarl.config import load_config
from ssm_metarl.runtime.driver import MetaTrainer, RunStopped
from ssm_metarl.runtime.metrics import Sink, read_metrics
from ssm_metarl.runtime.signals import Abandoned, StopSignals


def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def handlers_come_back():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before, timer = [signal.getsignal(number) for number in numbers], signal.getitimer(signal.ITIMER_REAL)
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    # pytest-timeout's alarm goes on.
    assert signal.getitimer(signal.ITIMER_REAL) == pytest.approx(timer, abs=60) and (
        timer[0] == 0 or timer != (0.0, 0.0)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_that_fits_the_grace_time_is_finished(number):
    with StopSignals(grace_s=20.0) as stop:
        with stop.abandonable():
            os.kill(os.getpid(), number)
            work(0.1)
        assert stop.requested and stop.received == number


def test_work_that_does_not_is_abandoned():
    began = time.monotonic()
    with StopSignals(grace_s=0.2) as stop, pytest.raises(Abandoned), stop.abandonable():
        os.kill(os.getpid(), signal.SIGTERM)
        work(30)
    assert 0.2 <= time.monotonic() - began < 5


def test_a_second_signal_does_not_wait():
    began = time.monotonic()
    with StopSignals(grace_s=60.0) as stop:
        with pytest.raises(Abandoned), stop.abandonable():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            work(30)
        assert stop.received == signal.SIGINT, "the first one names the reason"
    assert time.monotonic() - began < 5


def test_nothing_breaks_off_what_keeps_the_books():
    with StopSignals(grace_s=0.0) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        work(0.6)
        with pytest.raises(Abandoned), stop.abandonable():
            work(30)


def test_an_abandonment_that_a_destructor_swallows_comes_again(monkeypatch):
    class Slow:
        def __del__(self):
            work(0.3)

    swallowed = []
    monkeypatch.setattr("sys.unraisablehook", swallowed.append)
    with StopSignals(grace_s=0.1) as stop, pytest.raises(Abandoned), stop.abandonable():
        os.kill(os.getpid(), signal.SIGTERM)
        Slow()
        work(30)
    assert [error.exc_type for error in swallowed] == [KeyboardInterrupt]


def test_without_signals_nothing_is_handled():
    with StopSignals(signals=()):
        before = signal.getsignal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before


class Stopper(Sink):
    """Sends a signal when the second task of an iteration is back."""

    def __init__(self, number, iteration):
        self.number, self.at = number, iteration

    def task(self, iteration, num_done, num_tasks):
        if (iteration, num_done) == (self.at, 2):
            os.kill(os.getpid(), self.number)


def run(folder, sinks=(), stop=None, **settings):
    tiny = {
        "iterations": 4,
        "tasks_per_iteration": 3,
        "env.horizon": 8,
        "env.episodes_per_task": 4,
        "policy.hidden_dim": 4,
        "eval.num_tasks": 3,
        "workers.num_workers": 0,
        "checkpoint.every": 100,
        "run.dir": str(folder),
        "run.name": "stopped",
    }
    return MetaTrainer(load_config(None, tiny | settings), sinks).run(stop)


@pytest.mark.parametrize(
    ("number", "status", "grace_s", "done"),
    [
        (signal.SIGTERM, 143, 60.0, 3),
        (signal.SIGINT, 130, 60.0, 3),
        (signal.SIGTERM, 143, 0.0, 2),
        (signal.SIGINT, 130, 0.0, 2),
    ],
)
def test_a_stopped_run_is_saved_and_goes_on_to_the_same_numbers(tmp_path, number, status, grace_s, done):
    whole = run(tmp_path / "whole")
    with pytest.raises(
        RunStopped, match=rf"stopped by SIG.* after {done} of 4 iterations; saved up to iteration {done}"
    ) as caught:
        run(tmp_path, [Stopper(number, iteration=2)], StopSignals(grace_s))
    assert caught.value.exit_status == status
    assert [record["iteration"] for record in read_metrics(tmp_path / "stopped")] == list(range(done))
    assert run(tmp_path).params_sha256 == whole.params_sha256
    assert [record["iteration"] for record in read_metrics(tmp_path / "stopped")] == [0, 1, 2, 3]


def test_a_stop_in_the_final_evaluation_loses_nothing(tmp_path):
    class InEvaluation(Sink):
        def iteration(self, record):
            if record["iteration"] == 3:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)

    signal.signal(signal.SIGVTALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunStopped, match="after 4 of 4 iterations; saved up to iteration 4"):
        run(tmp_path, [InEvaluation()], StopSignals(0.0), **{"eval.num_tasks": 3000})
    assert run(tmp_path).pre < 0
