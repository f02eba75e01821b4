"""The benchmark's models and documents are what they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from benchmarks.gpu.contenders import load_random_base
from benchmarks.gpu.device import peak_flops
from benchmarks.gpu.documents import (
    Document,
    article_documents,
    e2e_documents,
    full_documents,
    mean_context,
    write_documents,
)
from benchmarks.gpu.shapes import BASES, make_base_folder, model_flops


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("tiny", [False, True])
def test_the_weights_of_matmuls_are_those_of_the_architecture(name: str, tiny: bool, tmp_path: Path) -> None:
    shape = BASES[name][tiny]
    folder = make_base_folder(tmp_path / "base", shape)

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    multiplied = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]

    assert sum(module.weight.numel() for module in multiplied) == shape.matmul_weights


def test_model_flops_are_those_of_the_papers() -> None:
    shape, _ = BASES["Llama-3.1-8B"]

    lora, full = (model_flops(shape, method, context=2048.5) for method in ("lora", "full"))

    assert full - lora == 2 * shape.matmul_weights
    assert lora == pytest.approx(4 * 7.505e9 + 12 * 32 * 4096 * 2048.5, rel=1e-3)


def test_a_random_base_has_its_shape_its_dtype_and_sound_weights(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(make_base_folder(tmp_path / "base", BASES["GPT-2 124M"][1]))

    model = load_random_base(config, torch.bfloat16)

    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.transformer.wte.weight
    assert float(model.transformer.wte.weight.detach().float().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.transformer.ln_f.weight.detach().float().mean()) == 1.0
    assert bool(torch.isfinite(model(input_ids=torch.arange(2, 10)[None]).logits).all())


def test_articles_have_the_lengths_of_wikitext() -> None:
    lengths = np.array([len(each.ids) for each in article_documents(20_000, 1024)])

    assert float((lengths == 0).mean()) == pytest.approx(0.35, abs=0.02)
    assert float(lengths[lengths > 0].mean()) == pytest.approx(104, rel=0.1)


def test_sentences_have_the_lengths_of_e2e_and_only_their_completion_is_labelled(tmp_path: Path) -> None:
    documents = e2e_documents(2000)
    rows = write_documents(tmp_path / "rows.jsonl", documents).read_text(encoding="utf-8").splitlines()
    labels = json.loads(rows[0])["labels"]

    assert float(np.mean([each.prompt for each in documents])) == pytest.approx(30, rel=0.05)
    assert float(np.mean([len(each.ids) - each.prompt for each in documents])) == pytest.approx(28, rel=0.05)
    assert labels.count(-100) == documents[0].prompt
    assert labels[documents[0].prompt :] == documents[0].ids[documents[0].prompt :]


def test_rows_hold_no_empty_document(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "rows.jsonl", [Document([]), *full_documents(2, 8)])

    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_token_attends_to_half_of_its_document_on_average() -> None:
    assert mean_context(full_documents(3, 99), 4096) == 50
    assert mean_context(full_documents(3, 99), 9) == 5


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L4", 121),
    ],
)
def test_a_card_is_known_by_its_name(name: str, tera: float) -> None:
    assert peak_flops(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA L40S", "AMD EPYC"])
def test_the_rate_of_another_card_is_not_taken_for_it(name: str) -> None:
    assert peak_flops(name) is None
