"""Tokens that a base does not have: their rows are trained by every method, saved, opened, merged and resumed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from peftkit.adapters.compare import check_adapter
from peftkit.adapters.files import Adapter
from peftkit.adapters.inspect import inspect_adapter
from peftkit.adapters.merge import MergeSettings
from peftkit.api import base_folder, evaluate, merge
from peftkit.errors import InputError
from peftkit.evaluation.generation import generate
from peftkit.recipe.loader import load_recipe
from peftkit.runs.folder import RunFolder
from peftkit.training.plan import estimate
from peftkit.training.prepare import prepare_run
from peftkit.training.run import RunOptions, run

TOKENS = ["<tool>", "</tool>"]
RECIPE = """\
name: tools
base: {model: BASE, add_tokens: ["<tool>", {token: "</tool>", special: true}]}
lora: {r: 4, lora_dropout: 0}
data: {train: {path: rows.jsonl}, validation: {path: rows.jsonl}, format: text, max_leaked: 1, max_length: 64}
training: {learning_rate: 1e-2, per_device_train_batch_size: 4, max_steps: 4, save_strategy: steps, save_steps: 2}
generation: {samples: 1, max_new_tokens: 4}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base whose head is tied, one whose is not, and one with more rows than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("bases")
    embedded = base_folder("builtin:tiny-gpt2")
    for name, rows in (("untied", 1024), ("padded", 1088)):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=rows, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(embedded).save_pretrained(folder / name)
    return {"tied": embedded, "untied": folder / "untied", "padded": folder / "padded"}


def recipe_for(folder: Path, base: Path) -> Path:
    rows = [{"text": f"Call <tool>add {number}</tool> now."} for number in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "tools.yaml"
    path.write_text(RECIPE.replace("BASE", str(base)), encoding="utf-8")
    return path


def opened(folder: Path, base: Path) -> Any:
    """What plain Transformers and PEFT open."""
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = len(AutoTokenizer.from_pretrained(folder))
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(model, folder).eval()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def new_rows(folder: Path) -> torch.Tensor:
    """The rows of the new tokens in what a run ships, [2, width]."""
    table = next(tensor for key, tensor in tensors(folder).items() if re.search(r"(wte|embed_tokens)\.", key))
    return table if len(table) == 2 else table[1024:1026]


@pytest.fixture(scope="module")
def trained(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], RunFolder]:
    """Gives a finished run on a base by a method, made once."""

    @cache
    def train(name: str, method: str) -> RunFolder:
        place = tmp_path_factory.mktemp(f"{name}-{method}")
        return run(load_recipe(recipe_for(place, bases[name]), method=method, output=place / "run"))[0]

    return train


def case(name: str, method: str, *, slow: bool = False) -> Any:
    return pytest.param(name, method, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        case("tied", "full", slow=True), case("tied", "lora"), case("untied", "lora"), case("padded", "lora"),
        case("untied", "qlora"), case("tied", "qlora", slow=True), case("untied", "full", slow=True),
    ],
)  # fmt: skip
def test_a_row_for_each_new_token_is_trained_as_planned(
    trained: Callable[[str, str], RunFolder], name: str, method: str
) -> None:
    folder = trained(name, method)
    output = folder.model if method == "full" else folder.adapter

    planned = estimate(prepare_run(load_recipe(folder.recipe)))

    tokenizer, rows = AutoTokenizer.from_pretrained(output), new_rows(output)
    assert folder.read().metrics.trainable_parameters == planned.trainable_parameters
    assert [tokenizer(f"a{token}b").input_ids[1] for token in TOKENS] == [1024, 1025]
    assert tokenizer.decode([1024, 1025], skip_special_tokens=True) == "<tool>"
    assert not torch.allclose(rows[0], rows[1])  # which began as the same mean


