"""Real pretrained models through peftkit: trained on text and on conversations, merged, measured, and asked.

    python -m benchmarks.pretrained --text wikitext2.txt MODEL.gguf … [--steps 20] [--json FILE]

Each GGUF file, as the package indexes carry some, is opened by Transformers and copied into a plain model in float32.
On that, LoRA and LoRA on the base in 4 bits read the text, and LoRA learns conversations of the embedded task. Figures
are those of the runs' manifests and of the merges' receipts. Needs `pip install gguf`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftkit.data.grammar import task

CONVERSATIONS = 400
RECIPE: dict[str, Any] = {
    "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "auto"},
    "training": {
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 4,
        "warmup_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    },
}


def plain_model(gguf: Path, folder: Path) -> None:
    """Copy what a GGUF file holds into a model and a tokenizer in the Transformers format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del opened.config.quantization_config  # the weights are dequantised, but would not be saved
    model = AutoModelForCausalLM.from_config(opened.config)
    model.load_state_dict(opened.state_dict())
    model.generation_config = opened.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def write_conversations(path: Path) -> str:
    """Conversations of one turn; the first prompt."""
    rows = task("train")[:CONVERSATIONS]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            turns = [
                {"role": "user", "content": row["prompt"].strip()},
                {"role": "assistant", "content": row["completion"].strip()},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return str(rows[0]["prompt"]).strip()


def peftkit(*arguments: str) -> str:
    """What a command of peftkit prints."""
    done = subprocess.run([sys.executable, "-m", "peftkit", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"peftkit {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def measure(base: Path, method: str, data: dict[str, Any], steps: int, work: Path) -> dict[str, Any]:
    """Train and merge; the figures of both."""
    name = f"{base.name}-{method}-{data['format']}"
    recipe = {"name": name, "method": method, "base": {"model": str(base)}, "data": data, **RECIPE}
    recipe["training"] = {**RECIPE["training"], "max_steps": steps}
    (work / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    run, merged = work / name, work / f"{name}-merged"
    peftkit("train", str(work / f"{name}.yaml"), "--output", str(run))
    metrics = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    receipt = json.loads(peftkit("merge", str(run), str(merged), "--json"))
    figures = ("trainable_parameters", "tokens_per_second", "peak_memory_bytes", "base_perplexity", "perplexity")
    return {
        "model": base.name,
        "method": method,
        "data": data["format"],
        **{figure: metrics[figure] for figure in figures},
        "merge_error": receipt["proof"]["largest_difference"],
        "run": str(run),
        "merged": str(merged),
    }


def measure_model(base: Path, text: Path, steps: int, work: Path) -> list[dict[str, Any]]:
    """A model's three runs; of that on conversations also what the adapter and the merged model answer."""
    conversations = work / "conversations.jsonl"
    prompt = write_conversations(conversations)
    read = {"train": {"path": str(text), "limit": 2000}, "validation": 0.02, "format": "text", "max_length": 128}
    talk = {"train": {"path": str(conversations)}, "validation": 0.1, "format": "chat", "max_length": 128}
    found = [measure(base, method, read, steps, work) for method in ("lora", "qlora")]
    chat = measure(base, "lora", talk, steps, work)
    answers = [peftkit("generate", chat[which], "--prompt", prompt).strip() for which in ("run", "merged")]
    return [*found, {**chat, "prompt": prompt, "answer": answers[0], "same_by_the_merge": answers[0] == answers[1]}]


def row_of(found: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"| {found['model']} | {found['method']} | {found['data']} | {found['trainable_parameters']:,} "
        f"| {found['base_perplexity']:.2f} | {found['perplexity']:.2f} | {found['merge_error']:.1e} "
        f"| {found['tokens_per_second']:,.0f} | {found['peak_memory_bytes'] / 1e9:.2f} GB |"
    )


def main() -> None:
    """Print the table of all models, and what each answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", nargs="+", type=Path)
    parser.add_argument("--text", required=True, type=Path, help="a text file of a document a line, as WikiText's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for gguf in arguments.gguf:
            base = Path(name, gguf.stem)
            plain_model(gguf, base)
            results += measure_model(base, arguments.text.resolve(), arguments.steps, Path(name))
    print("| model | method | data | trained | perplexity before | after | merge error | tokens/s | peak memory |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    print("\n".join(map(row_of, results)))
    for found in results:
        if "answer" in found:
            same = "the same" if found["same_by_the_merge"] else "another"
            print(f"\n{found['model']}: {found['prompt']}\n→ {found['answer']} (merged: {same})")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
