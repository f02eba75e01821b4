"""Every way to get a recipe wrong: exit status 2, and one line that says file, line, field and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.cli.app import main

GOOD = """\
name: broken
method: lora
base:
  model: builtin:tiny-gpt2
lora:
  r: 4
data:
  train: {path: rows.txt}
  validation: {path: rows.txt}
  max_length: 32
training:
  learning_rate: 1e-3
  eval_strategy: epoch
"""
# what is replaced, by what, the line, the field, and words of the message and its remedy
BROKEN = {
    "typo at the top": ("method: lora", "metod: lora", 2, "metod", "Did you mean method?"),
    "typo in base": ("model: builtin", "modle: builtin", 4, "base.modle", "Did you mean model?"),
    "typo in lora": ("r: 4", "lora_alhpa: 4", 6, "lora.lora_alhpa", "Did you mean lora_alpha?"),
    "typo in data": ("max_length: 32", "max_lenght: 32", 10, "data.max_lenght", "Did you mean max_length?"),
    "typo in a source": ("train: {path:", "train: {pth:", 8, "data.train.pth", "Did you mean path?"),
    "typo in training": ("learning_rate:", "learning_rat:", 12, "training.learning_rat", "Did you mean learning_rate?"),
    "duplicate key": ("r: 4", "r: 4\n  r: 8", 7, "lora.r", "It is on line 6 already"),
    "text for a number": ("1e-3", "fast", 12, "training.learning_rate", "must be a number"),
    "a quoted number": ("learning_rate: 1e-3", "learning_rate: '1e-3'", 12, "training.learning_rate", "without quotes"),
    "a list for a section": ("lora:\n  r: 4", "lora: [4]", 5, "lora", "must be a mapping of fields"),
    "an adapter that is no product": ("r: 4", "use_qalora: true", 6, "lora.use_qalora", "more than a product"),
    "an adapter that changes its base": (
        "r: 4", "init_lora_weights: pissa", 6, "lora.init_lora_weights", "Use true, gaussian"),
    "part of a number": ("r: 4", "r: 4.5", 6, "lora.r", "must be a whole number"),
    "a best that is not measured": (
        "eval_strategy: epoch", "metric_for_best_model: accuracy", 13, "training.metric_for_best_model",
        "Use loss or perplexity"),
    "a best without evaluations": (
        "eval_strategy: epoch", "save_strategy: 'no'\n  load_best_model_at_end: true", 14,
        "training.load_best_model_at_end", "Set both to steps, or both to epoch"),
    "removed: evaluation_strategy": (
        "eval_strategy:", "evaluation_strategy:", 13, "training.evaluation_strategy", "Use eval_strategy."),
    "removed: warmup_ratio": (
        "eval_strategy: epoch", "warmup_ratio: 0.1", 13, "training.warmup_ratio", "Use warmup_steps"),
    "removed: no_cuda": ("eval_strategy: epoch", "no_cuda: true", 13, "training.no_cuda", "finds the GPU"),
    "owned: fp16": ("eval_strategy: epoch", "fp16: true", 13, "training.fp16", "Set precision"),
    "missing data file": ("train: {path: rows.txt}", "train: {path: no.txt}", 8, "data.train.path", "there is no file"),
    "data of no known kind": (
        "train: {path: rows.txt}", "train: {path: rows.pdf}", 8, "data.train.path", "Use .txt, .jsonl"),
    "missing base folder": ("builtin:tiny-gpt2", "./nowhere", 4, "base.model", "there is no folder"),
    "unknown built-in base": ("builtin:tiny-gpt2", "builtin:huge", 4, "base.model", "There are: builtin:tiny-gpt2."),
    "negative learning rate": ("1e-3", "-1e-3", 12, "training.learning_rate", "must be greater than 0"),
    "unknown method": ("method: lora", "method: lroa", 2, "method", "Did you mean lora?"),
    "a list of methods": (
        "method: lora", "method: [lora]\nmethods: {full: {precision: fp32}}", 2, "method", "is a list, but must be"),
    "unknown optimizer": ("eval_strategy: epoch", "optim: adamw", 13, "training.optim", "Did you mean"),
    "unknown scheduler": (
        "eval_strategy: epoch", "lr_scheduler_type: linera", 13, "training.lr_scheduler_type", "Did you mean linear?"),
    "a field at the wrong level": ("method: lora", "seed: 1", 2, "seed", "It belongs in data or training."),
    "a library argument of the wrong type": (
        "eval_strategy: epoch", "dataloader_num_workers: many", 13, "training.dataloader_num_workers", "whole number"),
    "the shape of a new base on a pretrained one": (
        "model: builtin:tiny-gpt2", "model: gpt2\n  n_layer: 3", 5, "base.n_layer", "It belongs in base.init."),
    "a revision of a built-in base": (
        "model: builtin:tiny-gpt2", "model: builtin:tiny-gpt2\n  revision: main", 5, "base.revision", "cannot act"),
    "a new base with an adapter": (
        "model: builtin:tiny-gpt2", "init: {}", 4, "base.init", "makes a new base, which only"),
    "both origins of a base": (
        "model: builtin:tiny-gpt2", "model: gpt2\n  init: {}", 3, "base", "Give exactly one of model and init."),
    "heads that do not divide the width": (
        "model: builtin:tiny-gpt2", "init: {n_embd: 100, n_head: 3}", 4, "base.init", "not a multiple of n_head"),
    "evaluation without data": (
        "  validation: {path: rows.txt}\n", "", 12, "training.eval_strategy", "needs data.validation."),
    "a stream without an end": (
        "max_length: 32", "streaming: true", 10, "data.streaming", "needs training.max_steps"),
    "a stream that each worker would read": (
        "max_length: 32\ntraining:", "streaming: true\ntraining:\n  max_steps: 4\n  dataloader_num_workers: 2", 13,
        "training.dataloader_num_workers", "once for each worker"),
    "both widths": (
        "lora:\n  r: 4", "quantization: {load_in_4bit: true, load_in_8bit: true}", 5, "quantization", "exactly one of"),
    "two widths of a source": (
        "train: {path: rows.txt}", "train: {path: rows.txt, split: train}", 8, "data.train", "cannot act on files"),
    "a column that the format has not": (
        "max_length: 32", "format: text\n  columns: {prompt: q}", 11, "data.columns", "names prompt"),
    "a source's column that its format has not": (
        "train: {path: rows.txt}", "train: {path: rows.txt, format: chat, columns: {text: q}}", 8, "data.train",
        "columns names text, which format: chat has not. Use messages, prompt, completion, tools, system."),
    "an error in a method's own values": (
        "lora:\n  r: 4", "methods: {full: {training: {lerning_rate: 1}}}", 5,
        "methods.full.training.lerning_rate", "Did you mean learning_rate?"),
    "values of an unknown method": (
        "lora:\n  r: 4", "methods: {ful: {training: {seed: 1}}}", 5, "methods.ful", "Did you mean full?"),
    "an anchor": ("model: builtin:tiny-gpt2", "model: &base builtin:tiny-gpt2", 4, "base.model", "has an anchor"),
    "a tag": ("r: 4", "r: !four 4", 6, "lora.r", "has the tag"),
    "a tab": ("  r: 4", "\tr: 4", 6, "", "is not valid YAML"),
    "an unclosed bracket": ("{path: rows.txt}\n  max", "{path: rows.txt\n  max", 10, "", "is not valid YAML"),
    # what only the base's structure shows
    "a target that matches nothing": (
        "r: 4", "target_modules: [q_proj]", 6, "lora.target_modules", "The model has: attn.c_attn"),
    "one target of two that matches nothing": (
        "r: 4", "target_modules: [c_attn, c_atn]", 6, "lora.target_modules", "'c_atn' matches no module"),
    "an adapter on tied weights": ("r: 4", "target_modules: [wte]", 6, "lora.target_modules", "is tied"),
    "sequences that the base cannot see": ("max_length: 32", "max_length: 4096", 10, "data.max_length", "at most 128"),
    "precision that a CPU lacks": (
        "method: lora", "method: lora\nprecision: fp16", 3, "precision", "Use precision: auto"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recipe_ends_in_one_line_with_file_line_field_and_remedy(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, line, field, words = BROKEN[case]
    assert old in GOOD
    (tmp_path / "rows.txt").write_text("one line of text\n" * 8, encoding="utf-8")
    (tmp_path / "rows.pdf").touch()
    (tmp_path / "broken.yaml").write_text(GOOD.replace(old, new), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(SystemExit) as leaving:
        main(["train", "broken.yaml", "--output", "run"])

    printed = capsys.readouterr()
    message = next(text for text in printed.err.splitlines() if words in text)
    assert leaving.value.code == 2
    assert message.startswith(f"error: broken.yaml:{line}: {field}" if line > 1 else "error: broken.yaml")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before
