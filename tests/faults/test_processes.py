"""Two processes take the steps that one would take, and end as one; their run survives what that of one does."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from peftkit.adapters.merge import merge
from tests.faults.conftest import Server, Work

NO_DROPOUT = ("base.dropout=0.0", "lora.lora_dropout=0.0")
SHARDED = ("training.fsdp=full_shard",)
SHARDED_FULL = ("method=full", "training.learning_rate=1e-3", *SHARDED)
ONE_ROW_LEFT = ("data.train.limit=17", "training.max_steps=6")
BEST = ("training.save_strategy=epoch", "training.load_best_model_at_end=true")
CASES = {
    "lora": ("method=lora", "training.per_device_train_batch_size=5", "training.per_device_eval_batch_size=5"),
    "full": ("method=full", "training.learning_rate=1e-3", *ONE_ROW_LEFT, *BEST),
    "qlora": ("method=qlora", "data.packing=true", "training.gradient_accumulation_steps=1"),
    "stream": ("method=lora", "data.streaming=true", "training.eval_strategy=no"),
}
"""In the first, an epoch's last step has two rows for five places; in the second, one process gets none of them."""


class Pair:
    """Two processes that train together, as a launcher would start them."""

    def __init__(self, work: Work, *arguments: str) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        self.both = [
            work.start("train", *arguments, environment={**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
        ]
        self.main, self.other = self.both

    def ended(self) -> list[int]:
        """The status of each."""
        return [command.ended() for command in self.both]


def settings(*changes: str) -> list[str]:
    """What `--set` is given."""
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture
def pair(work: Work) -> Iterator[Callable[..., Pair]]:
    """Starts pairs that train the recipe of the test's folder."""
    begun: list[Pair] = []

    def start(name: str, *arguments: str) -> Pair:
        begun.append(Pair(work, "recipe.yaml", "--output", name, *arguments))
        return begun[-1]

    yield start
    for each in begun:
        for command in each.both:
            command.send(signal.SIGKILL)
            command.ended()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Callable[..., tuple[Work, str]]:
    """Runs that nothing disturbs: of one process or of two, with some changes, each of them trained once."""

    @cache
    def finished(processes: int, *changes: str) -> tuple[Work, str]:
        work = Work(tmp_path_factory.mktemp("done"), server)
        if processes == 1:
            status, log = work.train("run", *settings(*changes))
            return _checked(work, [status], log)
        two = Pair(work, "recipe.yaml", "--output", "run", *settings(*changes))
        statuses = two.ended()
        assert two.other.log == ""
        return _checked(work, statuses, two.main.log)

    return finished


def _checked(work: Work, statuses: list[int], log: str) -> tuple[Work, str]:
    assert not any(statuses), log
    return work, log


def numbers(work: Work, name: str = "run") -> list[dict[str, Any]]:
    """The metrics of a run, without how much of an epoch a step ends: that is counted in passes, which are fewer."""
    method = work.manifest(name)["method"]
    return [{key: line[key] for key in line if key != "epoch"} for line in work.result(name, method)[1]]


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """See that losses, rates, norms and tokens differ by rounding alone."""
    assert len(found) == len(expected) > 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("case", "more"),
    [
        ("lora", ()),
        pytest.param("lora", SHARDED, marks=pytest.mark.slow),
        pytest.param("full", (), marks=pytest.mark.slow),
        pytest.param("full", SHARDED, marks=pytest.mark.slow),
        pytest.param("qlora", (), marks=pytest.mark.slow),
        pytest.param("stream", (), marks=pytest.mark.slow),
    ],
)
def test_two_processes_take_the_steps_of_one(case: str, more: tuple[str, ...], done: Any) -> None:
    two, log = done(2, *NO_DROPOUT, *CASES[case], *more)
    one, _ = done(1, *NO_DROPOUT, *CASES[case])

    assert_alike(numbers(two), numbers(one))
    manifest, alone = two.manifest("run"), one.manifest("run")
    assert (manifest["world_size"], alone["world_size"]) == (2, 1)
    for name in ("train_tokens", "eval_loss", "base_perplexity", "trainable_parameters"):
        assert manifest["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-5)
    assert two.leftovers("run") == []
    assert log.count("parameters are trained") == 1
    assert ("2 processes that share the weights" in log) is bool(more)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), (*NO_DROPOUT, *CASES["lora"], *SHARDED)], ids=["whole", "sharded"])
