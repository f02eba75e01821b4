"""What peftkit ships opens with the libraries alone: a merged model in Transformers, an adapter in PEFT."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peftkit as package
from peftkit.adapters.merge import MergeSettings, merge

MERGED = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer(prompt, return_tensors="pt")
written = tokenizer.decode(model.generate(**ids, max_new_tokens=8, do_sample=False)[0])
(piped,) = pipeline("text-generation", folder)(prompt, max_new_tokens=8, do_sample=False)
assert model.config.use_cache and model.config.architectures == ["GPT2LMHeadModel"]
assert piped["generated_text"].strip() == written.replace("<|endoftext|>", "").strip(), (piped, written)
assert not {"peft", "bitsandbytes", "peftkit"} & set(sys.modules)
"""
ADAPTER = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, folder = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
ids = torch.arange(20)[None]
with torch.no_grad():
    before = model(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(model, folder).eval()
    after = adapted(input_ids=ids).logits
assert not torch.allclose(before, after)
assert len(adapted.peft_config["default"].target_modules) == 4
assert "peftkit" not in sys.modules
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], capture_output=True, text=True)


def test_a_merged_model_opens_and_writes_in_transformers_and_its_pipeline(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    merge([(runs["qlora"] / "adapter", 1.0)], tmp_path / "merged", MergeSettings(verify=False))

    done = run(MERGED, str(tmp_path / "merged"), "The inn by the bridge")

    assert done.returncode == 0, done.stderr


def test_an_adapter_opens_in_peft_and_changes_what_its_base_says(runs: dict[str, Path]) -> None:
    base = Path(package.__file__).parent / "assets" / "tiny-gpt2"

    done = run(ADAPTER, str(base), str(runs["qlora"] / "adapter"))

    assert done.returncode == 0, done.stderr