@pytest.mark.parametrize(
    ("name", "method"),
    [
        case("tied", "lora"), case("untied", "qlora"), case("untied", "lora", slow=True),
        case("tied", "qlora", slow=True), case("tied", "full", slow=True), case("untied", "full", slow=True),
    ],
)  # fmt: skip
def test_a_run_that_is_resumed_ends_in_the_same_rows(
    trained: Callable[[str, str], RunFolder], tmp_path: Path, name: str, method: str
) -> None:
    folder = trained(name, method)
    again = RunFolder(tmp_path / "run")
    shutil.copytree(folder.path, again.path)
    for output in (again.adapter, again.model):
        again.discard_output(output)
    shutil.rmtree(again.checkpoints / "step-4")
    manifest = again.read()
    manifest.status = "running"
    again.write(manifest)

    run(load_recipe(folder.recipe, output=again.path), RunOptions(resume=True))

    first, second = (tensors(each.model if method == "full" else each.adapter) for each in (folder, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize(("name", "tables", "rows"), [("tied", 1, 1026), ("untied", 2, 1026), ("padded", 2, 1088)])
def test_an_adapter_holds_new_rows_alone_and_is_merged_as_peft_merges_it(
    bases: dict[str, Path], trained: Callable[[str, str], RunFolder], tmp_path: Path, name: str, tables: int, rows: int
) -> None:
    adapter, output = trained(name, "lora").adapter, tmp_path / "merged"

    receipt = merge(adapter, output, settings=MergeSettings(verify=name == "tied"))

    held, merged = Adapter.read(adapter), AutoModelForCausalLM.from_pretrained(output)
    theirs = opened(adapter, bases[name]).merge_and_unload().state_dict()
    assert [each.ids for each in held.rows.values()] == [[1024, 1025]] * tables
    assert held.whole == {}
    assert [check for check in check_adapter(adapter) if not check.passed] == []
    assert [each.name for each in inspect_adapter(adapter).whole] == [f"rows of {key}" for key in held.rows]
    assert merged.config.vocab_size == rows
    assert merged.state_dict().keys() == theirs.keys()
    assert all(torch.allclose(theirs[key], tensor, atol=1e-7) for key, tensor in merged.state_dict().items())
    assert held.record is not None
    assert receipt.base["sha256"] == held.record.base["sha256"]
    assert generate(str(adapter), ["Call <tool>"]) == generate(str(output), ["Call <tool>"])
    assert evaluate(adapter).eval_loss == pytest.approx(evaluate(output).eval_loss, rel=1e-5)


def test_new_tokens_are_on_the_card_whose_snippet_makes_room_for_them(
    trained: Callable[[str, str], RunFolder], bases: dict[str, Path], tmp_path: Path
) -> None:
    changes = ["base.model=builtin:tiny-gpt2", "training.max_steps=1", "training.save_strategy='no'"]
    file = load_recipe(recipe_for(tmp_path, bases["tied"]), overrides=changes, output=tmp_path / "run")
    embedded, local = run(file)[0].adapter, trained("untied", "lora").adapter

    for adapter in (embedded, local):
        card = (adapter / "README.md").read_text(encoding="utf-8")
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        names: dict[str, Any] = {}
        exec(snippet.replace("FOLDER", str(adapter)), names)

        table = names["model"].get_input_embeddings().weight
        assert torch.equal(table[1024:1026], new_rows(adapter))
        assert '`base.add_tokens` | [<tool>, {"token": "</tool>", "special": true}]' in card


def test_a_token_that_only_the_tokenizer_has_gets_a_row(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["tied"], base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": [*TOKENS, "<never>"]})
    tokenizer.save_pretrained(base)
    changes = ["base.add_tokens=['<tool>']", "training.max_steps=1"]
    path = recipe_for(tmp_path, base)

    with pytest.raises(InputError, match=r"has the token </tool>, number 1,025\. Name the token in base\.add_tokens"):
        prepare_run(load_recipe(path, overrides=["base.add_tokens=[]"]))
    folder, _ = run(load_recipe(path, overrides=changes, output=tmp_path / "run"))

    (rows,) = Adapter.read(folder.adapter).rows.values()
    assert rows.ids == [1024, 1025, 1026]
    assert AutoTokenizer.from_pretrained(folder.adapter).decode([1024], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["base.add_tokens=[a, '', a]"], r"add_tokens\.1: is empty.*\n.*add_tokens\.2: 'a' is there twice"),
        (["base.add_tokens=[<tool>, to]"], r"add_tokens\.1: the base has to already, as token \d+, with a row"),
        (["base.add_tokens=[3]"], r"add_tokens\.0: is 3, but must be a mapping of fields or text"),
        (["lora.modules_to_save=[lm_head]"], r"trains lm_head as a whole, and base\.add_tokens rows of the other"),
        (["lora.target_modules=[q_proj, lm_head]"], r"single rows of lm_head, which has an adapter\."),
        (
            ["method=ia3"],
            r"IA3 cannot train single rows of model\.embed_tokens\. Train both whole with ia3",
        ),
        (["base.model=null", "base.init={n_layer: 1}", "method=full"], r"a base made from init has none"),
    ],
)
def test_tokens_that_cannot_be_added_are_an_error_at_their_line(
    bases: dict[str, Path], tmp_path: Path, changes: list[str], words: str
) -> None:
    path = recipe_for(tmp_path, bases["untied"])

    with pytest.raises(InputError, match=words):
        prepare_run(load_recipe(path, overrides=changes, output=tmp_path / "run"))

    assert not (tmp_path / "run").exists()


def test_a_head_with_a_bias_is_trained_whole_or_not_at_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    PhiForCausalLM(config).save_pretrained(tmp_path / "phi")
    AutoTokenizer.from_pretrained(base_folder("builtin:tiny-gpt2")).save_pretrained(tmp_path / "phi")
    path = recipe_for(tmp_path, tmp_path / "phi")
    whole = ["lora.modules_to_save=[embed_tokens, lm_head]", "training.max_steps=1"]

    with pytest.raises(InputError, match=r"PEFT would lose the bias of lm_head"):
        prepare_run(load_recipe(path))
    adapter = run(load_recipe(path, overrides=whole, output=tmp_path / "run"))[0].adapter
    merge(adapter, tmp_path / "merged", settings=MergeSettings(verify=False))

    theirs = opened(adapter, tmp_path / "phi").merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())
    assert ours["lm_head.bias"].shape == (1026,)
