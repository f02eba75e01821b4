"""Data as people have it, in the manner of public bug reports: each file comes to exactly the text and loss it should.

What is in the loss is between ⟦ and ⟧.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftkit.data.audit import audit
from peftkit.data.formats.spans import prompt_ids
from peftkit.data.prepare import prepare
from peftkit.data.prompts import pairs, prompt_of
from peftkit.errors import InputError
from peftkit.recipe.schema import Data
from tests.data.bases import NAMES, base_tokenizer

FILES = Path(__file__).parent / "cases"
PROMPTED = ["Hi⟦Hello<|endoftext|>⟧", "Bye⟦So long<|endoftext|>⟧"]
TEXTS = ["⟦one<|endoftext|>⟧", "⟦two<|endoftext|>⟧"]


def chat(*turns: tuple[str, str]) -> str:
    """ChatML with the assistant's turns and their ends in the loss."""
    return "".join(
        f"<|im_start|>{role}\n" + (f"⟦{said}<|im_end|>⟧\n" if role in ("assistant", "model") else f"{said}<|im_end|>\n")
        for role, said in turns
    )


PRICE = (
    '{"type": "function", "function": {"name": "get_price", "description": "Price of an item", '
    '"parameters": {"type": "object", "properties": {"item": {"type": "string"}}}}}'
)
SHOP = ("system", f"You help at a shop.\n\nTools:\n{PRICE}"), ("user", "Price of a pie?")
CALL = '<tool_call>{"name": "get_price", "arguments": "{\\"item\\": \\"pie\\"}"}</tool_call>'
CALLS = '<tool_call>{"name": "p", "arguments": "{}"}</tool_call><tool_call>{"name": "q", "arguments": "{}"}</tool_call>'
ANSWER = ("tool", "4"), ("assistant", "A pie costs 4 coins.")
AGE = '<tool_call>{"name": "age", "arguments": {"who": "Ann"}}</tool_call>'
ROOM = ("assistant", "Welcome to the inn!"), ("user", "A room?"), ("assistant", "Up the stairs.")
THREE = ("user", "One and two?"), ("assistant", "Three."), ("user", "And four?")
HELLO = ("user", "Hi"), ("assistant", "Hello.")
HELLO_GEMMA = ("user", "Hi"), ("model", "Hello.")
THERE = ("user", "Hi"), ("user", "Are you there?"), ("assistant", "Yes.")

