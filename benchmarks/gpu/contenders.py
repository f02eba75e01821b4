"""One measurement of speed: trains a base with random weights in one way, and gives what it took."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from benchmarks.clock import StepClock
from benchmarks.contenders import TRAINING, common_arguments, measured, train_as_guide, train_with_trl
from benchmarks.gpu.contest import Contest
from benchmarks.gpu.device import device, half_dtype, peak_bytes
from benchmarks.gpu.trace import StepObserver
from peftkit.models.attach import inner_model
from peftkit.models.attention_kernels import VARLEN
from peftkit.models.base import LocatedBase

__all__ = ["contend", "load_random_base"]

_STANDARD_DEVIATION = 0.02  # of GPT-2's and Llama's weights when they are made


def contend(**values: Any) -> dict[str, Any]:
    """Train, and give tokens, seconds, peaks and the observer's trace; peftkit's own figures with it."""
    contest = Contest(**values)
    if device() == "cpu":
        torch.set_num_threads(1)  # tiny matrices are slower on several
    observer = StepObserver(contest.observed)
    clock = StepClock(contest.warmup, contest.timed, contest.observed, observer)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PEFTKIT_CACHE"] = f"{folder}/cache"
        ways = {"guide": _guide, "trl": _trl, "raw": _raw, "peftkit": _peftkit}
        own = ways[contest.name](contest, clock, folder) or {}
    return {
        "tokens": clock.tokens,
        "seconds": clock.seconds,
        "peak_bytes": clock.allocated_bytes or peak_bytes(),
        "trace": observer.to_json(),
        **own,
    }


def load_random_base(config: Any, dtype: torch.dtype, **options: Any) -> Any:
    """A model with random weights in its true shape, made on the device and loaded as Transformers loads a file.

    It takes seconds where writing and reading 16 GB would take minutes; `options`, as a quantisation, act as they do on
    a file.
    """
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config).to(dtype)
    generator = torch.Generator(device()).manual_seed(42)
    weights = {name: _random_weight(name, weight, generator) for name, weight in outline.named_parameters()}
    del outline
    options = {"device_map": {"": device()}, **options}
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model: Any = architecture.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, **options)
    del weights
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return model


def _random_weight(name: str, outline: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    made = torch.empty(outline.shape, dtype=outline.dtype, device=device())
    if outline.dim() > 1:
        return made.normal_(0, _STANDARD_DEVIATION, generator=generator)
    return made.fill_(0.0 if name.endswith("bias") else 1.0)  # the others scale what was normalised


class _RandomBase(LocatedBase):
    """A base of which only the configuration and the tokenizer are files."""

    def load(self, config: Any, dtype: str, **options: Any) -> Any:
        return load_random_base(config, getattr(torch, dtype), **options)


def _guide(contest: Contest, clock: StepClock, folder: str) -> None:
    """A stock Trainer as tutorials set it up: each row, be it empty, cut or padded to the same length."""
    tokenizer = AutoTokenizer.from_pretrained(contest.base)
    documents = _token_rows(contest)
    every = len(documents) // contest.empty_rows if contest.empty_rows else 0
    rows: list[list[int]] = []
    for number, ids in enumerate(documents):
        rows += [ids, []] if every and number % every == 0 else [ids]
    padded = [_padded(ids[: contest.length], contest.length, tokenizer.pad_token_id) for ids in rows]
    with measured(clock):
        train_as_guide(_stock_model(contest), padded, tokenizer, _arguments(contest, clock, folder))


def _padded(ids: list[int], length: int, padding: int) -> dict[str, list[int]]:
    filling = length - len(ids)
    return {"input_ids": ids + [padding] * filling, "attention_mask": [1] * len(ids) + [0] * filling}


def _trl(contest: Contest, clock: StepClock, folder: str) -> None:
    """TRL's SFTTrainer with packing in its default strategy, and its default loss."""
    tokenizer = AutoTokenizer.from_pretrained(contest.base)
    arguments = {**_arguments(contest, clock, folder), "max_length": contest.length}
    arguments["bf16"] = arguments.get("bf16", False)
    with measured(clock):
        train_with_trl(_stock_model(contest), {"input_ids": _token_rows(contest)}, tokenizer, arguments)


