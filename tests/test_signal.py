"""StopRequest on one rank: the handler sets a flag, a second Ctrl-C kills, handlers are restored."""

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.model_base import compiled
from tests.helpers import ONE_RANK
from tests.run_helpers import in_child
from utils import utils_signal
from utils.utils_dist import Dist
from utils.utils_signal import SAVE_FAILED, StopRequest, held_stop_signals, ignore_stop_signals, stop_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_signals_are_those_of_ctrl_c_kill_a_closed_terminal_and_slurm() -> None:
    assert set(stop_signals()) == set(SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_a_flag_that_agreed_returns(number: int) -> None:
    with StopRequest(ONE_RANK) as stop:
        assert stop.agreed() == 0
        assert stop.seconds_since_signal == 0
        send(number)
        assert stop.signal_number == 0  # nothing is agreed before all ranks are asked
        assert stop.agreed() == number
        assert stop.signal_number == number
        assert 0 < stop.seconds_since_signal < 60
        assert stop.agreed() == number


def test_the_time_counts_from_the_first_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(utils_signal, "time", clock)
    with StopRequest(ONE_RANK) as stop:
        for clock.now in (100.0, 105.0):
            send(signal.SIGTERM)
        clock.now = 112.0
        assert stop.seconds_since_signal == 12


@pytest.mark.parametrize(("first", "expected"), [(None, SAVE_FAILED), (signal.SIGTERM, signal.SIGTERM)])
def test_a_failed_save_asks_for_a_stop_unless_a_signal_has(first: int | None, expected: int) -> None:
    with StopRequest(ONE_RANK) as stop:
        if first:
            send(first)
        stop.save_failed()
        assert stop.agreed() == expected


@pytest.mark.parametrize(("rank", "num_said"), [(0, 1), (1, 0)])
@pytest.mark.parametrize(("number", "more"), [(signal.SIGTERM, ""), (signal.SIGINT, "; a second Ctrl-C stops at once")])
def test_rank_0_says_at_once_that_it_will_stop(
    rank: int, num_said: int, number: signal.Signals, more: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest(Dist(rank=rank)):
        send(number)
        send(signal.SIGTERM)
        said = capfd.readouterr().err
    assert said == f"{number.name}: saves and stops after this iteration{more}.\n" * num_said


def test_handlers_are_restored() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest(ONE_RANK):
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_handlers_are_restored_after_an_error() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.raises(RuntimeError), StopRequest(ONE_RANK):
        raise RuntimeError
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_a_signal_ignored_under_nohup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(ONE_RANK) as stop:
            send(signal.SIGHUP)
            assert stop.agreed() == 0
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def signalled(*numbers: int) -> int:
    """How a child ends that asks for a stop this way, and then returns 0."""

    def run() -> None:
        with StopRequest(ONE_RANK):
            for number in numbers:
                send(number)
                time.sleep(0.01)

    return in_child(run)


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ((signal.SIGINT,), 0),
        ((signal.SIGINT, signal.SIGINT), -signal.SIGINT),
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGTERM), 0),
        ((signal.SIGTERM, signal.SIGINT), 0),
        ((signal.SIGTERM, signal.SIGINT, signal.SIGINT), -signal.SIGINT),
    ],
    ids=lambda value: " ".join(signal.Signals(each).name for each in value) if isinstance(value, tuple) else "",
)
def test_a_second_ctrl_c_kills_at_once(numbers: tuple[int, ...], status: int) -> None:
    assert signalled(*numbers) == status


def test_a_loader_worker_survives_the_signals_that_stop_the_trainer() -> None:
    def worker(shielded: bool) -> None:
        if shielded:
            ignore_stop_signals(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            send(number)

    assert in_child(lambda: worker(shielded=True)) == 0
    assert in_child(lambda: worker(shielded=False)) == -signal.SIGTERM


def test_a_trainer_whose_launcher_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ready_read, ready_write = os.pipe()
    verdict_read, verdict_write = os.pipe()

    def launcher() -> None:
        if os.fork() == 0:
            trainer()
        os.read(ready_read, 1)

    def trainer() -> None:
        with StopRequest(ONE_RANK) as stop:
            first = stop.agreed()
            os.write(ready_write, b"x")
            end = time.monotonic() + 10
            while not stop.agreed() and time.monotonic() < end:
                time.sleep(0.01)
            os.write(verdict_write, f"{first} {stop.signal_number}".encode())
        os._exit(0)

    assert in_child(launcher) == 0
    assert os.read(verdict_read, 100).decode() == f"0 {int(signal.SIGTERM)}"
    for descriptor in (ready_read, ready_write, verdict_read, verdict_write):
        os.close(descriptor)


@pytest.mark.parametrize(("is_held", "status"), [(True, 0), (False, -signal.SIGTERM)])
def test_a_worker_that_just_starts_survives_a_signal(is_held: bool, status: int) -> None:
    """Signalled before it calls anything of ours, while a handler is in place that ends it, as torch's does."""

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        send(signal.SIGTERM)
        ignore_stop_signals()
        send(signal.SIGTERM)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # a program that it starts can be stopped as any other

    worker = multiprocessing.get_context("fork").Process(target=work)
    with held_stop_signals() if is_held else contextlib.nullcontext():
        worker.start()
    worker.join(60)
    assert worker.exitcode == status
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(stop_signals())


def test_a_signal_that_was_held_arrives_afterwards() -> None:
    with StopRequest(ONE_RANK) as stop:
        with held_stop_signals():
            signal.raise_signal(signal.SIGTERM)  # to this thread: any other one, of torch's, would take it at once
            assert stop.agreed() == 0
        assert stop.agreed() == signal.SIGTERM


def test_compilers_get_no_stop_signals_and_the_trainer_gets_them_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As g++ would be started: it must not end with the group that a launcher signals."""
    held: list[int] = []

    def compiler(graph: Any, _inputs: Any) -> Any:
        ask = "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
        held.extend(map(int, subprocess.check_output([sys.executable, "-c", ask]).split()))
        signal.raise_signal(signal.SIGTERM)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    for size in (2, 3):  # each shape is compiled
        with StopRequest(ONE_RANK) as stop:
            compiled(torch.nn.Flatten())(torch.ones(1, size))
            assert stop.agreed() == signal.SIGTERM
        assert set(stop_signals()) <= set(held)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(stop_signals())
        held.clear()