def test_what_two_processes_ship_is_sound_and_can_be_merged(changes: tuple[str, ...], done: Any, work: Work) -> None:
    two, _ = done(2, *changes)

    receipt = merge([(two.path / "run" / "adapter", 1.0)], work.path / "merged")

    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_any_of_them_stops_all_after_the_same_step(
    number: signal.Signals, work: Work, pair: Any, done: Any
) -> None:
    running = pair("run")
    running.main.wait_for(lambda: bool(work.checkpoints("run")))
    running.other.send(number)

    assert running.ended() == [128 + number] * 2, running.main.log
    assert "Go on with: peftkit train run --resume" in running.main.log
    assert work.manifest("run")["status"] == "stopped"
    assert pair("run", "--resume").ended() == [0, 0]
    assert work.result("run") == done(2)[0].result("run")
    assert work.leftovers("run") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "changes"), [(0, ()), (1, ()), (1, SHARDED_FULL)], ids=["main", "other", "other of sharded"]
)
def test_where_one_is_killed_the_other_ends_and_the_run_goes_on_in_the_same_bits(
    victim: int, changes: tuple[str, ...], work: Work, pair: Any, done: Any
) -> None:
    running = pair("run", *settings(*changes))
    running.main.wait_for(lambda: bool(work.checkpoints("run")))
    running.both[victim].send(signal.SIGKILL)

    statuses = running.ended()
    said = running.both[1 - victim].log
    assert (statuses[victim], statuses[1 - victim]) == (-signal.SIGKILL, 1)
    assert said.count("error:") == 1
    assert "another process of the run was lost" in said
    assert "Traceback" not in said
    assert work.manifest("run")["status"] == ("failed" if victim else "running")
    assert pair("run", "--resume", *settings(*changes)).ended() == [0, 0]
    method = work.manifest("run")["method"]
    assert work.result("run", method) == done(2, *changes)[0].result("run", method)
    assert work.leftovers("run") == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), SHARDED], ids=["whole", "sharded"])
def test_a_run_goes_on_with_another_number_of_processes_if_that_is_allowed(
    more: tuple[str, ...], work: Work, pair: Any, done: Any
) -> None:
    changes = settings(*NO_DROPOUT, *more)
    running = pair("run", *changes)
    running.main.wait_for(lambda: bool(work.checkpoints("run")))
    running.main.send(signal.SIGTERM)
    assert running.ended() == [143, 143]

    status, log = work.train("run", "--resume", *changes)
    assert status == 2
    assert "world_size: was 2, is 1" in log
    assert work.train("run", "--resume", "--allow-changes", "world_size", *changes)[0] == 0
    assert_alike(numbers(work), numbers(done(1, *NO_DROPOUT)[0]))


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        (["training.lerning_rate=1"], 2, "there is no lerning_rate"),
        (["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=3"], 2, "cannot share"),
        (["data.train.path=missing.jsonl"], 2, "missing.jsonl"),
        (["method=qlora", *SHARDED], 2, "cannot shard the quantised weights"),
        (["method=full", "training.learning_rate=1e30", "training.max_grad_norm=0"], 1, "not a finite number"),
        (["method=full", "training.learning_rate=1e30", "training.max_grad_norm=0", *SHARDED], 1, "not a finite"),
    ],
    ids=["recipe", "batch", "data", "sharded qlora", "loss", "sharded loss"],
)
def test_what_is_wrong_is_told_once(changes: list[str], status: int, told: str, work: Work, pair: Any) -> None:
    running = pair("run", *settings(*changes))

    assert running.ended() == [status, status], running.main.log
    said = running.main.log + running.other.log
    assert said.count("error:") == 1
    assert told in said
    assert "Traceback" not in said
    assert (work.path / "run").exists() == (status == 1)
