"""A search: what it tries, what it keeps, and that it goes on after whatever end."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from peftkit.cli.app import main
from peftkit.data.grammar import task
from peftkit.errors import ChangedError, InputError, RecipeError, RunError, Stopped, TargetError
from peftkit.experiments.search import Tuned
from peftkit.experiments.tune import TuneOptions, tune
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.runs.manifest import RunManifest
from peftkit.storage import append_json_line

STUDY = """\
n_trials: 8
space:
  training.learning_rate: {low: 1e-4, high: 1e-1, log: true}
  lora.r: [2, 4, 8]
"""
EPOCHS = 4
RECIPE = f"""\
name: small
base: {{model: "builtin:tiny-gpt2"}}
lora: {{r: 4}}
data:
  train: {{path: rows.txt}}
  validation: {{path: rows.txt}}
training: {{learning_rate: 3e-3, num_train_epochs: {EPOCHS}, eval_strategy: epoch, save_strategy: "no"}}
"""
BEST_RATE = 1e-2


class Killed(BaseException):
    """Stands for a SIGKILL: nothing that the search would do in an orderly end is done."""


class Trainer:
    """In place of a process that trains: writes the run of a trial, with a loss that its values say."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.statuses: dict[str, int] = {}
        self.kill_at: dict[int, int] = {}
        """After how many epochs the search is killed, by the number of the call."""

        self.told_at_once = True
        self.loss: Callable[[Any], float] = lambda recipe: abs(math.log10(recipe.training.learning_rate / BEST_RATE))
        self.data: dict[str, Any] = {"train": {"sha256": "1"}}

    def __call__(self, arguments: Sequence[str], end_when: Callable[[], bool] = lambda: False) -> int:
        overrides = [arguments[at + 1] for at, word in enumerate(arguments) if word == "--set"]
        recipe = load_recipe(Path(arguments[1]), overrides=overrides).recipe
        folder = RunFolder(Path(arguments[arguments.index("--output") + 1]))
        self.calls.append(folder.path.name)
        status = self.statuses.get(folder.path.name, 0)
        if status == 2:
            return status
        folder.path.mkdir(parents=True, exist_ok=True)
        manifest = RunManifest("small", recipe.method, "", {}, self.data, {}, {})
        folder.write(manifest)
        folder.metrics.write_text("", encoding="utf-8")
        append_json_line(folder.metrics, {"step": 0, "epoch": 0.0, "eval_loss": 9.0})
        for epoch in range(1, EPOCHS + 1):
            if self.kill_at.get(len(self.calls)) == epoch:
                raise Killed
            loss = self.loss(recipe) + 1 / epoch
            append_json_line(folder.metrics, {"step": epoch, "epoch": float(epoch), "eval_loss": loss})
            if self.told_at_once and end_when():
                return 128 + signal.SIGTERM
        manifest.status = "failed" if status else "finished"
        manifest.error = "the loss is no finite number." if status else None
        manifest.metrics.eval_loss = None if status else self.loss(recipe) + 1 / EPOCHS
        folder.write(manifest)
        return status


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr("peftkit.experiments.tune.run_apart", trainer)
    return trainer


def small(folder: Path) -> Path:
    """A recipe whose data nobody reads."""
    (folder / "rows.txt").write_text("one\n", encoding="utf-8")
    path = folder / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small(tmp_path)


