"""Processes of a run exchange values, end as one, and stop at a signal between two steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from peftkit import console
from peftkit.errors import InputError, PeerError, RunError, Stopped
from peftkit.training.processes import ALONE, SIGNALS, Processes, StopRequest, joined, shared_store, stopping_at_signals

Pair = tuple[Processes, Processes]


@pytest.fixture
def pair() -> Pair:
    """Two processes of one machine, here in one."""
    store = shared_store(HashStore())
    return Processes(0, 2, 0, 2, store), Processes(1, 2, 1, 2, store)


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """Messages are seen again, whatever a test has done."""
    yield
    console.stderr().quiet = console.stdout().quiet = False


def test_a_process_alone_sums_and_gathers_what_it_has() -> None:
    with joined() as processes:
        assert processes is ALONE

    assert (ALONE.sums(1.5, 2), ALONE.largest(3.0)) == ([1.5, 2.0], 3.0)
    assert (ALONE.gathered("a"), ALONE.of_main("a")) == (["a"], "a")
    with ALONE.first_on_machine("data"), pytest.raises(ValueError, match="as it is"), ALONE.ending_as_one():
        raise ValueError("as it is")


def test_a_value_that_is_published_reaches_a_process_that_waits_for_it(pair: Pair) -> None:
    main, other = pair
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(other.wait_for, "orders")
        main.publish("orders", {"step": 3})

        assert received.result(timeout=10) == {"step": 3}


def test_a_process_that_waits_notices_that_the_run_has_ended(pair: Pair) -> None:
    main, other = pair
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(other.wait_for, "orders")
        with pytest.raises(InputError), main.ending_as_one():
            raise InputError("is wrong.", where="recipe.yaml")

        with pytest.raises(PeerError, match=r"recipe\.yaml: is wrong\.") as caught:
            received.result(timeout=10)
    assert (caught.value.exit_status, caught.value.lines()) == (2, [])


def test_one_process_of_a_machine_goes_before_the_others(pair: Pair) -> None:
    order: list[int] = []

    def work(processes: Processes) -> None:
        with processes.first_on_machine("data"):
            order.append(processes.rank)
            time.sleep(0.05)

    threads = [threading.Thread(target=work, args=[processes]) for processes in reversed(pair)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert order == [0, 1]


def test_of_two_errors_the_first_is_reported_by_its_own_process(pair: Pair) -> None:
    main, other = pair
    console.hush()

    with pytest.raises(RunError, match="the loss"), other.ending_as_one():
        raise RunError("the loss is no number.")
    speaks = not console.stderr().quiet
    with pytest.raises(PeerError, match="the loss is no number") as caught, main.ending_as_one():
        raise RuntimeError("[gloo] Connection closed by peer")

    assert speaks
    assert (caught.value.exit_status, caught.value.lines()) == (1, [])


def test_a_process_that_disappears_without_an_error_is_reported_as_lost(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftkit.training.processes._REASON_SECONDS", 0.1)

    with pytest.raises(RunError, match="another process of the run was lost"), pair[0].ending_as_one():
        raise RuntimeError("[gloo] Connection closed by peer")


def test_a_signal_is_no_error_that_others_end_with(pair: Pair) -> None:
    with pytest.raises(Stopped), pair[0].ending_as_one():
        raise Stopped(15, "stopped by SIGTERM.")
    with pytest.raises(Stopped), pair[1].ending_as_one():
        raise Stopped(15, "stopped by SIGTERM.")


def test_what_is_published_holds_no_secret(pair: Pair) -> None:
    token = "hf_" + "a" * 34
    with pytest.raises(ValueError, match="hf_"), pair[0].ending_as_one():
        raise ValueError(token)

    end: Any = json.loads(pair[1].store.get("end"))
    assert token not in end["what"]


STATUSES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

TRAIN = """
import os, signal, sys
from peftkit.training.processes import stopping_at_signals
leaving = lambda: print("leaving", flush=True)
with stopping_at_signals() as stop, stop.between_steps(leaving):
    for name in sys.argv[1:]:
        os.kill(os.getpid(), getattr(signal, name))
        print("a step more", flush=True)
