"""A sum of adapters loses nothing, and a compressed one loses what it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftkit.adapters.combine import (
    check_addable,
    combine_adapters,
    compress,
    made_from,
    products_of,
    shrink_adapter,
    sum_of,
)
from peftkit.adapters.combine import write_adapter as write_combined
from peftkit.adapters.compare import diff_adapters
from peftkit.adapters.files import AS_RECORDED, Adapter, Floats, GivenBase
from peftkit.adapters.inspect import inspect_adapter
from peftkit.adapters.proof import Sample, compare, logits_of
from peftkit.adapters.target import open_adapter
from peftkit.errors import TargetError
from peftkit.models.methods.lora import Factors
from peftkit.recipe.loader import load_recipe
from peftkit.training.run import run

WriteAdapter = Callable[..., Path]
NOTHING = np.zeros((5, 6), np.float32)
WEIGHTS = st.floats(-2, 2, width=32)


def factors(seed: int, rank: int, scaling: float = 1.5) -> Factors:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, 6)).astype(np.float32), rng.normal(size=(5, rank)).astype(np.float32)
    return Factors(a, b, scaling)


def update(each: Factors) -> Floats:
    return each.adapted(NOTHING)


@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4), ranks=st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_a_sum_is_the_sum_of_the_updates(weights: list[float], ranks: list[int]) -> None:
    parts = [({"proj": factors(seed, ranks[seed])}, weight) for seed, weight in enumerate(weights)]

    total = sum_of(parts)["proj"]

    wanted = sum(weight * update(each["proj"]) for each, weight in parts)
    assert total.rank == sum(ranks[: len(weights)])
    assert np.allclose(update(total), wanted, atol=1e-4)


def test_modules_that_only_one_has_are_kept() -> None:
    total = sum_of([({"up": factors(0, 2)}, 1.0), ({"down": factors(1, 3)}, 0.5)])

    assert {name: each.rank for name, each in total.items()} == {"up": 2, "down": 3}
    assert np.allclose(update(total["down"]), 0.5 * update(factors(1, 3)), atol=1e-5)


@given(seed=st.integers(0, 1000), rank=st.integers(1, 5))
def test_a_compressed_update_is_off_by_what_is_said(seed: int, rank: int) -> None:
    given_update = factors(seed, 4)

    smaller = compress({"proj": given_update}, rank)

    lost = np.linalg.norm(update(given_update) - update(smaller.factors["proj"])) / np.linalg.norm(update(given_update))
    assert smaller.factors["proj"].rank <= rank
    assert smaller.error == pytest.approx(lost, abs=1e-5)
    assert smaller.errors == {"proj": smaller.error}


def test_compressing_to_the_true_rank_loses_nothing() -> None:
    same = factors(0, 2)
    doubled = sum_of([({"proj": same}, 1.0), ({"proj": same}, 1.0)])

    smaller = compress(doubled, 2)

    assert doubled["proj"].rank == 4
    assert smaller.error < 1e-6
    assert np.allclose(update(smaller.factors["proj"]), 2 * update(same), atol=1e-4)


def test_what_is_written_is_read_again_with_every_modules_own_rank(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    like = Adapter.read(write_adapter(use_rslora=True))
    made = {"h.1.proj": factors(0, 2), "h.11.proj": factors(1, 3), "h.0.proj": factors(2, 2)}
    (tmp_path / "made").mkdir()

    written = write_combined(tmp_path / "made", like, sum_of([(made, 1.0)]), [])

    found = products_of(written)
    assert written.config["rank_pattern"] == {"h.11.proj": 3}
    assert {name: each.scaling for name, each in found.items()} == dict.fromkeys(made, 1.0)
    for name, each in made.items():
        assert np.allclose(update(found[name]), update(each), atol=1e-5)


def test_the_record_of_a_sum_names_its_parts(runs: dict[str, Path], tmp_path: Path) -> None:
    adapter = Adapter.read(runs["lora"] / "adapter")
    total = sum_of([(products_of(adapter), 0.5), (products_of(adapter), 0.25)])

    written = write_combined(tmp_path, adapter, total, made_from([adapter, adapter], [0.5, 0.25]))

    assert written.record is not None
    assert written.record.made_from is not None
    assert [part["weight"] for part in written.record.made_from] == [0.5, 0.25]
    assert written.record.tensors == {name: tensor.sha256 for name, tensor in written.tensors.items()}
    assert written.record.adapter_config == written.config
    assert written.record.recipe.lora.r == 8
    assert written.record.metrics == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensors": {"base_model.model.h.0.proj.lora_magnitude_vector": np.ones(5, np.float32)}}, "DoRA's magnitudes"),
        (
            {"tensors": {"base_model.model.head.weight": np.ones(5, np.float32)}},
            r"head\.weight, which was trained whole",
        ),
        ({"tensors": {"base_model.model.h.0.proj.lora_B.bias": np.ones(5, np.float32)}}, "biases of its own"),
        ({"base_model_name_or_path": "another"}, "was trained on another base"),
    ],
)
def test_adapters_that_are_no_sums_of_products_cannot_be_added(
    change: dict[str, object], words: str, write_adapter: WriteAdapter
) -> None:
    one, other = Adapter.read(write_adapter("one")), Adapter.read(write_adapter("other", **change))

    with pytest.raises(TargetError, match=words):
        check_addable([one, other])


def test_adapters_on_a_base_that_was_held_in_another_way_cannot_be_added(runs: dict[str, Path]) -> None:
    adapters = [Adapter.read(runs[method] / "adapter") for method in ("lora", "qlora")]

    with pytest.raises(TargetError, match="quantised in another way"):
        check_addable(adapters)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    wide = Factors(np.ones((2, 7), np.float32), np.ones((5, 2), np.float32), 1.0)

    with pytest.raises(TargetError, match="different shapes"):
        sum_of([({"proj": factors(0, 2)}, 1.0), ({"proj": wide}, 1.0)])


@pytest.fixture(scope="module")
def pair(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters on one base; the second has another rank and other targets."""
    second = tmp_path_factory.mktemp("second") / "run"
    changes = ["lora.r=2", "lora.target_modules=[c_attn, c_fc]", "training.seed=7", "training.max_steps=4"]
    run(load_recipe(runs["lora"].parent / "small.yaml", overrides=changes, output=second))
    return [runs["lora"] / "adapter", second / "adapter"]


