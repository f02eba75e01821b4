"""A merged model computes what its adapter computes, and says so only after another process has shown it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.adapters.compare import check_adapter
from peftkit.adapters.files import Adapter, GivenBase
from peftkit.adapters.merge import MERGE_DTYPES, MergeReceipt, MergeSettings, merge
from peftkit.adapters.proof import Sample, compare, logits_of
from peftkit.adapters.target import find_held_base, open_adapter, put_adapter
from peftkit.errors import RunError, TargetError
from peftkit.recipe.hyperparameters import Quantization
from peftkit.recipe.loader import load_recipe
from peftkit.storage import read_json, sha256_of_file
from peftkit.training.run import run

MakeAdapter = Callable[..., Path]
ALONE = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
ids = torch.arange(100).reshape(2, 50)
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        save_file({"logits": model(ids).logits}, folder + "/logits.safetensors")
assert not {"peft", "bitsandbytes", "peftkit"} & set(sys.modules)
"""
IDS = [list(range(50)), list(range(50, 100))]
SAMPLE = Sample("random tokens", IDS, IDS)
QUANTIZATIONS: dict[str, Quantization | None] = {
    "fp32": None,
    "nf4": Quantization(bnb_4bit_use_double_quant=False),
    "nf4-double": Quantization(),
    "fp4": Quantization(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False),
    "int8": Quantization(load_in_4bit=False, load_in_8bit=True),
}
ALL_LINEAR = {
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
RANKS = {
    "gpt2": {"rank_pattern": {"h.1.attn.c_attn": 2}, "alpha_pattern": {"h.2.attn.c_attn": 5}},
    "llama": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
}
KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "default": lambda _: {},
    "all-linear": lambda base: {"target_modules": ALL_LINEAR[base]},
    "dora": lambda _: {"use_dora": True},
    "rslora": lambda _: {"use_rslora": True},
    "rank_pattern": lambda base: RANKS[base],
    "modules_to_save": lambda base: {"modules_to_save": ["ln_f" if base == "gpt2" else "norm", "lm_head"]},
}


def merge_one(adapter: Path, output: Path, given: GivenBase, **settings: Any) -> MergeReceipt:
    return merge([(adapter, 1.0)], output, MergeSettings(**settings), given)


def merge_error(adapter: Path, output: Path, given: GivenBase, sample: Sample = SAMPLE) -> float:
    """Merge, and compare here what the slower fresh process would."""
    merge_one(adapter, output, given, verify=False)
    merged = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    expected = logits_of(open_adapter(adapter, "cpu", given)[0], sample)
    return compare(logits_of(merged, sample), expected, sample).relative_error


def error_of(folder: Path, expected: list[torch.Tensor]) -> float:
    found = load_file(folder / "logits.safetensors")["logits"]
    return compare(found, expected, SAMPLE).relative_error


