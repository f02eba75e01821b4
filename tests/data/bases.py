"""Tokenizers in the manner of well-known families, with chat templates of their kinds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import peftkit

__all__ = ["NAMES", "base_tokenizer"]

_EMBEDDED = Path(peftkit.__file__).parent / "assets" / "tiny-gpt2"
_TEXT = ["Question: where?\nAnswer: Paris is the capital. def f(x): return x [INST] Name a colour. [/INST] Blue."] * 9

_CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_TEMPLATES: Final = {
    "chatml": _CHATML,  # whose end of a turn is not the end of text, as that of Qwen's bases
    "chatml-tools": (
        "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}"
        "{{- messages[0].content + '\\n\\n' }}{%- endif %}{{- 'Tools:' }}{%- for tool in tools %}"
        "{{- '\\n' + (tool | tojson) }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}"
        "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}"
        "{%- if m.role == 'system' and loop.first %}{%- elif m.role == 'assistant' %}"
        "{{- '<|im_start|>assistant\\n' + (m.content or '') }}{%- for c in m.tool_calls or [] %}"
        "{{- '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
        "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "thinking": (  # as Qwen3: the thoughts of the turns after the last question alone are written
        "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}"
        "{%- if m.role == 'assistant' %}{%- set said = m.content %}{%- set thought = m.reasoning_content or '' %}"
        "{%- if '</think>' in said %}{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
        "{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}"
        "{{- said + '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "no-system": (  # as Gemma: no system role, roles must alternate, the assistant is called model
        "{%- if messages[0].role == 'system' %}{{- raise_exception('no system role here') }}{%- endif %}"
        "{%- for m in messages %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('roles must alternate') }}{%- endif %}"
        "{{- '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}"
        "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>model\\n' }}{%- endif %}"
    ),
    "marked": (  # as SmolLM3: the generation block closes after the new line behind the end token
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ '<|im_start|>assistant\\n' + m['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "dated": "{{- '<|im_start|>system\\nIt is ' + strftime_now('%Y') + '.<|im_end|>\\n' }}" + _CHATML,
}
_LLAMA3: Final = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


def _embedded() -> Any:
    return AutoTokenizer.from_pretrained(_EMBEDDED)


def _with_turns(name: str) -> Any:
    tokenizer = _embedded()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _TEMPLATES[name]
    return tokenizer


def _swallowing() -> Any:
    """As Phi-3: end tokens that take the new line behind them."""
    tokenizer = _embedded()
    turns = [AddedToken(f"<|{name}|>", rstrip=True, special=True) for name in ("user", "assistant", "end")]
    tokenizer.add_tokens(turns, special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )
    return tokenizer


def _llama2() -> Any:
    """SentencePiece's spaces, bytes for what is not in the vocabulary, and a first token."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(fallback)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    )
    inner.train_from_iterator(_TEXT, trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _llama3() -> Any:
    """Byte-level with trimmed offsets, a first token, and an end of a turn besides the end of text."""
    inner = Tokenizer(models.BPE())
    split = Regex(
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), bytewise])
    inner.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    inner.train_from_iterator(_TEXT, trainer)
    first = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), first])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=special[0], eos_token="<|eot_id|>")
    tokenizer.chat_template = _LLAMA3
    return tokenizer


_MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "tiny": _embedded,
    "swallowing": _swallowing,
    "llama2": _llama2,
    "llama3": _llama3,
    **{name: functools.partial(_with_turns, name) for name in _TEMPLATES},
}
NAMES: Final = tuple(_MAKERS)


@functools.cache
def base_tokenizer(name: str) -> Any:
    """The tokenizer of a family."""
    return _MAKERS[name]()
