"""The parts that ask how fast training is, next to what others do, and what the device and the host do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any, Final

from benchmarks.gpu.contest import Contest
from benchmarks.gpu.documents import (
    Document,
    article_documents,
    e2e_documents,
    full_documents,
    mean_context,
    write_documents,
)
from benchmarks.gpu.harness import Bench, Figure, JobError, NotApplicableError, Row
from benchmarks.gpu.shapes import BASES, Method, Shape, make_base_folder, model_flops

__all__ = ["estimates", "full_rows", "gpt2", "gpt2_medium", "llama_lora", "llama_qlora", "profile", "variants"]

_CONTENDERS: Final = ("peftkit", "trl", "raw", "guide")
_LLAMA_LORA: Final = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
_GPT2_LORA: Final = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": ["c_attn"]}
_LLAMA_BYTES: Final = {"lora": 70e9, "qlora": 40e9}
"""Of a card that has room for a step of 4,096 tokens of the 8B shape without activation checkpointing."""

_ESTIMATE_BOUND = 0.1
_NO_MEMORY = ("outofmemory", "out of memory", "does not fit into memory")


@dataclass(frozen=True)
class _Race:
    """One kind of training that is done in several ways."""

    shape: Shape
    documents: Sequence[Document]
    contest: Contest
    """As peftkit does it by its defaults."""

    peak_flops: float | None

    def row(self, bench: Bench, what: str, contest: Contest) -> Row:
        """Train in one way. Too little memory for it is a result; any other error fails the row."""
        try:
            found = bench.call("benchmarks.gpu.contenders:contend", **asdict(contest))
        except JobError as error:
            if any(text in str(error).lower() for text in _NO_MEMORY):
                return Row(what, note=f"does not fit: {error}")
            return Row(what, passed=False, note=str(error))
        return Row(what, self._figures(found, contest))

    def _figures(self, found: dict[str, Any], contest: Contest) -> dict[str, Figure]:
        speed = found["tokens"] / found["seconds"]
        flops = model_flops(self.shape, _method(contest), mean_context(self.documents, contest.length))
        trace = found["trace"] or {}
        host, idle = trace.get("host_seconds"), trace.get("idle_share")
        own, planned = found.get("own_tokens_per_second"), found.get("planned_bytes")
        return {
            "tokens/s": speed,
            "MFU": speed * flops / self.peak_flops if self.peak_flops else None,
            "peak GB": found["peak_bytes"] / 1e9,
            "step ms": 1000 * found["seconds"] / contest.timed,
            "host ms": 1000 * host if host is not None else None,
            "waits": trace.get("warned", trace.get("waits")),
            "idle": idle,
            "own tokens/s": own,
            "planned of peak": planned / found["own_peak_bytes"] if planned else None,
            "attention": found.get("attention"),
        }


def llama_lora(bench: Bench) -> Iterator[Row]:
    """LoRA of rank 16 on all linear layers, packed documents."""
    yield from _contenders(bench, _llama(bench, "lora"))


def llama_qlora(bench: Bench) -> Iterator[Row]:
    """The same on an NF4 base."""
    yield from _contenders(bench, _llama(bench, "qlora"))


def full_rows(bench: Bench) -> Iterator[Row]:
    """The setting of NeMo AutoModel's published figure: LoRA, rows that one document fills, no padding."""
    race = _llama(bench, "lora", full=True)
    yield race.row(bench, "peftkit", replace(race.contest, batch=2))


def gpt2(bench: Bench) -> Iterator[Row]:
    """GPT-2 with 124 million weights: sentences of E2E's lengths by LoRA, articles of WikiText-2's by full."""
    yield from _gpt2_races(bench, "GPT-2 124M")


def gpt2_medium(bench: Bench) -> Iterator[Row]:
    """The same with 355 million weights."""
    yield from _gpt2_races(bench, "GPT-2 355M")


def variants(bench: Bench) -> Iterator[Row]:
    """Other ways to compute what peftkit computes, on the Llama shape by LoRA."""
    race = _llama(bench, "lora")
    for attention in ("varlen", "flex_attention", "sdpa", "peftkit_sdpa"):
        if attention == "flex_attention" and not bench.has_gpu:
            yield Row(attention, note="not applicable: its backward pass needs a GPU")
            continue
        yield race.row(bench, attention, replace(race.contest, attention=attention))
    if find_spec("liger_kernel"):
        yield race.row(bench, "use_liger_kernel", replace(race.contest, training={"use_liger_kernel": True}))
    else:
        yield Row("use_liger_kernel", note="liger_kernel is not installed")
    if bench.has_gpu:
        yield race.row(bench, "torch_compile", replace(race.contest, training={"torch_compile": True}))
    else:
        yield Row("torch_compile", note="not applicable: compiling for a CPU takes longer than the benchmark")


