"""A sum of adapters loses nothing, and a compressed one loses what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.adapters.combine import check_addable, compress, made_from, products_of, sum_of
from peftkit.adapters.combine import write_adapter as write_combined
from peftkit.adapters.files import Adapter, Floats
from peftkit.errors import TargetError
from peftkit.models.methods.lora import Factors

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
        ({"base_model_name_or_path": "another"}, "stands on another base"),
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

    with pytest.raises(TargetError, match="held in another way"):
        check_addable(adapters)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    wide = Factors(np.ones((2, 7), np.float32), np.ones((5, 2), np.float32), 1.0)

    with pytest.raises(TargetError, match="different shapes"):
        sum_of([({"proj": factors(0, 2)}, 1.0), ({"proj": wide}, 1.0)])
