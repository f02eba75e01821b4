"""Processes meet at a store, wait for each other there, and end as one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from peftkit import console
from peftkit.errors import InputError, PeerError, RunError, Stopped
from peftkit.training.processes import ALONE, Processes, joined, shared_store

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
