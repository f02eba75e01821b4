"""The loss is a mean over tokens: neither batch size nor padding nor packing changes it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM, PhiConfig, set_seed
from transformers.trainer_pt_utils import LabelSmoother

from peftkit.data.collator import Collator
from peftkit.data.grammar import corpus
from peftkit.data.prepare import Prepared, prepare
from peftkit.models.attach import embedding_modules
from peftkit.models.attention_kernels import BOUNDS, VARLEN
from peftkit.models.base import LocatedBase, locate_base
from peftkit.models.loss import Loss, compute_loss_at_labels, evaluate_loss
from peftkit.models.methods.lora import METHOD
from peftkit.recipe.hyperparameters import Lora
from peftkit.recipe.schema import Base, Data
from tests import zoo


@pytest.fixture(scope="module")
def base() -> LocatedBase:
    return locate_base(Base(model="builtin:tiny-gpt2"))


@pytest.fixture(scope="module")
def model(base: LocatedBase) -> Any:
    return base.load(base.config(), "float32")


def prepared(base: LocatedBase, folder: Path, packing: bool) -> Prepared:
    (folder / "text.txt").write_text("\n".join(corpus("validation")[:12]) + "\n", encoding="utf-8")
    data = Data.model_validate({"train": {"path": str(folder / "text.txt")}, "max_length": 128, "packing": packing})
    return prepare(data, base.tokenizer()).train


@pytest.fixture(scope="module")
def llama(base: LocatedBase) -> Any:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(base.tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def measure_loss(model: Any, data: Prepared, batch_size: int) -> Loss:
    dataset: Any = data.sequences
    batches: Any = DataLoader(dataset, batch_size=batch_size, collate_fn=Collator(1))
    return evaluate_loss(model, batches, "fp32")


@pytest.mark.parametrize("family", ["model", "llama"])
def test_neither_batch_size_nor_packing_changes_the_loss(
    family: str, base: LocatedBase, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)
    apart, together = (prepared(base, tmp_path, packing) for packing in (False, True))
    losses = [measure_loss(model, data, size) for data in (apart, together) for size in (1, 3, 64)]

    assert len({loss.tokens for loss in losses}) == 1
    assert together.counts.sequences < apart.counts.sequences
    assert [loss.mean for loss in losses] == pytest.approx([losses[0].mean] * 6, rel=1e-5)


def test_the_loss_is_that_of_torch_over_all_tokens(base: LocatedBase, model: Any, tmp_path: Path) -> None:
    data = prepared(base, tmp_path, packing=False)
    total = torch.zeros(())
    with torch.no_grad():
        for index in range(len(data.sequences)):
            ids = torch.from_numpy(data.sequences[index]["input_ids"]).long()
            total += functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="sum")

    assert measure_loss(model, data, 4).total == pytest.approx(float(total), rel=1e-5)


def test_the_bounds_of_a_batch_reach_the_attention(model: Any, varlen_on_cpu: list[dict[str, Any]]) -> None:
    ids = torch.arange(2, 12)[None]
    bounds = torch.tensor([0, 3, 10], dtype=torch.int32)  # others than positions would show
    model.set_attn_implementation(VARLEN)

    evaluate_loss(model, [{"input_ids": ids, "labels": ids, "position_ids": ids, BOUNDS: bounds}], "fp32")

    model.set_attn_implementation("sdpa")
    assert varlen_on_cpu[-1]["bounds"] == [0, 3, 10]


SHAPES = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=600, n_positions=400, bos_token_id=0, eos_token_id=0),
    "llama": LlamaConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=16, intermediate_size=32,
        vocab_size=600, bos_token_id=0, eos_token_id=0),
    "phi, whose head has a bias": PhiConfig(
        num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=32, vocab_size=640,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0),
}  # fmt: skip


def model_of(kind: str, adapted: bool, tmp_path: Any) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(SHAPES[kind])
    model = AutoModelForCausalLM.from_config(config)
    if adapted:
        lora = Lora(r=2, lora_dropout=0.0)
        model = METHOD.attach(model, lora, METHOD.targets(model, lora), tmp_path)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 600, (3, 300), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.7, ids, -100)
    return {"input_ids": ids, "labels": labels}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_equal(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == stock.keys()
    for name, wanted in stock.items():
        assert torch.allclose(ours[name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())), name


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("items", [None, 1000])
def test_loss_and_gradients_are_the_stock_ones(kind: str, adapted: bool, items: int | None, tmp_path: Any) -> None:
    model = model_of(kind, adapted, tmp_path)
    options = {} if items is None else {"num_items_in_batch": items}
    stock_loss = model(**batch(), use_cache=False, **options).loss
    stock = gradients(model, stock_loss)

    assert compute_loss_at_labels(model)
    output = model(**batch(), use_cache=False, **options)
    ours = gradients(model, output.loss)

    assert output.logits is None
    assert output.loss.item() == pytest.approx(stock_loss.item(), rel=1e-5)
    assert_equal(ours, stock)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("adapted", [False, True])
def test_label_smoothing_is_the_trainers_in_loss_and_gradients(kind: str, adapted: bool, tmp_path: Any) -> None:
    model = model_of(kind, adapted, tmp_path)
    inputs = batch()
    logits = model(input_ids=inputs["input_ids"]).logits
    stock_loss = LabelSmoother(epsilon=0.1)({"logits": logits}, inputs["labels"], shift_labels=True)
    stock = gradients(model, stock_loss)

    assert compute_loss_at_labels(model, 0.1)
    output = model(**inputs)

    assert output.logits is None
    assert output.loss.item() == pytest.approx(stock_loss.item(), rel=1e-5)
    assert_equal(gradients(model, output.loss), stock)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama of 640 tokens"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_single_rows_of_a_head_have_the_stock_loss_and_gradients(kind: str, smoothing: float, tmp_path: Any) -> None:
    kind, _, vocabulary = kind.partition(" of ")
    config = copy.deepcopy(SHAPES[kind])
    config.vocab_size = int(vocabulary.partition(" ")[0] or 600)
    torch.manual_seed(0)
    model, lora, inputs = AutoModelForCausalLM.from_config(config), Lora(r=2, lora_dropout=0.0), batch()
    modules = embedding_modules(model)[: 1 if kind == "gpt2" else 2]
    rows = {module: [7, 599, 3] for module in modules}
    model = METHOD.attach(model, lora, METHOD.targets(model, lora), tmp_path, rows).eval()
    frozen = model.get_input_embeddings().original_module.weight.clone()
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)

    logits = model(input_ids=inputs["input_ids"]).logits
    stock_loss = LabelSmoother(epsilon=smoothing)({"logits": logits}, inputs["labels"], shift_labels=True)
    stock = gradients(model, stock_loss)
    whole = evaluate_loss(model, [inputs], "fp32")
    assert compute_loss_at_labels(model, smoothing)
    losses = [model(**inputs).loss for _ in range(2)]

    assert [loss.item() for loss in losses] == pytest.approx([stock_loss.item()] * 2, rel=1e-5)
    assert_equal(gradients(model, losses[1]), stock)
    assert sum("trainable_tokens" in name for name in stock) == len(modules)
    assert torch.equal(model.get_input_embeddings().original_module.weight, frozen)
    by_definition = functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    assert whole.mean == pytest.approx(by_definition.item(), rel=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_with_the_places_of_labels_loss_and_gradients_are_the_same(adapted: bool, tmp_path: Any) -> None:
    model, inputs = model_of("gpt2", adapted, tmp_path), batch()
    compute_loss_at_labels(model)
    labelled = inputs["labels"] != -100
    labelled[:, 0] = False
    found = model(**inputs)
    expected = gradients(model, found.loss)

    output = model(**inputs, label_indices=labelled.flatten().nonzero()[:, 0])

    assert output.loss.item() == found.loss.item()
    assert_equal(gradients(model, output.loss), expected)


def test_a_bias_that_is_trained_on_a_frozen_head_is_taken_as_it_is_now() -> None:
    model = AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES["phi, whose head has a bias"]))
    model.lm_head = torch.nn.Linear(32, 600)  # no multiple of what heads are filled up to
    model.requires_grad_(False)
    model.lm_head.bias.requires_grad_(True)
    compute_loss_at_labels(model)
    first = model(**batch()).loss
    first.backward()
    with torch.no_grad():
        model.lm_head.bias -= 10 * model.lm_head.bias.grad

    second = model(**batch()).loss
    second.backward()

    assert second.item() < first.item()


def test_without_labels_the_model_is_as_it_was(tmp_path: Any) -> None:
    model = model_of("gpt2", False, tmp_path)
    before = model(input_ids=batch()["input_ids"]).logits

    compute_loss_at_labels(model)

    assert torch.equal(model(input_ids=batch()["input_ids"]).logits, before)
    assert model.generate(batch()["input_ids"][:, :4], max_new_tokens=3, pad_token_id=0).shape == (3, 7)


def test_a_batch_without_labels_gives_a_loss_of_zero_that_moves_nothing(tmp_path: Any) -> None:
    model = model_of("gpt2", False, tmp_path)
    compute_loss_at_labels(model)
    inputs = batch()
    inputs["labels"].fill_(-100)

    loss = model(**inputs, num_items_in_batch=10).loss

    assert loss.item() == 0
    assert max(float(gradient.abs().max()) for gradient in gradients(model, loss).values()) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_loss_of_a_large_batch_is_that_of_float32(dtype: torch.dtype, tmp_path: Any) -> None:
    model = model_of("gpt2", False, tmp_path)
    inputs = {name: values.repeat(24, 1) for name, values in batch().items()}  # a sum of 97,000 nats
    exact = model(**inputs).loss.item()
    compute_loss_at_labels(model)

    with torch.autocast("cpu", dtype=dtype):
        loss = model(**inputs).loss

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-4)


def test_a_model_that_changes_its_logits_is_left_alone() -> None:
    from transformers import Gemma2Config

    config = Gemma2Config(
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=16, head_dim=8,
        intermediate_size=32, vocab_size=64, final_logit_softcapping=0.01, bos_token_id=0, eos_token_id=0)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)

    assert not compute_loss_at_labels(model)


@pytest.mark.parametrize("name", ["ctrl", "openai-gpt", "bamba", "gemma3"])
def test_a_model_generates_while_it_has_the_loss_in_its_place(name: str, tmp_path: Path) -> None:
    model = zoo.make(name, tmp_path).eval()
    ids = torch.arange(2, 12)[None]
    assert compute_loss_at_labels(model)

    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)

    assert output.shape[1] > 10
