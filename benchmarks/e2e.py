"""A comparison on real data: a base that has read English, fine-tuned to turn E2E's facts into sentences.

    python -m benchmarks.e2e prepare --e2e e2e.txt --text wikitext2.txt DIR
    peftkit train DIR/base.yaml --output DIR/base
    peftkit compare DIR/e2e.yaml --seeds 3 --generate --by bleu --output DIR/compare
    python -m benchmarks.e2e check DIR/compare

`prepare` takes rows `facts||sentence` and splits them by their facts, so that no facts of one part are in another:
sentences alone of the first part go to the base with the plain text, the second part is for fine-tuning, the third to
compare on. `check` computes the comparison's figures once more with nothing of peftkit: the losses from the saved
weights by Transformers and PEFT, one row at a time; BLEU by sacrebleu from greedy continuations that
`transformers.generate` writes one prompt at a time; means, standard errors and Welch's intervals by SciPy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BASE = """\
name: e2e-base
description: A small GPT-2 that has read English text and sentences about restaurants, and no facts.
method: full
base:
  init: {n_layer: 6, n_head: 4, n_embd: 256, vocab_size: 4096, n_positions: 256}
  dropout: 0.1
data:
  train: {path: base.txt}
  format: text
  max_length: 256
training:
  learning_rate: 1e-3
  per_device_train_batch_size: 16
  num_train_epochs: 4
  weight_decay: 0.1
  warmup_steps: 0.05
  lr_scheduler_type: cosine
  eval_strategy: "no"
  save_strategy: epoch
"""

TASK = """\
name: e2e
description: E2E's facts into sentences, on a small base.
method: lora
base: {model: base/model}
lora: {r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: auto}
data:
  train: {path: train.jsonl}
  validation: {path: validation.jsonl}
  format: completion
  template: "{prompt}\\n"
  max_length: 256
training:
  learning_rate: 2e-3
  per_device_train_batch_size: 16
  num_train_epochs: 1
  weight_decay: 0.01
  warmup_steps: 0.05
  eval_strategy: epoch
  save_strategy: epoch
generation: {max_new_tokens: 80}
"""

Row = tuple[str, str]


def split(rows: list[Row], held_out: int) -> tuple[list[Row], list[Row], list[Row]]:
    """The rows for the base, for fine-tuning and to compare on; those of the same facts are in the same part."""
    facts = sorted({row[0] for row in rows})
    random.Random(0).shuffle(facts)
    of_the_base = set(facts[held_out : held_out + len(facts) // 3])
    last = set(facts[:held_out])
    tuning = [row for row in rows if row[0] not in of_the_base and row[0] not in last]
    return [row for row in rows if row[0] in of_the_base], tuning, [row for row in rows if row[0] in last]


def prepare(e2e: Path, text: Path, folder: Path) -> None:
    """Write the two recipes and their data."""
    lines = (line.partition("||") for line in e2e.read_text(encoding="utf-8").splitlines() if "||" in line)
    first, tuning, last = split([(facts.strip(), sentence.strip()) for facts, _, sentence in lines], 60)
    folder.mkdir(parents=True, exist_ok=True)
    read = [*text.read_text(encoding="utf-8").splitlines(), *(sentence for _, sentence in first)]
    (folder / "base.txt").write_text("\n\n".join(line for line in read if line.strip()), encoding="utf-8")
    for name, rows in (("train", tuning), ("validation", last)):
        values = (json.dumps({"prompt": facts, "completion": sentence}) + "\n" for facts, sentence in rows)
        (folder / f"{name}.jsonl").write_text("".join(values), encoding="utf-8")
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    (folder / "e2e.yaml").write_text(TASK, encoding="utf-8")


def opened(run: Path, base: Path) -> Any:
    """A run's model by Transformers and PEFT alone; the method is read from what the run saved."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if (run / "model").is_dir():
        return AutoModelForCausalLM.from_pretrained(run / "model").eval()
    rounded = None
    if json.loads((run / "manifest.json").read_text())["method"] == "qlora":
        rounded = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=rounded)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it would compute in bf16, which training did not
    return PeftModel.from_pretrained(model, run / "adapter").eval()


