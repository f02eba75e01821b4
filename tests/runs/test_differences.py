"""What has changed of a run since it began, and of its files while it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import ChangedError, RunError
from peftkit.recipe.schema import Recipe
from peftkit.runs.differences import Difference, Inputs, check_differences, input_differences, recipe_differences
from peftkit.runs.manifest import RunManifest
from peftkit.storage import sha256_of_file

ONE, TWO = "1" * 64, "2" * 64
SHOWN_ONE, SHOWN_TWO = "sha256 111111111111", "sha256 222222222222"
RATE = Difference("training.learning_rate", "0.001", "0.002")
SEED = Difference("training.seed", "42", "43")
ROWS = Difference("data.train.rows.jsonl", SHOWN_ONE, SHOWN_TWO)
ALPHA = Difference("lora.lora_alpha", "16.0", "32.0")
FIXED = [
    Difference("method", "lora", "full"),
    Difference("training.optim", "adamw_torch", "sgd"),
    Difference("lora.r", "8", "16"),
    Difference("lora.target_modules", "auto", '["c_attn"]'),
    Difference("base.init.n_layer", "2", "3"),
]


def resolved(**sections: Any) -> dict[str, Any]:
    """A recipe as a run keeps it, with some fields given."""
    data = {"train": {"path": "rows.jsonl"}, "format": "completion"} | sections.pop("data", {})
    fields = {"name": "x", "base": {"model": "gpt2"}, **sections, "data": data}
    return Recipe.model_validate(fields).model_dump(mode="json")


def manifest(**fields: Any) -> RunManifest:
    known: dict[str, Any] = {
        "base": {"model": "gpt2", "sha256": ONE, "files": {"model.safetensors": ONE, "config.json": ONE}},
        "data": {"train": {"files": {"/data/rows.jsonl": ONE}}, "validation": None},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "bitsandbytes": None},
        "hardware": {"device": "cpu"},
        "precision": "fp32",
    }
    return RunManifest(name="x", method="lora", recipe_sha256=ONE, **known | fields)


def trained_on(identity: dict[str, Any]) -> RunManifest:
    return manifest(data={"train": identity, "validation": None})


def refusal(found: Sequence[Difference], allowed: Sequence[str] = ()) -> ChangedError:
    with pytest.raises(ChangedError) as caught:
        check_differences(found, allowed, "runs/x")
    return caught.value


def test_equal_recipes_do_not_differ() -> None:
    assert recipe_differences(resolved(), resolved()) == []


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"training": {"learning_rate": 1e-3}}, {"training": {"learning_rate": 2e-3}}, RATE),
        ({}, {"training": {"seed": 43}}, SEED),
        ({}, {"lora": {"r": 16}}, Difference("lora.r", "8", "16")),
        ({}, {"lora": {"target_modules": ["c_attn"]}}, Difference("lora.target_modules", "auto", '["c_attn"]')),
        ({}, {"method": "full"}, Difference("method", "lora", "full")),
        ({}, {"base": {"model": "gpt2-medium"}}, Difference("base.model", "gpt2", "gpt2-medium")),
        ({}, {"data": {"train": {"path": "b.jsonl"}}}, Difference("data.train.path", "rows.jsonl", "b.jsonl")),
        ({}, {"data": {"columns": {"prompt": "question"}}}, Difference("data.columns.prompt", "not set", "question")),
        ({"data": {"template": "{prompt}"}}, {}, Difference("data.template", "{prompt}", "not set")),
        ({}, {"data": {"packing": True}}, Difference("data.packing", "not set", "true")),
        ({}, {"training": {"adam_beta1": 0.5}}, Difference("training.adam_beta1", "0.9", "0.5")),
        ({}, {"training": {"full_determinism": True}}, Difference("training.full_determinism", "not set", "true")),
    ],
)
def test_a_field_that_differs_is_named_by_its_path_with_both_values(
    before: dict[str, Any], now: dict[str, Any], expected: Difference
) -> None:
    assert recipe_differences(resolved(**before), resolved(**now)) == [expected]


def test_every_field_that_differs_is_named() -> None:
    now = resolved(training={"learning_rate": 1e-3, "seed": 43}, lora={"r": 16}, precision="fp32")

    assert {difference.field for difference in recipe_differences(resolved(), now)} == {
        "training.learning_rate",
        "training.seed",
        "lora.r",
        "precision",
    }


def test_a_format_that_was_recognised_is_no_difference_to_auto() -> None:
    assert recipe_differences(resolved(), resolved(data={"format": "auto"})) == []
    assert recipe_differences(resolved(data={"format": "auto"}), resolved(data={"format": "auto"})) == []


def test_another_format_is_a_difference() -> None:
    found = recipe_differences(resolved(), resolved(data={"format": "instruction"}))

    assert found == [Difference("data.format", "completion", "instruction")]


def test_a_format_that_is_recognised_hides_no_other_field() -> None:
    found = recipe_differences(resolved(), resolved(data={"format": "auto", "max_length": 64}))

    assert found == [Difference("data.max_length", "512", "64")]


def test_where_a_run_goes_and_what_it_is_said_to_be_for_may_change() -> None:
    assert recipe_differences(resolved(), resolved(output="elsewhere", description="Another word for it.")) == []


def test_a_name_may_not_change_unseen() -> None:
    assert recipe_differences(resolved(), resolved(name="y")) == [Difference("name", "x", "y")]


def test_a_long_value_is_shown_cut() -> None:
    (found,) = recipe_differences(resolved(), resolved(data={"template": "{prompt}" * 100}))

    assert len(found.now) < 100
    assert found.now.endswith("…")


def test_equal_inputs_do_not_differ() -> None:
    assert input_differences(manifest(), manifest()) == []


def test_data_that_changed_under_the_same_path_differ() -> None:
    now = trained_on({"files": {"/data/rows.jsonl": TWO}})

    assert input_differences(manifest(), now) == [ROWS]


def test_data_that_only_moved_do_not_differ() -> None:
    assert input_differences(manifest(), trained_on({"files": {"/elsewhere/rows.jsonl": ONE}})) == []


def test_a_file_that_came_or_went_differs() -> None:
    more = trained_on({"files": {"/data/rows.jsonl": ONE, "/data/more.jsonl": TWO}})

    assert input_differences(manifest(), more) == [Difference("data.train.more.jsonl", "not set", SHOWN_TWO)]
    assert input_differences(more, manifest()) == [Difference("data.train.more.jsonl", SHOWN_TWO, "not set")]


def test_a_change_in_one_of_several_sources_is_named_by_its_number() -> None:
    def mixed(second: str) -> RunManifest:
        return trained_on({"sources": [{"files": {"a.jsonl": ONE}}, {"files": {"b.jsonl": second}}]})

    assert input_differences(mixed(ONE), mixed(TWO)) == [Difference("data.train.1.b.jsonl", SHOWN_ONE, SHOWN_TWO)]


@pytest.mark.parametrize(
    ("field", "before", "now", "shown"),
    [
        ("revision", "main", "v2", ("main", "v2")),
        ("split", "train", "test", ("train", "test")),
        ("fingerprint", ONE, TWO, (SHOWN_ONE, SHOWN_TWO)),
        ("sha256", ONE, TWO, (SHOWN_ONE, SHOWN_TWO)),
    ],
)
def test_a_data_set_is_told_by_revision_split_and_content(
    field: str, before: str, now: str, shown: tuple[str, str]
) -> None:
    found = input_differences(
        trained_on({"dataset": "rows", field: before}), trained_on({"dataset": "rows", field: now})
    )

    assert found == [Difference(f"data.train.{field}", *shown)]


def test_a_stream_is_told_by_its_size() -> None:
    before, now = (trained_on({"files": {"rows.jsonl": None}, "bytes": count}) for count in (10, 20))

    assert input_differences(before, now) == [Difference("data.train.bytes", "10", "20")]


def test_validation_data_are_looked_at_too() -> None:
    before, now = (
        manifest(data={"train": {}, "validation": {"files": {"rows.jsonl": sha256}}}) for sha256 in (ONE, TWO)
    )

    assert input_differences(before, now) == [Difference("data.validation.rows.jsonl", SHOWN_ONE, SHOWN_TWO)]


def test_a_base_file_that_changed_differs_though_its_name_is_the_same() -> None:
    now = manifest(base={"model": "gpt2", "sha256": TWO, "files": {"model.safetensors": TWO, "config.json": ONE}})

    assert input_differences(manifest(), now) == [Difference("base.model.safetensors", SHOWN_ONE, SHOWN_TWO)]


def test_a_base_whose_files_are_not_known_is_told_by_its_fingerprint() -> None:
    before, now = (manifest(base={"model": "gpt2", "sha256": sha256}) for sha256 in (ONE, TWO))

    assert input_differences(before, now) == [Difference("base.sha256", SHOWN_ONE, SHOWN_TWO)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"precision": "bf16"}, Difference("precision", "fp32", "bf16")),
        ({"world_size": 2}, Difference("world_size", "1", "2")),
        (
            {"versions": {"python": "3.11.7", "torch": "2.14.0", "bitsandbytes": None}},
            Difference("versions.torch", "2.13.0", "2.14.0"),
        ),
        (
            {"versions": {"python": "3.11.7", "torch": "2.13.0", "bitsandbytes": "0.50.0"}},
            Difference("versions.bitsandbytes", "not set", "0.50.0"),
        ),
    ],
)
def test_versions_number_type_and_number_of_processes_are_looked_at(
    fields: dict[str, Any], expected: Difference
) -> None:
    assert input_differences(manifest(), manifest(**fields)) == [expected]


def test_another_machine_alone_is_no_difference() -> None:
    assert input_differences(manifest(), manifest(hardware={"device": "cuda"}, warnings=["hot"])) == []


def test_every_difference_is_listed_with_before_and_after_and_with_what_allows_it() -> None:
    error = refusal([RATE, ROWS])

    assert error.exit_status == 2
    assert error.lines() == [
        "training.learning_rate: was 0.001, is 0.002.",
        f"data.train.rows.jsonl: was {SHOWN_ONE}, is {SHOWN_TWO}.",
        "runs/x: 2 things differ from when the run began. "
        "Put back what was, or resume with --allow-changes data.train.rows.jsonl,training.learning_rate",
    ]


@pytest.mark.parametrize(
    "allowed",
    [
        ["training.learning_rate", "data.train.rows.jsonl"],
        ["training.learning_rate", "data.train"],
        ["training", "data"],
        ["training", "data", "lora"],
    ],
)
def test_what_is_allowed_by_its_name_or_by_its_section_may_differ(allowed: list[str]) -> None:
    assert {difference.fixed for difference in (RATE, ROWS)} == {False}

    check_differences([RATE, ROWS], allowed, "runs/x")


@pytest.mark.parametrize("allowed", ["training.learning", "train", "learning_rate", "training.learning_rate.x", ""])
def test_what_is_named_only_nearly_is_not_allowed(allowed: str) -> None:
    assert refusal([RATE], [allowed]).changes == (str(RATE),)


def test_only_what_is_not_allowed_is_listed() -> None:
    error = refusal([RATE, SEED, ROWS], ["training.seed", "data"])

    assert error.changes == (str(RATE),)
    assert error.remedy is not None
    assert error.remedy.endswith("--allow-changes training.learning_rate")


@pytest.mark.parametrize("difference", FIXED, ids=lambda difference: difference.field)
def test_what_checkpoints_are_made_of_is_refused_though_it_is_allowed(difference: Difference) -> None:
    error = refusal([difference], [difference.field, difference.field.split(".")[0]])

    assert difference.fixed
    assert error.changes == (str(difference),)
    assert f"cannot be resumed with another {difference.field}: put it back" in str(error)
    assert "--allow-changes" not in str(error)


def test_beside_what_is_fixed_everything_else_is_listed_too() -> None:
    error = refusal([RATE, *FIXED])

    assert error.changes == tuple(str(difference) for difference in (RATE, *FIXED))
    assert "another base.init.n_layer, lora.r, lora.target_modules, method, training.optim: put it back" in str(error)


@pytest.mark.parametrize("allowed", ["lora.lora_alpha", "lora"])
def test_the_weight_of_an_adapter_may_change_where_that_is_allowed(allowed: str) -> None:
    assert "--allow-changes lora.lora_alpha" in str(refusal([ALPHA]))

    check_differences([ALPHA], [allowed], "runs/x")


def test_the_base_may_be_another_where_that_is_allowed() -> None:
    difference = Difference("base.model", "gpt2", "copy-of-gpt2")
    assert not difference.fixed

    check_differences([difference], ["base"], "runs/x")


def test_where_nothing_differs_nothing_is_refused() -> None:
    assert not RATE.fixed

    check_differences([], [], "runs/x")


@dataclass(frozen=True)
class Files:
    """What a run reads: a file of the base, one of data, and one that is streamed."""

    weights: Path
    rows: Path
    stream: Path

    def inputs(self) -> Inputs:
        """The same files, as they are now."""
        base = {"model": "x", "files": {self.weights.name: sha256_of_file(self.weights)}}
        hashed = {"files": {str(self.rows): sha256_of_file(self.rows)}}
        streamed = {"files": {str(self.stream): None}, "bytes": 1}
        data = {"train": {"sources": [hashed, {"dataset": "builtin:grammar"}, streamed]}, "validation": hashed}
        return Inputs.of(base, self.weights.parent, data)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "base").mkdir()
    found = Files(tmp_path / "base" / "model.safetensors", tmp_path / "rows.jsonl", tmp_path / "stream.jsonl")
    for path in (found.weights, found.rows, found.stream):
        path.write_text(f"{path.name}\n", encoding="utf-8")
    return found


def touch(path: Path) -> None:
    """Give a file another time, and leave its content."""
    os.utime(path, ns=(1, 1))


def test_files_that_stay_as_they_are_pass(files: Files) -> None:
    inputs = files.inputs()

    inputs.check()

    assert set(inputs.hashes) == set(inputs.marks) == {files.weights, files.rows, files.stream}
    assert inputs.hashes[files.stream] is None


@pytest.mark.parametrize("name", ["weights", "rows"])
def test_a_file_with_another_time_and_the_same_content_passes(name: str, files: Files) -> None:
    inputs = files.inputs()
    touch(getattr(files, name))

    assert files.inputs().marks != inputs.marks
    inputs.check()


def test_a_file_in_whose_place_an_equal_one_was_put_passes(files: Files) -> None:
    inputs = files.inputs()
    copy = files.rows.with_name("copy")
    copy.write_bytes(files.rows.read_bytes())
    copy.replace(files.rows)

    assert files.inputs().marks != inputs.marks
    inputs.check()


@pytest.mark.parametrize("name", ["weights", "rows", "stream"])
def test_a_file_that_changed_is_an_error_that_names_it(name: str, files: Files) -> None:
    inputs = files.inputs()
    path: Path = getattr(files, name)
    with path.open("a", encoding="utf-8") as file:
        file.write("more\n")

    with pytest.raises(RunError, match=r"was changed while training\. Put it back as it was") as caught:
        inputs.check()

    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["weights", "rows", "stream"])
def test_a_file_that_was_removed_is_an_error_that_names_it(name: str, files: Files) -> None:
    inputs = files.inputs()
    path: Path = getattr(files, name)
    path.unlink()

    with pytest.raises(RunError, match="was removed while training") as caught:
        inputs.check()

    assert caught.value.where == str(path)


def test_a_file_that_changed_within_its_size_is_an_error(files: Files) -> None:
    inputs = files.inputs()
    files.rows.write_text("ROWS.JSONL\n", encoding="utf-8")
    touch(files.rows)

    with pytest.raises(RunError, match=r"rows\.jsonl: was changed"):
        inputs.check()


def test_a_stream_whose_content_is_not_known_may_not_even_be_touched(files: Files) -> None:
    inputs = files.inputs()
    touch(files.stream)

    with pytest.raises(RunError, match=r"stream\.jsonl: was changed"):
        inputs.check()


def test_a_file_that_was_put_back_as_it_was_passes_again(files: Files) -> None:
    inputs = files.inputs()
    content = files.rows.read_bytes()
    files.rows.write_bytes(b"another\n")
    with pytest.raises(RunError, match="was changed"):
        inputs.check()

    files.rows.write_bytes(content)

    inputs.check()
    assert sha256_of_file(files.rows) == inputs.hashes[files.rows]


def test_a_run_without_files_has_none_to_watch() -> None:
    inputs = Inputs.of({}, None, {"train": {"dataset": "builtin:grammar"}, "validation": None})

    inputs.check()

    assert inputs.marks == {}