print("the end", flush=True)
"""

FORK = """
import os, signal, sys
from peftkit.training.processes import stopping_at_signals
with stopping_at_signals() as stop:
    worker = os.fork()
    if not worker:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    print(status, stop.number)
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[signal.Signals, object]]:
    """What each signal does at first, which is nothing, though none is ignored as `nohup` would have it."""
    own = {number: lambda *_: None for number in SIGNALS}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield {**own}
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Send this process a signal; Python runs its handler before the next instruction."""
    os.kill(os.getpid(), number)


def process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("number", "status"), STATUSES)
def test_a_signal_outside_of_training_stops_the_run_where_it_is(number: signal.Signals, status: int) -> None:
    with pytest.raises(Stopped, match=rf"^stopped by {number.name}\.$") as caught, stopping_at_signals():
        send(number)

    assert (caught.value.signal_number, caught.value.exit_status) == (number, status)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_between_steps_is_kept_until_somebody_asks(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with stopping_at_signals() as stop, stop.between_steps():
        before = stop.number
        send(number)
        after = stop.number

    assert (before, after) == (None, number)
    said = capsys.readouterr()
    assert said.err == f"{number.name}: the step is finished and saved first. Once more, and it stops at once.\n"
    assert said.out == ""


def test_after_training_a_signal_stops_the_run_where_it_is_again() -> None:
    with stopping_at_signals() as stop:
        with stop.between_steps():
            pass
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            send(signal.SIGTERM)


def test_after_training_that_failed_a_signal_stops_the_run_where_it_is_again() -> None:
    with stopping_at_signals() as stop:
        with pytest.raises(ValueError, match="halfway"), stop.between_steps():
            raise ValueError("halfway")
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            send(signal.SIGINT)


@pytest.mark.parametrize(
    ("names", "status"),
    [(("SIGINT", "SIGINT"), 130), (("SIGINT", "SIGTERM"), 143), (("SIGTERM", "SIGHUP"), 129)],
)
def test_the_second_signal_leaves_the_process_at_once_with_its_own_status(names: tuple[str, str], status: int) -> None:
    left = process(TRAIN, *names)

    assert left.returncode == status
    assert left.stdout == "a step more\nleaving\n"
    assert f"{names[1]} again: stopped at once; the newest checkpoint is still there." in left.stderr


def test_one_signal_lets_the_steps_go_on_to_the_end() -> None:
    ended = process(TRAIN, "SIGTERM")

    assert (ended.returncode, ended.stdout) == (0, "a step more\nthe end\n")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 7)])
def test_a_forked_worker_ends_alone_and_leaves_ctrl_c_to_the_run(name: str, status: int) -> None:
    ended = process(FORK, name)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{status} None\n", "")


def test_within_the_block_all_three_are_taken_and_after_it_put_back(handlers: dict[signal.Signals, object]) -> None:
    with stopping_at_signals() as stop:
        within = [signal.getsignal(number) for number in SIGNALS]

    assert within == [stop.handle] * 3
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_handlers_are_put_back_when_the_block_fails(handlers: dict[signal.Signals, object]) -> None:
    with pytest.raises(ValueError, match="halfway"), stopping_at_signals():
        raise ValueError("halfway")

    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_handlers_are_put_back_when_a_signal_ends_the_block(handlers: dict[signal.Signals, object]) -> None:
    with pytest.raises(Stopped), stopping_at_signals():
        send(signal.SIGHUP)

    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_signal_that_was_ignored_before_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with stopping_at_signals() as stop:
        within = signal.getsignal(signal.SIGHUP)
        send(signal.SIGHUP)

    assert within == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert stop.number is None


def test_beside_a_signal_that_was_ignored_the_others_are_taken() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with pytest.raises(Stopped, match="SIGTERM"), stopping_at_signals():
        send(signal.SIGTERM)


def test_in_another_thread_nothing_changes(handlers: dict[signal.Signals, object]) -> None:
    found: list[tuple[StopRequest, dict[signal.Signals, object]]] = []

    def work() -> None:
        with stopping_at_signals() as stop, stop.between_steps():
            found.append((stop, {number: signal.getsignal(number) for number in SIGNALS}))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    ((stop, within),) = found
    assert within == handlers == {number: signal.getsignal(number) for number in SIGNALS}
    assert stop.number is None


def test_of_two_blocks_the_inner_one_takes_the_signal() -> None:
    with stopping_at_signals() as outer, outer.between_steps():
        with pytest.raises(Stopped), stopping_at_signals():
            send(signal.SIGTERM)
        inner = outer.number
        send(signal.SIGTERM)

    assert (inner, outer.number) == (None, signal.SIGTERM)