def test_updates_are_measured_against_the_bases_weights(runs: dict[str, Path]) -> None:
    report = inspect_adapter(runs["lora"] / "adapter")
    model, _ = open_adapter(runs["lora"] / "adapter", "cpu")
    layer = model.base_model.model.transformer.h[2].attn.c_attn

    update = report.modules[2]

    relative = float(layer.get_delta_weight("default").norm() / layer.base_layer.weight.norm())
    assert (report.base, report.method, report.parameters) == ("builtin:tiny-gpt2", "lora", 8192)
    assert (update.layer, update.target, update.rank) == (2, "attn.c_attn", 4)
    assert update.relative_norm == pytest.approx(relative, rel=1e-4)
    assert report.untouched == []
    assert report.base_at_hand


def test_what_was_trained_whole_is_measured_too(recipe_path: Path, tmp_path: Path) -> None:
    changes = ["lora.modules_to_save=[ln_f]", "lora.use_dora=true", "training.max_steps=3"]
    run(load_recipe(recipe_path, overrides=changes, output=tmp_path / "run"))

    report = inspect_adapter(tmp_path / "run" / "adapter")

    assert report.use_dora
    assert {whole.name for whole in report.whole} == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert all(whole.relative_norm is not None and whole.relative_norm > 0 for whole in report.whole)


def test_without_its_base_an_adapter_can_still_be_looked_into(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(runs["lora"] / "adapter", tmp_path / "adapter"))
    (folder / "peftkit.json").unlink()

    report = inspect_adapter(folder)

    assert not report.base_at_hand
    assert [module.relative_norm for module in report.modules] == [None] * 4
    assert "--base" in capsys.readouterr().err
    assert inspect_adapter(folder, GivenBase("builtin:tiny-gpt2")).modules[0].relative_norm is not None