def losses(model: Any, tokenizer: Any, rows: list[Row]) -> Iterator[tuple[float, int]]:
    """Of each row: the summed loss over the completion and its end, and how many tokens these are."""
    import torch

    for facts, sentence in rows:
        prompt = tokenizer(f"{facts}\n")["input_ids"]
        answer = [*tokenizer(sentence)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        yield loss.item(), len(answer)


def bleu(model: Any, tokenizer: Any, rows: list[Row], max_new_tokens: int) -> float:
    """Of what the model writes for each of the rows' facts, with all their sentences as references."""
    import sacrebleu
    import torch

    references: dict[str, list[str]] = {}
    for facts, sentence in rows:
        references.setdefault(facts, []).append(sentence)
    written = []
    for facts in references:
        prompt = torch.tensor([tokenizer(f"{facts}\n")["input_ids"]])
        tokens = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=max_new_tokens
        )
        written.append(tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    most = max(map(len, references.values()))
    padded = [[*each, *[None] * (most - len(each))] for each in references.values()]
    return float(sacrebleu.corpus_bleu(written, [list(column) for column in zip(*padded, strict=True)]).score)


def check(folder: Path) -> None:
    """Compute a comparison's figures again, and print both.

    Raises:
        SystemExit: they differ.
    """
    from scipy import stats
    from transformers import AutoTokenizer

    work = folder.parent
    base = work / "base" / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    values = [json.loads(line) for line in (work / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [(value["prompt"], value["completion"]) for value in values]
    comparison = json.loads((folder / "comparison.json").read_text())
    worst: dict[str, float] = {}

    def agree(what: str, told: float, found: float) -> None:
        worst[what] = max(worst.get(what, 0.0), abs(told - found) / max(abs(found), 1e-12))

    found: dict[str, list[float]] = {}
    for entry in comparison["entries"]:
        if entry["method"] is None:
            continue
        for number, name in enumerate(entry["runs"]):
            model = opened(folder / name, base)
            summed, counts = zip(*losses(model, tokenizer, rows), strict=True)
            loss, score = sum(summed) / sum(counts), bleu(model, tokenizer, rows, 80)
            told = {metric: entry["metrics"][metric]["values"][number] for metric in ("eval_loss", "bleu")}
            print(f"{name}: loss {told['eval_loss']:.6f} and {loss:.6f}; BLEU {told['bleu']:.3f} and {score:.3f}")
            agree("eval_loss", told["eval_loss"], loss)
            agree("bleu", told["bleu"], score)
            found.setdefault(entry["name"], []).append(score if comparison["by"] == "bleu" else loss)
    best = next(each for each in comparison["entries"] if (each["against_best"] or {}).get("verdict") == "best")
    for entry in comparison["entries"]:
        if entry["name"] not in found or entry is best:
            continue
        statistic, mine = entry["metrics"][comparison["by"]], found[entry["name"]]
        agree("mean", statistic["mean"], sum(mine) / len(mine))
        agree("standard error", statistic["standard_error"], float(stats.sem(mine)))
        interval = stats.ttest_ind(mine, found[best["name"]], equal_var=False).confidence_interval(0.95)
        agree("interval", entry["against_best"]["low"], float(interval.low))
        agree("interval", entry["against_best"]["high"], float(interval.high))
    for what, most in worst.items():
        print(f"{what}: differs by {most:.2e} at most")
    if max(worst.values()) > 1e-4:
        raise SystemExit("the table is not that of the run folders")


def main() -> None:
    """Prepare a comparison, or check one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("--e2e", type=Path, required=True)
    first.add_argument("--text", type=Path, required=True)
    first.add_argument("folder", type=Path)
    commands.add_parser("check").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.e2e, arguments.text, arguments.folder)
    else:
        check(arguments.folder)


if __name__ == "__main__":
    main()