@pytest.fixture
def real(recipe_path: Path) -> Path:
    """A recipe that is trained, with several evaluations."""
    text = recipe_path.read_text(encoding="utf-8").replace("max_steps: 6", f"num_train_epochs: {EPOCHS}")
    recipe_path.write_text(text, encoding="utf-8")
    return recipe_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """The search that every other one of the same study has to come to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("peftkit.experiments.tune.run_apart", Trainer())
        return search(small(tmp_path_factory.mktemp("undisturbed")))


def search(recipe: Path, name: str = "search", study: str = STUDY, **options: Any) -> Tuned:
    place = recipe.with_name("study.yaml")
    place.write_text(study, encoding="utf-8")
    return tune(recipe, TuneOptions(place, **options), recipe.with_name(name))


def seen(tuned: Tuned) -> list[tuple[Any, ...]]:
    """What a search came to, wherever it is."""
    return [(row.number, row.state, row.values, row.eval_loss, row.error) for row in tuned.trials]


def test_the_first_trial_is_the_recipe_and_the_best_can_be_trained(recipe: Path, trainer: Trainer) -> None:
    tuned = search(recipe)

    assert sorted(row.number for row in tuned.trials if row.number is not None) == list(range(8))
    assert tuned.recipe is not None
    assert (tuned.recipe.number, tuned.recipe.values) == (0, {"training.learning_rate": 3e-3, "lora.r": 4})
    assert tuned.best is tuned.trials[0]
    assert tuned.best is not None
    assert tuned.gain == tuned.recipe.eval_loss - tuned.best.eval_loss > 0  # type: ignore[operator]
    best = load_recipe(Path(tuned.best_recipe))
    assert best.recipe.training.learning_rate == tuned.best.values["training.learning_rate"]
    assert (best.recipe.name, best.output) == ("small-tuned", Path("runs/small-tuned"))
    assert best.recipe.generation.samples == 3
    assert trainer.calls == [f"{number:03}" for number in range(8)]


def test_a_search_killed_anywhere_makes_the_trials_of_an_undisturbed_one(
    recipe: Path, trainer: Trainer, undisturbed: Tuned
) -> None:
    trainer.kill_at = {1: 1, 2: 3, 5: 2, 6: 1, 9: 4}
    for _ in trainer.kill_at:
        with pytest.raises(Killed):
            search(recipe, "killed")
    went_on = search(recipe, "killed")

    assert seen(went_on) == seen(undisturbed)
    assert {row.state for row in went_on.trials} == {"finished", "pruned"}
    assert len(trainer.calls) == 8 + 5


def test_a_search_killed_between_drawing_two_values_draws_the_same(
    recipe: Path, trainer: Trainer, undisturbed: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.trial import Trial

    def killed(*_: Any) -> None:
        raise Killed

    search(recipe, "killed", trials=3)
    with monkeypatch.context() as killing:
        killing.setattr(Trial, "suggest_categorical", killed)
        with pytest.raises(Killed):
            search(recipe, "killed")

    assert trainer.calls[-1] == "002"
    assert seen(search(recipe, "killed")) == seen(undisturbed)


def test_which_trials_are_ended_early_does_not_hang_on_when_their_losses_are_seen(
    recipe: Path, trainer: Trainer, undisturbed: Tuned
) -> None:
    trainer.told_at_once = False
    late = search(recipe, "late")

    assert seen(late) == seen(undisturbed)
    pruned = [row for row in late.trials if row.state == "pruned"]
    assert pruned
    assert max(row.eval_loss or 0 for row in pruned) > (late.trials[0].eval_loss or 0)


def test_without_pruning_every_trial_comes_to_its_end(recipe: Path, trainer: Trainer) -> None:
    tuned = search(recipe, study=f"pruning: false\n{STUDY}")

    assert {row.state for row in tuned.trials} == {"finished"}
    assert len(trainer.calls) == 8


def test_a_trial_that_fails_is_told_and_the_search_goes_on(recipe: Path, trainer: Trainer) -> None:
    trainer.statuses = {"001": 1, "003": -signal.SIGKILL}

    tuned = search(recipe, trials=5)

    failed = {row.number: row.error for row in tuned.trials if row.state == "failed"}
    assert failed[1] == "the loss is no finite number."
    assert set(failed) == {1, 3}
    assert "its memory" in (failed[3] or "")
    assert len(tuned.trials) == 5


def test_wrong_input_ends_the_search_and_is_gone_on_with_once_it_is_mended(
    recipe: Path, trainer: Trainer, undisturbed: Tuned
) -> None:
    trainer.statuses = {"002": 2}
    with pytest.raises(InputError, match="its message stands above"):
        search(recipe, "mended")
    trainer.statuses = {}

    assert seen(search(recipe, "mended")) == seen(undisturbed)


def test_a_search_of_which_nothing_is_finished_says_why(recipe: Path, trainer: Trainer) -> None:
    trainer.statuses = {"000": 1, "001": 1}

    with pytest.raises(RunError, match=r"no trial was finished: the loss is no finite number\."):
        search(recipe, trials=2)


def test_a_finished_search_trains_nothing_and_more_trials_go_on_with_it(recipe: Path, trainer: Trainer) -> None:
    first = search(recipe)
    trainer.calls.clear()

    assert search(recipe) == first
    assert trainer.calls == []
    more = search(recipe, trials=11)

    assert trainer.calls == ["008", "009", "010"]
    by_number = {row.number: row for row in more.trials}
    assert [by_number[row.number] for row in first.trials] == first.trials


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"study": STUDY.replace("1e-1", "2e-1")}, "the study's space is another one."),
        ({"study": f"seed: 1\n{STUDY}"}, "the study's seed is another one."),
        ({"overrides": ("training.weight_decay=0.1",)}, "the recipe's training.weight_decay: was 0.0, is 0.1."),
        (
            {"method": "full", "study": "space: {training.learning_rate: {low: 1e-4, high: 1e-1}}"},
            "the recipe's method",
        ),
    ],
)
def test_another_study_or_recipe_for_the_same_folder_is_told(
    change: dict[str, Any], words: str, recipe: Path, trainer: Trainer
) -> None:
    search(recipe, trials=1)

    with pytest.raises(ChangedError) as caught:
        search(recipe, **change)

    assert words in str(caught.value)
    assert trainer.calls == ["000"]


def test_a_folder_of_something_else_is_left_alone(recipe: Path) -> None:
    (recipe.parent / "notes").mkdir()
    (recipe.parent / "notes" / "mine.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(TargetError, match="holds no search"):
        search(recipe, "notes")
    assert [path.name for path in (recipe.parent / "notes").iterdir()] == ["mine.txt"]


def test_data_that_has_changed_ends_the_search(recipe: Path, trainer: Trainer) -> None:
    search(recipe, trials=2)
    trainer.data = {"train": {"sha256": "2"}}

    with pytest.raises(ChangedError, match="its data is not what the first trial had"):
        search(recipe, trials=3)


def test_a_recipe_outside_of_the_space_is_trained_beside_it(recipe: Path, trainer: Trainer) -> None:
    study = STUDY.replace("[2, 4, 8]", "[2, 8]")

    tuned = search(recipe, study=study, trials=4)

    assert trainer.calls == ["recipe", "000", "001", "002"]
    assert tuned.recipe is not None
    assert (tuned.recipe.number, tuned.recipe.values["lora.r"]) == (None, 4)
    assert tuned.gain is not None
    again = search(recipe, study=study, trials=4)
    assert again == tuned
    assert len(trainer.calls) == 4


def test_fields_that_a_trials_method_does_not_use_are_not_drawn_for_it(recipe: Path, trainer: Trainer) -> None:
    study = "n_trials: 9\npruning: false\nspace: {lora.r: [2, 4, 8], method: [full, lora, qlora]}\n"

    tuned = search(recipe, study=study)

    assert {row.values["method"]: sorted(row.values) for row in tuned.trials} == {
        "full": ["method"],
        "lora": ["lora.r", "method"],
        "qlora": ["lora.r", "method"],
    }
    assert len(trainer.calls) == 9


def test_time_that_is_up_ends_the_search_in_order(
    recipe: Path, trainer: Trainer, undisturbed: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    with monkeypatch.context() as slow:
        slow.setattr("peftkit.experiments.tune.time.monotonic", lambda: 60.0 * next(clock))
        cut = search(recipe, "cut", minutes=20)
    assert 0 < cut.trials_left < 8
    assert len(trainer.calls) == len(cut.trials)
    assert [row.state for row in cut.trials].count("unfinished") <= 1

    assert seen(search(recipe, "cut")) == seen(undisturbed)


def test_the_fields_that_mattered_are_told_once_there_are_trials_enough(recipe: Path, trainer: Trainer) -> None:
    study = f"pruning: false\n{STUDY}"
    assert search(recipe, study=study, trials=2).importances == {}

    tuned = search(recipe, study=study, trials=16)

    assert list(tuned.importances) == ["training.learning_rate", "lora.r"]
    assert sum(tuned.importances.values()) == pytest.approx(1)
    assert len(trainer.calls) == 16


def test_a_signal_says_how_to_go_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> int:
        raise Stopped(signal.SIGTERM, "stopped by SIGTERM.")

    monkeypatch.setattr("peftkit.experiments.tune.run_apart", stopped)

    with pytest.raises(Stopped) as caught:
        search(recipe, trials=3, overrides=("lora.lora_alpha=4",))

    assert "Go on with: peftkit tune" in str(caught.value)
    assert "--trials 3 --set lora.lora_alpha=4" in str(caught.value)


def test_a_trial_that_a_process_still_holds_is_waited_for(recipe: Path, trainer: Trainer) -> None:
    trainer.kill_at = {1: 2}
    with pytest.raises(Killed):
        search(recipe)
    run = recipe.parent / "search" / "trials" / "000"
    hold = (
        "import sys, time; from pathlib import Path; from peftkit.runs.folder import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); time.sleep(1.5)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(run)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        tuned = search(recipe, trials=1)
        assert holder.poll() is not None or holder.wait(1) == 0

    assert [row.state for row in tuned.trials] == ["finished"]


def test_values_that_do_not_go_together_end_the_search(recipe: Path, trainer: Trainer) -> None:
    study = "space: {training.load_best_model_at_end: [true, false]}"

    with pytest.raises(RecipeError, match="needs eval_strategy and save_strategy to be the same"):
        search(recipe, study=study)
    assert trainer.calls == []


@pytest.mark.parametrize("name", ["a {b} c", "50%20?x=1#y", "ünïcode"])
def test_the_folder_may_have_any_name(name: str, recipe: Path, trainer: Trainer) -> None:
    tuned = search(recipe, name, trials=2)

    assert sorted(path.name for path in (recipe.parent / name).iterdir() if path.name != ".lock") == [
        "best.yaml", "recipe.yaml", "study.db", "study.yaml", "trials"]  # fmt: skip
    assert len(tuned.trials) == len(trainer.calls) == 2


def test_the_command_prints_a_table_and_the_best_recipe(
    recipe: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    study, output = recipe.with_name("study.yaml"), recipe.with_name("search")
    study.write_text(STUDY, encoding="utf-8")
    asked = ["tune", str(recipe), "--study", str(study), "--output", str(output)]

    with pytest.raises(SystemExit) as left:
        main(asked)
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*asked, "--json"])
    found = json.loads(capsys.readouterr().out)

    assert left.value.code == 0
    assert shown.rstrip().endswith(str(output / "best.yaml"))
    assert "the recipe's own" in shown
    assert found["best"]["eval_loss"] == min(row["eval_loss"] for row in found["trials"] if row["state"] == "finished")
    assert found["trials"][0] == found["best"]
    assert len(trainer.calls) == 8


def begin(folder: Path, name: str, log: Path) -> subprocess.Popen[bytes]:
    """A real search, in a process of its own."""
    command = [sys.executable, "-m", "peftkit", "tune", "small.yaml", "--study", "study.yaml", "--output", name]
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.02)


def trained(run: Path) -> int:
    """Lines of metrics that a run has."""
    place = run / "metrics.jsonl"
    return place.read_text(encoding="utf-8").count("\n") if place.is_file() else 0


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_real_search_killed_in_and_between_trials_makes_the_same_trials(real: Path) -> None:
    folder = real.parent
    text = real.read_text(encoding="utf-8").replace('save_strategy: "no"', "save_strategy: steps\n  save_steps: 3")
    real.write_text(text, encoding="utf-8")
    (folder / "study.yaml").write_text(STUDY.replace("n_trials: 8", "n_trials: 6"), encoding="utf-8")
    log = folder / "log"
    assert begin(folder, "undisturbed", log).wait() == 0, log.read_text(encoding="utf-8")

    def kill(condition: Callable[[], bool], *, whole: bool) -> None:
        process = begin(folder, "killed", log)
        wait_until(condition, process)
        family = psutil.Process(process.pid).children(recursive=True) if whole else []
        process.kill()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        assert process.wait() == -signal.SIGKILL

    trials = folder / "killed" / "trials"
    kill(lambda: trained(trials / "000") > 6, whole=False)  # its run saves what it has trained, and ends
    kill(lambda: trained(trials / "001") > 9, whole=True)
    kill(lambda: "trials/002: " in log.read_text(encoding="utf-8").rpartition("000: ")[2], whole=False)
    kill(lambda: (trials / "003").exists(), whole=False)
    assert begin(folder, "killed", log).wait() == 0, log.read_text(encoding="utf-8")

    study = TuneOptions(folder / "study.yaml")
    results = [seen(tune(real, study, folder / name)) for name in ("undisturbed", "killed")]
    assert results[0] == results[1], log.read_text(encoding="utf-8")
    assert len(results[0]) == 6


@pytest.mark.slow
def test_the_best_is_better_than_a_poor_start_on_data_that_the_search_has_not_seen(
    real: Path, peftkit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in task("train")[100:148])
    real.with_name("test.jsonl").write_text(rows, encoding="utf-8")
    real.with_name("study.yaml").write_text(STUDY.replace("n_trials: 8", "n_trials: 4"), encoding="utf-8")

    done = peftkit("tune", "small.yaml", "--study", "study.yaml", "--output", "search", "--json",
                   "--set", "training.learning_rate=1e-4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    best = f"search/{json.loads(done.stdout)['best']['run']}"
    measured = peftkit("evaluate", best, "--data", "test.jsonl", "--baseline", "search/trials/000", "--json")

    assert measured.returncode == 0, measured.stderr
    difference = json.loads(measured.stdout)["baseline"]["difference"]
    assert difference["high"] < 0
    trained = peftkit("train", "search/best.yaml", "--output", "again", "--json")
    assert json.loads(trained.stdout)["metrics"]["eval_loss"] == json.loads(done.stdout)["best"]["eval_loss"]