def test_two_adapters_are_compared_in_settings_directions_and_words(pair: list[Path]) -> None:
    found = diff_adapters(pair[0], pair[1])

    fields = {field.field: (field.first, field.second) for field in found.fields}
    assert fields["lora.r"] == (4, 2)
    assert fields["training.seed"] == (42, 7)
    assert [module.target for module in found.modules] == ["attn.c_attn"] * 4
    assert all(module.cosine is not None and abs(module.cosine) < 1 for module in found.modules)
    assert (found.only_first, len(found.only_second)) == ([], 4)
    assert found.logits.relative_error > 0
    assert found.logits.sample == "validation data"


def test_an_adapter_does_not_differ_from_itself(pair: list[Path]) -> None:
    found = diff_adapters(pair[0], pair[0])

    assert found.fields == []
    assert found.logits.relative_error == 0
    assert all(module.cosine == pytest.approx(1, abs=1e-5) for module in found.modules)


def test_a_sum_says_what_the_sum_of_the_updates_says(pair: list[Path], tmp_path: Path) -> None:
    made = combine_adapters([(pair[0], 0.7), (pair[1], 0.3)], tmp_path / "sum")

    model, _ = open_adapter(pair[0], "cpu")
    model.load_adapter(str(pair[1]), "second")
    model.add_weighted_adapter(["default", "second"], [0.7, 0.3], "both", combination_type="cat")
    model.set_adapter("both")
    sample = Sample.read(pair[0], 1024)
    combined, _ = open_adapter(tmp_path / "sum", "cpu")
    assert compare(logits_of(combined, sample), logits_of(model, sample), sample).relative_error < 1e-5
    assert (made.ranks, made.error) == ([2, 6], None)
    assert Sample.read(tmp_path / "sum", 1024) == sample
    card = (tmp_path / "sum" / "README.md").read_text(encoding="utf-8")
    assert "| made from | 0.7 x lora, 0.3 x run |" in card


def test_a_compressed_sum_says_how_far_it_is_off(pair: list[Path], tmp_path: Path) -> None:
    made = combine_adapters([(pair[0], 1.0), (pair[1], 1.0)], tmp_path / "sum", rank=3)

    exact = products_of(Adapter.read(pair[0]))["transformer.h.0.attn.c_attn"]
    assert exact.rank == 4
    assert made.error is not None
    assert 0 < made.error < 1
    assert made.worst_error is not None
    assert made.worst_error >= made.error
    assert max(made.ranks) == 3


def test_shrinking_states_the_error_and_the_perplexity(pair: list[Path], tmp_path: Path) -> None:
    errors = []
    for rank in (3, 1):
        made = shrink_adapter(pair[0], tmp_path / str(rank), rank)
        assert made.ranks == [rank]
        assert made.error is not None
        assert made.logits is not None
        assert made.logits.found_perplexity is not None
        errors.append((made.error, made.logits.relative_error))
    assert errors[0] < errors[1]
    assert Adapter.read(tmp_path / "1").bytes < Adapter.read(pair[0]).bytes / 3


def test_shrinking_dora_keeps_its_magnitudes(recipe_path: Path, tmp_path: Path) -> None:
    run(load_recipe(recipe_path, overrides=["lora.use_dora=true", "training.max_steps=3"], output=tmp_path / "run"))

    made = shrink_adapter(tmp_path / "run" / "adapter", tmp_path / "small", 3)

    before, after = (products_of(Adapter.read(tmp_path / name)) for name in ("run/adapter", "small"))
    for name, factors in before.items():
        assert torch.equal(torch.from_numpy(factors.magnitude), torch.from_numpy(after[name].magnitude))
    assert made.logits is not None
    assert made.logits.relative_error < 0.5


@pytest.mark.parametrize("rank", [4, 9])
def test_a_rank_that_is_not_lower_is_an_error(rank: int, pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Choose one below 4"):
        shrink_adapter(pair[0], tmp_path / "small", rank)


def test_a_place_in_use_is_left_alone(pair: list[Path]) -> None:
    before = sorted(pair[1].iterdir())

    with pytest.raises(Exception, match="exists already"):
        combine_adapters([(pair[0], 1.0)], pair[1])

    assert sorted(pair[1].iterdir()) == before


def test_a_base_given_for_a_recorded_adapter_is_checked(pair: list[Path], tmp_path: Path) -> None:
    assert GivenBase() == AS_RECORDED
    with pytest.raises(TargetError, match="cannot be opened"):
        diff_adapters(pair[0], pair[1], GivenBase(str(tmp_path)))
