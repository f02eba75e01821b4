"""What is trained on in a conversation is what generation and evaluation begin from, and where they stop."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from peftkit.adapters.target import find_target, open_target
from peftkit.api import base_folder, evaluate, merge
from peftkit.data import corpus
from peftkit.errors import InputError
from peftkit.evaluation.evaluate import Measures
from peftkit.evaluation.generation import generate
from peftkit.recipe.loader import load_recipe
from peftkit.recipe.schema import Generation
from peftkit.storage import folder_hashes
from peftkit.training.run import RunOptions, run

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPACED = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
DATED = "{{ 'Now it is ' + strftime_now('%H:%M:%S') + '. ' }}" + CHATML
SAID = [(f"Dish {number} was {what}.", word) for number in range(4) for what, word in (("good", "yes"), ("bad", "no"))]

RECIPE = """\
name: chat
method: full
base: {model: BASE}
data: {train: {path: rows.jsonl}, validation: {path: rows.jsonl}, max_leaked: 1, max_length: 128}
training: {learning_rate: 1e-3, per_device_train_batch_size: 8, max_steps: 120, save_strategy: "no", eval_strategy: "no"}
generation: {samples: 0, max_new_tokens: 8}
"""  # noqa: E501


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose turns end in a token that is not its end of text, as those of Qwen."""
    folder = tmp_path_factory.mktemp("bases") / "chatml"
    tokenizer = AutoTokenizer.from_pretrained(base_folder("builtin:tiny-gpt2"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(base_folder("builtin:tiny-gpt2"))
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_for(folder: Path, base: str | Path) -> Path:
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in SAID]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "chat.yaml"
    path.write_text(RECIPE.replace("BASE", str(base)), encoding="utf-8")
    return path


def exact_match(folder: Path) -> Any:
    text = evaluate(folder, measures=Measures(generation=Generation(max_new_tokens=8))).text
    assert text is not None
    return text.exact_match


def by_transformers(model: Any, folder: Path, prompt: str, config: GenerationConfig) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**given, generation_config=config, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


def test_generation_stops_where_a_turn_ends_here_and_in_plain_transformers(chatml: Path, tmp_path: Path) -> None:
    run(load_recipe(recipe_for(tmp_path, chatml), output=tmp_path / "run"))

    model = tmp_path / "run" / "model"
    config = GenerationConfig.from_pretrained(model)
    plain = by_transformers(AutoModelForCausalLM.from_pretrained(model), model, SAID[0][0], config)
    assert exact_match(tmp_path / "run") == 1
    assert generate(str(tmp_path / "run"), [SAID[0][0]]) == [plain] == ["yes"]
    assert set(config.eos_token_id) == {0, AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("<|im_end|>")}


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_an_adapter_and_what_is_merged_of_it_say_where_a_turn_ends(chatml: Path, tmp_path: Path) -> None:
    changes = ["lora.modules_to_save=[wte, lm_head]", "training.learning_rate=3e-3"]
    run(load_recipe(recipe_for(tmp_path, chatml), method="lora", overrides=changes, output=tmp_path / "run"))
    merge(tmp_path / "run", tmp_path / "merged")

    adapter, merged = tmp_path / "run" / "adapter", tmp_path / "merged"
    configs = [GenerationConfig.from_pretrained(folder) for folder in (adapter, merged)]
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chatml), adapter)
    assert configs[0].eos_token_id == configs[1].eos_token_id == [1025, 0]
    assert [
        by_transformers(opened, adapter, SAID[1][0], configs[0]),
        by_transformers(AutoModelForCausalLM.from_pretrained(merged), merged, SAID[1][0], configs[1]),
        *generate(str(adapter), [SAID[1][0]]),
    ] == ["no"] * 3


def test_an_answer_after_a_prompt_that_ends_in_a_space_is_learnt_and_written(tmp_path: Path) -> None:
    changes = [f"data.template={json.dumps(SPACED)}"]
    run(load_recipe(recipe_for(tmp_path, "builtin:tiny-gpt2"), overrides=changes, output=tmp_path / "run"))

    assert exact_match(tmp_path / "run") == 1
    assert generate(str(tmp_path / "run"), [SAID[0][0]]) == [" yes"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The time of each later look at the clock."""
    times = [datetime(2026, 11, 27, 20, second // 60, second % 60) for second in range(100)]
    monkeypatch.setattr("peftkit.training.prepare.time", lambda: times.pop(0).timestamp())
    return times


def test_a_template_that_writes_the_time_is_given_the_runs_own_when_it_is_resumed_or_repeated(
    clock: list[datetime], chatml: Path, tmp_path: Path
) -> None:
    path = recipe_for(tmp_path, chatml)
    changes = [f"data.template={json.dumps(DATED)}", "training.max_steps=2", "training.save_strategy=steps"]
    changes += ["training.save_steps=1"]
    begun = clock[0]

    folder, _ = run(load_recipe(path, overrides=changes, output=tmp_path / "run"))
    whole = folder_hashes(folder.model)
    recorded = load_recipe(folder.recipe)
    run(load_recipe(folder.recipe, output=tmp_path / "again"))
    folder.discard_output(folder.model)
    manifest = folder.read()
    manifest.status = "running"
    folder.write(manifest)
    run(load_recipe(path, overrides=changes, output=tmp_path / "run"), RunOptions(resume=True))

    assert recorded.recipe.data.time == begun
    assert folder_hashes(folder.model)["model.safetensors"] == whole["model.safetensors"]
    assert folder_hashes(tmp_path / "again" / "model")["model.safetensors"] == whole["model.safetensors"]
    assert corpus.writing_of(recorded.recipe.data).time == begun
    assert open_target(find_target(str(folder.path)), "cpu").target.recipe is not None


def test_a_token_that_the_embedding_has_no_row_for_is_an_error_before_training(chatml: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("builtin:tiny-gpt2"), base)
    AutoTokenizer.from_pretrained(chatml).save_pretrained(base)

    with pytest.raises(InputError, match=r"1,024 rows, .* <\|im_end\|>, number 1,025.*base\.add_tokens"):
        run(load_recipe(recipe_for(tmp_path, base), output=tmp_path / "run"))

    assert not (tmp_path / "run").exists()