def _raw(contest: Contest, clock: StepClock, folder: str) -> None:
    """A loop of a few lines: full rows without a border between documents, autocast, AdamW, the stock loss."""
    del folder
    model = _stock_model(contest).train()
    stream = torch.tensor([token for ids in _token_rows(contest) for token in ids])
    size = contest.batch * contest.length
    stream = stream.repeat(-(-size * clock.steps // len(stream)))[: size * clock.steps]
    batches = stream.view(clock.steps, contest.batch, contest.length)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    rates = {"lr": TRAINING["learning_rate"], "weight_decay": TRAINING["weight_decay"]}
    optimizer = torch.optim.AdamW(trained, **rates, fused=device() == "cuda")
    half = torch.autocast(device(), half_dtype(), enabled=device() == "cuda")
    for batch in batches:
        ids = batch.to(device(), non_blocking=True)
        with half:
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, TRAINING["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        clock.step(size)


def _peftkit(contest: Contest, clock: StepClock, folder: str) -> dict[str, Any]:
    """What `peftkit train` does from a recipe up to the end of training, with the base's weights made on the device."""
    from peftkit.recipe.loader import load_recipe
    from peftkit.training.plan import estimate
    from peftkit.training.prepare import prepare_run
    from peftkit.training.train import train

    path = Path(folder) / "recipe.yaml"
    path.write_text(json.dumps(_recipe(contest, clock)), encoding="utf-8")  # JSON is YAML
    run = prepare_run(load_recipe(path, output=Path(folder) / "run"))
    located = run.start.located
    assert located is not None
    base = _RandomBase(located.reference, located.folder, located.revision)
    run = replace(run, start=replace(run.start, located=base))
    planned = estimate(run)
    model = run.load()
    if contest.attention is not None:
        _attend_by(model, contest.attention)
    with run.folder.created(run.file.resolved_yaml(), run.manifest), measured(clock):
        result = train(model, run)
    return {
        "own_tokens_per_second": result.tokens_per_second,
        "own_peak_bytes": result.peak_memory_bytes,
        "planned_bytes": planned.peak_memory_bytes,
        "attention": inner_model(model).config._attn_implementation,
        "precision": run.precision,
    }


def _recipe(contest: Contest, clock: StepClock) -> dict[str, Any]:
    training = {
        **TRAINING,
        "max_steps": clock.steps,
        "per_device_train_batch_size": contest.batch,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": clock.steps,
        **contest.training,
    }
    data = {"train": {"path": contest.rows}, "format": "tokens", "max_length": contest.length}
    return {
        "name": "benchmark",
        "method": contest.method,
        "base": {"model": contest.base},
        "lora": contest.lora,
        "data": {**data, "packing": contest.packing},
        "training": training,
        "generation": {"samples": 0},
    }


def _attend_by(model: Any, attention: str) -> None:
    """Set the attention that is to be compared, instead of the one that was chosen."""
    inner_model(model).set_attn_implementation(VARLEN if attention == "varlen" else attention)


def _stock_model(contest: Contest) -> Any:
    """The base, as PEFT's documentation prepares it for the method; seeds are set."""
    set_seed(42)
    config = AutoConfig.from_pretrained(contest.base)
    if contest.method == "full":
        return load_random_base(config, torch.float32)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    dtype = half_dtype() if device() == "cuda" else torch.float32
    model = load_random_base(config, dtype, **_quantised(contest, dtype))
    if contest.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    fans = {"fan_in_fan_out": config.model_type == "gpt2" and contest.method == "lora"}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fans, **contest.lora))


def _quantised(contest: Contest, dtype: torch.dtype) -> dict[str, Any]:
    """Transformers' options for NF4 with double quantisation, for qlora."""
    if contest.method != "qlora":
        return {}
    from transformers import BitsAndBytesConfig

    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **kind)}


def _arguments(contest: Contest, clock: StepClock, folder: str) -> dict[str, Any]:
    half = {"bf16" if half_dtype() == torch.bfloat16 else "fp16": True} if device() == "cuda" else {}
    return {**common_arguments(clock.steps, contest.batch, folder), **half}


def _token_rows(contest: Contest) -> list[list[int]]:
    lines = Path(contest.rows).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["input_ids"] for line in lines]