CASES: list[tuple[str, str, list[str]]] = [
    ("tool-calls.jsonl", "chatml-tools", [chat(*SHOP, ("assistant", f"Let me look.{CALL}"), *ANSWER)]),
    ("tool-call-without-content.jsonl", "chatml-tools", [chat(*SHOP, ("assistant", CALL), *ANSWER)]),
    (
        "parallel-tool-calls.jsonl",
        "chatml-tools",
        [
            chat(
                ("user", "Pie and tea?"),
                ("assistant", f"Asking both.{CALLS}"),
                ("tool", "4"),
                ("tool", "2"),
                ("assistant", "Six in all."),
            )
        ],
    ),
    (
        "sharegpt-function-call.json",
        "chatml-tools",
        [
            chat(
                ("system", 'Tools:\n{"name": "age"}'),
                ("user", "Age of Ann?"),
                ("assistant", AGE),
                ("tool", "31"),
                ("assistant", "She is 31."),
            )
        ],
    ),
    (
        "reasoning-content.jsonl",
        "thinking",
        [chat(THREE[0], ("assistant", "<think>\n1+2=3\n</think>\n\nThree."))],
    ),
    (
        "thinking-two-turns.jsonl",
        "thinking",
        [
            chat(*THREE, ("assistant", "<think>\n\n</think>\n\nSeven.")),
            chat(("user", "Is it day?"), ("assistant", "<think>\n\n</think>\n\nYes.")),
        ],
    ),
    ("think-tags.jsonl", "thinking", [chat(*THREE, ("assistant", "<think>\n3+4=7\n</think>\n\nSeven."))]),
    (
        "turn-weight.jsonl",
        "chatml",
        [
            chat(("user", "Two plus two?"))
            + "<|im_start|>assistant\nFive.<|im_end|>\n"
            + chat(("user", "Sure?"), ("assistant", "Sorry, four."))
        ],
    ),
    (
        "sharegpt-system-column.json",
        "chatml",
        [chat(("system", "You talk like a pirate."), ("user", "Who are you?"), ("assistant", "Arr, a pirate."))],
    ),
    (
        "alpaca-system-history.json",
        "tiny",
        [
            "Answer in one word.\n\n### Instruction:\nWhat is the capital of France?\n\n### Response:\nParis.\n\n"
            "### Instruction:\nAnd the one of Italy?\n\n### Response:\n⟦Rome.<|endoftext|>⟧"
        ],
    ),
    ("tokens-completion-mask.jsonl", "tiny", ["Say red:⟦ red.<|endoftext|>⟧"]),
    ("tokens-padded.jsonl", "tiny", ["⟦The inn is cheap.⟧", "⟦The tea is warm and the welcome too.⟧"]),
    ("two-user-turns.jsonl", "marked", [chat(*THERE)]),
    (
        "two-user-turns.jsonl",
        "swallowing",
        ["<|user|>Hi<|end|><|user|>Are you there?<|end|><|assistant|>⟦Yes.<|end|>⟧"],
    ),
    (
        "two-user-turns.jsonl",
        "llama3",
        [
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nAre you there?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            "⟦Yes.<|eot_id|>⟧"
        ],
    ),
    (
        "sentencepiece-boundary.jsonl",
        "llama2",
        [
            "<s> Question: where?\nAnswer:⟦ Paris is the capital.</s>⟧",
            "<s> Question: where?\nAnswer:⟦ Paris is the capital.</s>⟧",
            "<s> def⟦ f(x): return x</s>⟧",  # a token of this tokenizer lies across the edge
            "<s> Hi 👩\u200d🚀⟦🚀 ok</s>⟧",
        ],
    ),
    (
        "rendered-before.jsonl",
        "llama2",
        [
            "⟦<s>[INST] Name a colour. [/INST] Blue.</s>⟧",
            "⟦<s> [INST] Name a fruit. [/INST] A pear.</s>⟧",
            "⟦<s> [INST] Name a beast. [/INST] An ox.</s>⟧",
        ],
    ),
    ("assistant-first.jsonl", "chatml", [chat(*ROOM)]),
    ("system-then-assistant.jsonl", "chatml", [chat(("system", "You are Mara, an innkeeper."), *ROOM)]),
    ("two-user-turns.jsonl", "chatml", [chat(*THERE)]),
    ("ends-with-user.jsonl", "chatml", [chat(*HELLO)]),
    ("ends-with-user.jsonl", "no-system", [chat(*HELLO_GEMMA)]),
    ("empty-system.jsonl", "chatml", [chat(("system", ""), *HELLO)]),
    ("developer-role.jsonl", "chatml", [chat(("developer", "Be brief."), *HELLO)]),
    ("content-parts.jsonl", "chatml", [chat(*HELLO)]),
    ("content-parts.jsonl", "no-system", [chat(*HELLO_GEMMA)]),
    ("conversational-prompt-completion.jsonl", "chatml", [chat(*HELLO)]),
    ("conversational-prompt-completion.jsonl", "no-system", [chat(*HELLO_GEMMA)]),
    ("a.ndjson", "tiny", ["⟦a<|endoftext|>⟧"]),
    ("g.jsonl.gz", "tiny", ["⟦a<|endoftext|>⟧", "⟦b<|endoftext|>⟧"]),
    ("commas.jsonl", "tiny", TEXTS),
    ("glued.jsonl", "tiny", TEXTS),
    *((name, "tiny", PROMPTED[:1]) for name in ("case.csv", "pr.jsonl", "sepline.csv", "space.csv")),
    *(
        (name, "tiny", PROMPTED)
        for name in ("columns.json", "list.jsonl", "pandas.json", "pretty.json", "pretty.jsonl")
    ),
    *((name, "tiny", [PROMPTED[0], "Bye⟦x<|endoftext|>⟧"]) for name in ("qa.jsonl", "wrapped.json")),
    ("trailing.csv", "tiny", PROMPTED),
    ("semi.csv", "tiny", ["Hi there⟦Hello; friend<|endoftext|>⟧", PROMPTED[1]]),
    ("dolly.jsonl", "tiny", ["### Instruction:\nHi\n\n### Response:\n⟦Hello<|endoftext|>⟧"]),
    ("strmsgs.jsonl", "tiny", ["### User:\nHi\n\n### Assistant:\n⟦Hello<|endoftext|>⟧"]),
]
WRITTEN_AS_THEY_ARE = {
    "tool-calls.jsonl",
    "tool-call-without-content.jsonl",
    "parallel-tool-calls.jsonl",
    "reasoning-content.jsonl",
    "thinking-two-turns.jsonl",
    "think-tags.jsonl",
    "turn-weight.jsonl",
    "two-user-turns.jsonl",
    "empty-system.jsonl",
    "developer-role.jsonl",
}
REFUSED = [
    ("assistant-first.jsonl", "no-system", "the chat template refuses it: roles must alternate"),
    ("two-user-turns.jsonl", "no-system", "the chat template refuses it: roles must alternate"),
    ("system-then-assistant.jsonl", "no-system", r"no system role here \(data.system: merge puts the system turn"),
    ("developer-role.jsonl", "no-system", r"roles must alternate \(data.system: merge puts the system turn"),
    ("ints.jsonl", "tiny", "completion is a number, not text; give its words in data.labels"),
    ("utf16.jsonl", "tiny", "is UTF-16 or binary, not UTF-8"),
]