@pytest.mark.parametrize(
    ("base", "way"),
    [
        pytest.param(base, way, marks=pytest.mark.slow if base == "llama" and way in ("fp4", "nf4-double") else ())
        for base in ("gpt2", "llama")
        for way in QUANTIZATIONS
    ],
)
def test_every_kind_of_adapter_on_every_kind_of_base_is_merged_exactly(
    base: str, way: str, bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    given = GivenBase(str(bases[base]), QUANTIZATIONS[way])
    expected: dict[str, list[torch.Tensor]] = {}
    for kind, lora in KINDS.items():
        adapter = make_adapter(base, f"adapter-{kind}", **lora(base))
        merge_one(adapter, tmp_path / kind, given, verify=False)
        expected[kind] = logits_of(open_adapter(adapter, "cpu", given)[0], SAMPLE)

    command = [sys.executable, "-c", ALONE, *(str(tmp_path / kind) for kind in KINDS)]
    subprocess.run(command, check=True, capture_output=True)

    allowed = 0.1 if way == "int8" else 1e-5  # LLM.int8() rounds what it multiplies, which no weights can reproduce
    errors = {kind: error_of(tmp_path / kind, expected[kind]) for kind in KINDS}
    assert {kind: error for kind, error in errors.items() if not error < allowed} == {}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_trained_adapter_is_merged_and_proven_on_its_own_validation_data(
    method: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    receipt = merge([(runs[method] / "adapter", 1.0)], tmp_path / "merged")

    assert receipt.proof is not None
    assert receipt.proof.sample == "validation data"
    assert receipt.proof.relative_error < 1e-5
    assert receipt.proof.kl_divergence < 1e-8
    assert receipt.proof.same_next_token == 1
    assert receipt.proof.found_perplexity == pytest.approx(receipt.proof.expected_perplexity, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "qlora"])
def test_a_base_that_was_held_in_half_precision_is_merged_as_it_was_held(
    method: str, dtype: str, recipe_path: Path, tmp_path: Path
) -> None:
    changes = [f"base.dtype={dtype}", "training.max_steps=2"]
    run(load_recipe(recipe_path, method=method, overrides=changes, output=tmp_path / "run"))

    held = merge([(tmp_path / "run" / "adapter", 1.0)], tmp_path / "held")
    original = merge([(tmp_path / "run" / "adapter", 1.0)], tmp_path / "original", MergeSettings(onto="original"))

    assert held.proof is not None
    assert held.proof.relative_error < 1e-5
    assert original.tolerance is None
    assert original.proof is not None
    assert original.proof.relative_error > 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_within_its_threshold_and_half_the_size(
    dtype: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    receipt = merge([(runs["qlora"] / "adapter", 1.0)], tmp_path / "half", MergeSettings(dtype=dtype))

    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert read_json(tmp_path / "half" / "config.json")["dtype"] == dtype
    assert receipt.proof is not None
    assert 1e-5 < receipt.proof.relative_error < MERGE_DTYPES[dtype]


def test_a_merge_onto_the_original_base_promises_nothing_and_says_what_it_costs(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    receipt = merge([(runs["qlora"] / "adapter", 1.0)], tmp_path / "merged", MergeSettings(onto="original"))

    assert receipt.tolerance is None
    assert receipt.proof is not None
    assert receipt.proof.relative_error > 1e-3
    assert receipt.proof.kl_divergence > 0


def test_a_full_model_is_written_anew_and_proven(runs: dict[str, Path], tmp_path: Path) -> None:
    receipt = merge([(runs["full"] / "model", 1.0)], tmp_path / "same")
    half = merge([(runs["full"] / "model", 1.0)], tmp_path / "half", MergeSettings(dtype="bfloat16"))

    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-6
    assert half.proof is not None
    assert half.proof.relative_error < 5e-2


def test_several_adapters_are_merged_as_their_weighted_sum(
    bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    given = GivenBase(str(bases["gpt2"]))
    one = make_adapter("gpt2", "one", seed=1)
    other = make_adapter("gpt2", "other", seed=2, r=2, target_modules=["c_attn", "c_fc"])
    receipt = merge([(one, 0.7), (other, -0.2)], tmp_path / "merged", MergeSettings(verify=False), given)

    held = find_held_base(Adapter.read(one), given)
    both = put_adapter(held.load("cpu"), Adapter.read(one))
    both.load_adapter(str(other), "other")
    both.base_model.set_adapter(["default", "other"])
    for module in both.modules():
        for name, weight in (("default", 0.7), ("other", -0.2)):
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.scaling[name] *= weight
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)

    assert compare(logits_of(merged, SAMPLE), logits_of(both, SAMPLE), SAMPLE).relative_error < 1e-5
    assert [part["weight"] for part in receipt.adapters] == [0.7, -0.2]


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_are_merged(
    bias: str, bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter("gpt2", bias=bias)

    assert merge_error(adapter, tmp_path / "merged", GivenBase(str(bases["gpt2"]))) < 1e-5


def test_a_bias_of_the_adapter_itself_is_merged(
    bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    assert merge_error(make_adapter("gpt2", lora_bias=True), tmp_path / "merged", GivenBase(str(bases["gpt2"]))) < 1e-5


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        ({}, True),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["wte"]}, False),
        ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
    ],
    ids=["untouched", "head", "embedding", "both"],
)
def test_tied_weights_stay_tied_unless_one_of_them_was_trained_apart(
    lora: dict[str, Any], tied: bool, bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    assert merge_error(make_adapter("gpt2", **lora), tmp_path / "merged", GivenBase(str(bases["gpt2"]))) < 1e-5

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (merged.lm_head.weight is merged.transformer.wte.weight) is tied
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) is not tied


def test_an_embedding_and_a_head_of_their_own_can_be_adapted(
    bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter("llama", target_modules=["embed_tokens", "lm_head", "q_proj"])

    assert merge_error(adapter, tmp_path / "merged", GivenBase(str(bases["llama"]))) < 1e-5

    before = load_file(bases["llama"] / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {"model.embed_tokens.weight", "lm_head.weight"} < changed


def test_a_vocabulary_that_grew_is_carried_over(
    bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter("gpt2", words=1026)
    tokenizer = AutoTokenizer.from_pretrained(bases["gpt2"])
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(adapter)

    assert merge_error(adapter, tmp_path / "merged", GivenBase(str(bases["gpt2"]))) < 1e-5

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.get_input_embeddings().num_embeddings == 1026
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").convert_tokens_to_ids("<two>") == 1025


NEW = [1025, 1024]
OF_TOKENS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "rows": ("gpt2", None, {"trainable_token_indices": [60, 3]}),
    "new rows": ("gpt2", 1026, {"trainable_token_indices": NEW}),
    "some new rows": ("gpt2", 1028, {"trainable_token_indices": NEW}),
    "new rows of both": ("llama", 1026, {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}}),
    "new rows of the embedding": ("llama", 1026, {"trainable_token_indices": NEW}),
    "rows of the head": ("llama", None, {"trainable_token_indices": {"lm_head": [60, 3]}}),
    "both whole": ("llama", 1026, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "both whole and no longer tied": ("gpt2", 1026, {"modules_to_save": ["wte", "lm_head"]}),
    "the head whole": ("llama", 1026, {"modules_to_save": ["lm_head"]}),
    "fewer tokens": ("llama", 1000, {"modules_to_save": ["embed_tokens", "lm_head"]}),
}


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("kind", OF_TOKENS)
def test_what_peft_trained_of_an_embedding_is_opened_and_merged_exactly(
    kind: str, bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base, words, lora = OF_TOKENS[kind]
    given = GivenBase(str(bases[base]))
    adapter = make_adapter(base, words=words, **lora)
    ids = [[3, 60, 7, (words or 1024) - 1, 5], [words - 2 if words else 60, 9]]

    error = merge_error(adapter, tmp_path / "merged", given, Sample("random tokens", ids, ids))

    assert error < 1e-5
    assert [check.name for check in check_adapter(adapter, given) if check.passed is False] == []
    theirs = AutoModelForCausalLM.from_pretrained(bases[base], dtype=torch.float32)
    if words:
        theirs.resize_token_embeddings(words, mean_resizing=False)
    expected = PeftModel.from_pretrained(theirs, adapter).merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == (words or 1024)
    assert all(torch.allclose(expected[name], tensor, atol=1e-7) for name, tensor in merged.state_dict().items())


@pytest.mark.parametrize(
    ("base", "lora", "words"),
    [
        ("gpt2", {"words": 1028, "trainable_token_indices": [1025]}, r"has 1,026 tokens.*new rows of transformer\.wte"),
        ("llama", {"words": 1026, "trainable_token_indices": NEW}, r"new rows of lm_head are not all in it"),
        ("llama", {"words": 1026, "modules_to_save": ["embed_tokens"]}, r"new rows of lm_head are not all in it"),
        (
            "gpt2",
            {"trainable_token_indices": {"lm_head": [5]}},
            r"lm_head\.weight: has trained rows that transformer\.wte",
        ),
        (
            "gpt2",
            {"trainable_token_indices": {"wte": [3], "lm_head": [5]}},
            r"rows that transformer\.wte\.weight has not",
        ),
    ],
)
def test_rows_that_would_be_made_up_or_parted_are_refused(
    base: str, lora: dict[str, Any], words: str, bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tables=False, **lora)

    with pytest.raises(TargetError, match=words):
        merge_one(adapter, tmp_path / "merged", GivenBase(str(bases[base])), verify=False)

    assert not (tmp_path / "merged").exists()


def test_files_are_as_large_as_asked_and_load_as_one_model(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, shard_bytes in (("one", 10**9), ("many", 10**6)):
        settings = MergeSettings(shard_bytes=shard_bytes, verify=False)
        merge([(runs["lora"] / "adapter", 1.0)], tmp_path / name, settings)

    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 1.01 * 10**6 for file in files)
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_names_of_a_base_without_prefix_are_kept(
    bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """As OpenAI's own GPT-2 on the hub: no `transformer.` before the names, and a mask in each layer."""
    tensors = load_file(bases["gpt2"] / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    (tmp_path / "base").mkdir()
    for file in bases["gpt2"].iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    save_file(
        old | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}, tmp_path / "base" / "model.safetensors", {"format": "pt"}
    )

    assert (
        merge_error(
            make_adapter("gpt2", modules_to_save=["lm_head"]), tmp_path / "merged", GivenBase(str(tmp_path / "base"))
        )
        < 1e-5
    )

    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == {*old, "lm_head.weight"}


def test_what_belongs_beside_the_weights_is_there(runs: dict[str, Path], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        receipt = merge([(runs["qlora"] / "adapter", 1.0)], tmp_path / "merged")
    finally:
        os.umask(before)

    merged = tmp_path / "merged"
    assert {file.stat().st_mode & 0o777 for file in merged.iterdir()} == {0o640}
    assert read_json(merged / "config.json")["use_cache"] is True
    assert read_json(merged / "generation_config.json")["eos_token_id"] is not None
    assert AutoTokenizer.from_pretrained(merged)("a b").input_ids
    stored = read_json(merged / "merge.json")
    assert stored["proof"]["relative_error"] == receipt.proof.relative_error  # type: ignore[union-attr]
    assert stored["outputs"]["model.safetensors"] == sha256_of_file(merged / "model.safetensors")
    assert stored["base"]["model"] == "builtin:tiny-gpt2"
    assert stored["quantization"]["bnb_4bit_quant_type"] == "nf4"
    assert "adapter_model.safetensors" in stored["adapters"][0]["files"]
    files = read_json(merged / "manifest.json")["files"]
    assert {name: sha256_of_file(merged / name) for name in files} == {
        name: entry["sha256"] for name, entry in files.items()
    }
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert f"| relative error of the logits | {stored['proof']['relative_error']:.1e}, 1e-05 allowed |" in card


def test_a_merge_without_its_proof_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    receipt = merge([(runs["lora"] / "adapter", 1.0)], tmp_path / "merged", MergeSettings(verify=False))

    assert receipt.proof is None
    assert read_json(tmp_path / "merged" / "merge.json")["proof"] is None
    assert "no: merged with --no-verify" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


def test_a_merge_that_is_not_proven_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MERGE_DTYPES, "float32", 1e-12)

    with pytest.raises(RunError, match="1e-12 allowed"):
        merge([(runs["lora"] / "adapter", 1.0)], tmp_path / "merged")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["", "inner"])
def test_the_adapters_own_folder_is_no_place_for_the_model(place: str, runs: dict[str, Path]) -> None:
    adapter = runs["lora"] / "adapter"

    with pytest.raises(TargetError, match="applied a second time"):
        merge([(adapter, 1.0)], adapter / place)


def test_a_folder_in_use_is_left_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").touch()

    with pytest.raises(TargetError, match="not empty"):
        merge([(runs["lora"] / "adapter", 1.0)], tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_vocabulary_too_large_for_half_precision_is_an_error(
    bases: dict[str, Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter("gpt2")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 1e4 for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")

    with pytest.raises(RunError, match="not finite in float16"):
        merge_one(adapter, tmp_path / "merged", GivenBase(str(bases["gpt2"])), dtype="float16")

    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PEFT warns of a head that is trained apart from the embedding
@pytest.mark.parametrize(("base", "way"), [("llama", "fp32"), ("gpt2", "nf4-double")])
@pytest.mark.parametrize("kind", KINDS)
def test_training_of_every_kind_ends_in_a_proven_merge(
    base: str, kind: str, way: str, bases: dict[str, Path], recipe_path: Path, tmp_path: Path
) -> None:
    method = "lora" if way == "fp32" else "qlora"
    changes = [f"base.model={bases[base]}", f"lora={json.dumps({'r': 4, **KINDS[kind](base)})}", "training.max_steps=3"]
    file = load_recipe(recipe_path, method=method, overrides=changes, output=tmp_path / "run")
    run(file)

    receipt = merge([(tmp_path / "run" / "adapter", 1.0)], tmp_path / "merged")

    assert receipt.proof is not None
    assert receipt.proof.relative_error < 1e-5
