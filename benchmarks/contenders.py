"""One measurement of `benchmarks.training`, in a process of its own: trains one way and prints what it took.

    python -m benchmarks.contenders '{"name": "guide", "base": …}'

Every contender is a Transformers Trainer, and the same clock is put around the steps of each: neither loading nor
tokenising nor saving counts, and the first step only warms up.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.clock import StepClock, useful_tokens

LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["c_attn"]}
TRAINING: dict[str, Any] = {"learning_rate": 5e-5, "weight_decay": 0.01, "max_grad_norm": 1.0, "seed": 42}

_WARMUP = 1
"""The first step is not counted: it touches weights and memory for the first time and takes a third longer."""


@dataclass(frozen=True)
class Job:
    """What to train, and how."""

    name: str
    method: str
    base: str
    text: str
    steps: int
    batch: int
    length: int
    whole: bool = False
    """Take the text as one document and fill every sequence, instead of a document a line."""

    trl_packing: str = "wrapped"


@dataclass
class Measurement:
    """What training took."""

    tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    """Largest resident set while training."""

    step_bytes: int = 0
    """How much larger that is than the resident set before the first step."""

    @property
    def tokens_per_second(self) -> float:
        """Useful tokens: those that are no padding."""
        return self.tokens / self.seconds


@contextlib.contextmanager
def measured(clock: StepClock) -> Iterator[Measurement]:
    """Put a clock, a token counter and a memory watch around the training of any Trainer."""
    found = Measurement()
    stock_train, stock_step = Trainer.train, Trainer.training_step

    def step(self: Any, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        tokens = useful_tokens(inputs, getattr(self.data_collator, "pad_token_id", None))
        loss = stock_step(self, model, inputs, *rest)
        clock.step(tokens)
        return loss

    def train(self: Any, *arguments: Any, **named: Any) -> Any:
        before = psutil.Process().memory_info().rss
        with _watched() as peak:
            result = stock_train(self, *arguments, **named)
        found.seconds, found.tokens = clock.seconds, clock.tokens
        found.peak_bytes, found.step_bytes = peak[0], peak[0] - before
        return result

    Trainer.train, Trainer.training_step = train, step
    try:
        yield found
    finally:
        Trainer.train, Trainer.training_step = stock_train, stock_step


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    """The largest resident set so far, looked at fifty times a second."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def documents(job: Job) -> list[str]:
    """The lines, empty ones too as WikiText has them, or the whole text."""
    text = Path(job.text).read_text(encoding="utf-8")
    return [text] if job.whole else text.splitlines()


def model_of(job: Job) -> Any:
    """The base, with an adapter for method lora."""
    set_seed(42)
    model: Any = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    if job.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **LORA))


def common_arguments(steps: int, batch: int, folder: str) -> dict[str, Any]:
    """Training arguments that all contenders share."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **TRAINING,
    }


def guide(job: Job, folder: str) -> None:
    """A stock Trainer as tutorials set it up: each line, be it empty, cut or padded to the same length."""
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    tokenizer.pad_token = tokenizer.eos_token
    if job.whole:
        ids = tokenizer(documents(job)[0], verbose=False)["input_ids"]
        starts = range(0, len(ids) - job.length + 1, job.length)
        rows: Any = [{"input_ids": ids[start : start + job.length]} for start in starts]
    else:
        padded = tokenizer(documents(job), truncation=True, padding="max_length", max_length=job.length)
        rows = [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)
        ]
    train_as_guide(model_of(job), rows, tokenizer, common_arguments(job.steps, job.batch, folder))


def train_as_guide(model: Any, rows: Any, tokenizer: Any, arguments: dict[str, Any]) -> None:
    """Train on rows of one length with the stock Trainer, loss and collator."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, TrainingArguments(**arguments), collator, train_dataset=rows).train()


def trl(job: Job, folder: str) -> None:
    """TRL's SFTTrainer with packing. Its default of bf16 is turned off: a CPU emulates it, many times slower."""
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    tokenizer.pad_token = tokenizer.eos_token
    arguments = common_arguments(job.steps, job.batch, folder)
    arguments |= {"packing_strategy": job.trl_packing, "max_length": job.length, "bf16": False}
    columns = {"text": [text for text in documents(job) if text.strip()]}  # it fails on empty ones
    train_with_trl(model_of(job), columns, tokenizer, arguments)


def train_with_trl(model: Any, columns: dict[str, Any], tokenizer: Any, arguments: dict[str, Any]) -> None:
    """Train on packed documents, given as `text` or `input_ids`, with TRL's SFTTrainer and its default loss."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**arguments, packing=True, gradient_checkpointing=False)
    rows = Dataset.from_dict(columns)
    SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer).train()


def peftkit(job: Job, folder: str) -> None:
    """The whole command, from a recipe."""
    from peftkit.recipe.loader import load_recipe
    from peftkit.training.run import run

    os.environ["PEFTKIT_CACHE"] = f"{folder}/cache"
    recipe = {
        "name": "benchmark",
        "method": job.method,
        "base": {"model": job.base},
        "lora": LORA,
        "data": {
            "train": {"path": job.text},
            "sample_by": "document" if job.whole else "line",
            "max_length": job.length,
            "packing": True,
        },
        "training": {
            **TRAINING,
            "max_steps": job.steps,
            "per_device_train_batch_size": job.batch,
            "save_strategy": "no",
            "eval_strategy": "no",
        },
    }
    path = Path(folder) / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    run(load_recipe(path, output=Path(folder) / "run"))


def limit(job: Job, folder: str) -> Measurement:
    """Tokens per second if a step of `batch` rows of `length` tokens were nothing but the model's matrix products.

    Forward, and backward to the input; to the weight too where it is trained. They are done in the order of a step,
    each with a weight of its own, as no cache holds a model. Attention is counted in whole squares.
    """
    del folder
    config = json.loads((Path(job.base) / "config.json").read_text(encoding="utf-8"))
    width, layers, heads, words = (config[name] for name in ("n_embd", "n_layer", "n_head", "vocab_size"))
    tokens, trained = job.batch * job.length, job.method == "full"
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    blocks = [[torch.randn(outputs, inputs) for inputs, outputs in shapes] for _ in range(layers)]
    weights = [*(weight for block in blocks for weight in block), torch.randn(words, width)]
    values = {size: torch.randn(tokens, size) for size in (width, 3 * width, 4 * width, words)}
    queries = torch.randn(job.batch * heads, job.length, width // heads)
    scores = torch.randn(job.batch * heads, job.length, job.length)

    def step() -> None:
        for weight in weights:
            functional.linear(values[weight.shape[1]], weight)
        for weight in reversed(weights):
            values[weight.shape[0]] @ weight
            if trained:
                values[weight.shape[0]].T @ values[weight.shape[1]]
        for _ in range(3 * layers):  # each of attention's two products has two more in the backward pass
            queries @ queries.transpose(1, 2)
            scores @ queries

    return Measurement(tokens=tokens, seconds=_best(step))


def _best(step: Callable[[], None], repetitions: int = 5) -> float:
    """The shortest time of several, so that what is measured is the machine and not what else it does."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Do the job that the command line describes and print the measurement as the last line."""
    job = Job(**json.loads(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        if job.name == "limit":
            with torch.inference_mode():
                found = limit(job, folder)
        else:
            with measured(StepClock(_WARMUP, job.steps - _WARMUP)) as found:
                {"guide": guide, "trl": trl, "peftkit": peftkit}[job.name](job, folder)
    print(json.dumps({**asdict(found), "tokens_per_second": found.tokens_per_second}))


if __name__ == "__main__":
    main()