def data_of(file: str, **fields: Any) -> Data:
    return Data.model_validate({"train": {"path": str(FILES / file)}, "max_length": 512, **fields})


def seen(data: Data, base: str) -> list[str]:
    tokenizer = base_tokenizer(base)
    shown = audit(prepare(data, tokenizer), tokenizer, 2, show=9).shown
    return ["".join(f"⟦{text}⟧" if in_loss else text for in_loss, text in document.runs) for document in shown]


@pytest.mark.parametrize(("file", "base", "expected"), CASES)
def test_a_file_is_trained_on_as_it_is_meant(file: str, base: str, expected: list[str]) -> None:
    assert seen(data_of(file), base) == expected


SPACED = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}{{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def test_a_prompt_that_ends_in_a_space_leaves_it_to_the_answer() -> None:
    first = seen(data_of("prompt-ends-in-space.jsonl", template=SPACED), "tiny")[0]

    assert first == "USER: Dish 0 was bad.\nASSISTANT:⟦ negative<|endoftext|>⟧"


def test_the_end_of_a_turn_that_is_not_the_end_of_text_ends_generation_too() -> None:
    tokenizer = base_tokenizer("chatml")
    train = prepare(data_of("turn-end-is-not-eos.jsonl"), tokenizer).train

    assert tokenizer.convert_ids_to_tokens(train.end_tokens) == ["<|im_end|>", "<|endoftext|>"]
    assert train.counts.ends == train.counts.documents


WHOLE = [(file, base) for file, base, _ in CASES if base not in ("tiny", "llama2") and file in WRITTEN_AS_THEY_ARE]


@pytest.mark.parametrize(("file", "base"), WHOLE)
def test_a_conversation_has_the_ids_of_the_tokenizers_own_method(file: str, base: str) -> None:
    tokenizer = base_tokenizer(base)
    rows = [json.loads(line) for line in (FILES / file).read_text(encoding="utf-8").splitlines()]
    own = [tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), return_dict=False) for row in rows]

    documents = prepare(data_of(file), tokenizer).train.parts[0].corpus.documents

    assert [documents.tokens_of(number).tolist() for number in range(len(rows))] == own


@pytest.mark.parametrize(("file", "base", "reason"), REFUSED)
def test_a_file_that_cannot_be_used_says_why(file: str, base: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        seen(data_of(file), base)


@pytest.mark.parametrize(
    ("file", "base", "fields", "expected"),
    [
        ("ints.jsonl", "tiny", {"labels": {"0": "negative", "1": "positive"}}, ["positive", "negative"]),
        ("developer-role.jsonl", "no-system", {"system": "merge"}, ["Hello."]),
        ("empty-system.jsonl", "no-system", {"system": "merge"}, ["Hello."]),
    ],
)
def test_what_the_reason_names_helps(file: str, base: str, fields: dict[str, Any], expected: list[str]) -> None:
    prepared = prepare(data_of(file, **fields), base_tokenizer(base)).train

    assert [asked.completion for asked in pairs(prepared, base_tokenizer(base))] == expected


ROWS = {
    "completion": {"prompt": "{}", "completion": " Hello."},
    "instruction": {"instruction": "{}", "output": "Hello."},
    "chat": {"messages": [{"role": "user", "content": "{}"}, {"role": "assistant", "content": "Hello."}]},
}


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("form", ROWS)
def test_a_prompt_has_the_same_tokens_in_training_generation_and_evaluation(
    form: str, base: str, tmp_path: Path
) -> None:
    path, tokenizer = tmp_path / "rows.jsonl", base_tokenizer(base)
    said = ["Are you there?", "Where?\n\n", "Answer: ", "日本 👩\u200d🚀", "<s>"]
    path.write_text("".join(json.dumps(ROWS[form]).replace("{}", json.dumps(text)[1:-1]) + "\n" for text in said))
    data = Data.model_validate({"train": {"path": str(path)}, "max_length": 256})

    trained = pairs(prepare(data, tokenizer).train, tokenizer)

    chosen = data.model_copy(update={"format": form})
    generated = [tuple(prompt_ids(prompt_of(text, chosen, tokenizer), tokenizer)) for text in said]
    assert [asked.ids for asked in trained] == generated