def estimates(bench: Bench) -> Iterator[Row]:
    """What `peftkit plan` computes without a measurement, against the peak of training on GPT-2."""
    shape = BASES["GPT-2 124M"][bench.scale.smoke]
    length = 128 if bench.scale.smoke else 1024
    documents = full_documents(64, length)
    race = _race(bench, "estimates", shape, documents, method="full", batch=1, length=length, packing=False)
    for method in ("full", "lora", "qlora"):
        for rows in (1, 2, 8):
            contest = replace(race.contest, method=method, batch=rows, lora=_GPT2_LORA, timed=2, observed=0)
            found = bench.call("benchmarks.gpu.contenders:contend", **asdict(contest))
            ratio = found["planned_bytes"] / found["own_peak_bytes"]
            figures = {
                "planned GB": found["planned_bytes"] / 1e9,
                "measured GB": found["own_peak_bytes"] / 1e9,
                "ratio": ratio,
                "bound": _ESTIMATE_BOUND,
            }
            # a CPU's resident set holds the libraries and what its allocator keeps, which only a measured plan knows
            right = abs(ratio - 1) <= _ESTIMATE_BOUND if bench.has_gpu else None
            yield Row(f"{method}, {'1 row' if rows == 1 else f'{rows} rows'} of {length:,} tokens", figures, right)


def profile(bench: Bench) -> Iterator[Row]:
    """What the device and the host do in some steps of peftkit, LoRA on the Llama shape."""
    race = _llama(bench, "lora")
    contest = replace(race.contest, observed=bench.scale.profiled)
    trace = bench.call("benchmarks.gpu.contenders:contend", **asdict(contest))["trace"]
    yield Row(
        f"{trace['steps']} steps",
        {
            "ms a step": 1000 * trace["step_seconds"],
            "host ms": 1000 * trace["host_seconds"],
            "waits a step": trace["waits"],
            "warned": trace["warned"],
            "idle": trace["idle_share"],
            "gaps a step": trace["gaps"],
        },
    )
    for place, count in trace["places"]:
        yield Row("waits for the device", {"a step": count}, note=place)
    for name, share in trace["longest"]:
        yield Row("longest kernels" if bench.has_gpu else "longest operators", {"share": share}, note=name[:120])


def _contenders(bench: Bench, race: _Race, prefix: str = "") -> Iterator[Row]:
    """Everyone's row, with peftkit's speed relative to each; out of time, those that were measured."""
    speeds: dict[str, Figure] = {}
    for name in _CONTENDERS:
        if name == "trl" and not find_spec("trl"):
            yield Row(f"{prefix}trl", note="trl is not installed")
            continue
        row = race.row(bench, f"{prefix}{name}", replace(race.contest, name=name))
        speeds[name] = row.figures.get("tokens/s")
        own, its = speeds.get("peftkit"), speeds[name]
        ratio = own / its if isinstance(own, float) and isinstance(its, float) else None
        yield replace(row, figures={**row.figures, "peftkit to it": ratio}) if row.figures else row


def _llama(bench: Bench, method: Method, *, full: bool = False) -> _Race:
    scale = bench.scale
    shape = BASES["Llama-3.1-8B"][scale.smoke]
    if not scale.smoke and bench.machine["memory_bytes"] < _LLAMA_BYTES[method]:
        has = f"the device has {bench.machine['memory_bytes'] / 1e9:.0f} GB"
        raise NotApplicableError(f"needs {_LLAMA_BYTES[method] / 1e9:.0f} GB; {has}")
    steps = scale.warmup + scale.timed + scale.profiled
    documents = (
        full_documents(4 * steps, scale.length)
        if full
        else [each for each in article_documents(60 * steps, scale.length) if each.ids]
    )
    return _race(bench, f"llama-{method}-{full}", shape, documents, method=method, lora=_LLAMA_LORA, batch=1)


def _gpt2_races(bench: Bench, name: str) -> Iterator[Row]:
    shape = BASES[name][bench.scale.smoke]
    sizes: dict[str, Any] = {"length": 128, "batch": 4} if bench.scale.smoke else {"length": 512, "batch": 8}
    articles = article_documents(200 if bench.scale.smoke else 4000, sizes["length"])
    race = _race(bench, f"{name} articles", shape, articles, method="full", lora=_GPT2_LORA, **sizes)
    yield from _contenders(bench, race, "WikiText-2, full: ")
    sizes = {"length": 128, "batch": 4 if bench.scale.smoke else 32}
    sentences = e2e_documents(200 if bench.scale.smoke else 2000)
    race = _race(bench, f"{name} e2e", shape, sentences, method="lora", lora=_GPT2_LORA, packing=False, **sizes)
    yield from _contenders(bench, race, "E2E, lora: ")


def _race(
    bench: Bench,
    name: str,
    shape: Shape,
    documents: Sequence[Document],
    *,
    batch: int,
    length: int | None = None,
    **more: Any,
) -> _Race:
    scale = bench.scale
    folder = bench.folder / name.replace(" ", "-")
    base = make_base_folder(folder / "base", shape)
    contest = Contest(
        name="peftkit",
        base=str(base),
        rows=str(write_documents(folder / "rows.jsonl", documents)),
        empty_rows=sum(not each.ids for each in documents),
        length=length or scale.length,
        batch=batch,
        warmup=scale.warmup,
        timed=scale.timed,
        observed=scale.observed,
        **more,
    )
    return _Race(shape, documents, contest, bench.machine["peak_flops"])


def _method(contest: Contest) -> Method:
    methods: dict[str, Method] = {"full": "full", "lora": "lora", "qlora": "qlora"}
    return methods[contest.method]
