"""In a conversation exactly what the assistant says is in the loss, and the end of each of its turns."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from peftkit.data.formats.chat import Chat
from peftkit.data.formats.format import RowError, Writing
from peftkit.data.formats.markers import Message
from peftkit.data.formats.spans import Tokenised, prompt_ids
from peftkit.data.formats.templates import PLAIN_TEMPLATE
from peftkit.errors import FieldError, InputError

TURNS: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
HEADED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ '<|assistant|>' + m['content'] + eos_token + '\\n' }}{% endgeneration %}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}{{ m['role'] + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
THINKING = (  # the thoughts of the last answer alone are written
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>' + (m['reasoning_content'] or '') + '</think>' }}"
    "{% endif %}{{ m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALLING = (
    "{% for tool in tools or [] %}{{ 'tool ' + (tool | tojson) + '\\n' }}{% endfor %}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + (m['content'] or '') }}{% for call in m['tool_calls'] or [] %}"
    "{{ '<call>' + (call['function'] | tojson) + '</call>' }}{% endfor %}{{ eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}" + HEADED
TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
CALL = {"id": "a", "type": "function", "function": {"name": "price", "arguments": '{"of": "pie"}'}}
CALLED: list[Message] = [
    {"role": "user", "content": "Price?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "b"}]},
    {"role": "tool", "content": "4", "tool_call_id": "a"},
    {"role": "tool", "content": "5", "tool_call_id": "b"},
    {"role": "assistant", "content": "Four or five."},
]


def encoded(tokenizer: Any, template: str, messages: list[Message] = TURNS, **more: Any) -> Any:
    """The conversation's tokens, or why it cannot be used; `more` are columns and what the recipe says."""
    columns = {name: more.pop(name) for name in ("tools", "system_column") if name in more}
    values = {"messages": messages, "tools": columns.get("tools"), "system": columns.get("system_column")}
    chat, writing = Chat(), Writing(template, **more)
    (result,) = chat.encode([chat.read(values, writing)], tokenizer, writing)
    return result


def in_loss(tokenizer: Any, result: Any) -> str:
    assert isinstance(result, Tokenised), result
    return str(tokenizer.decode([token for token, counts in zip(result.ids, result.in_loss, strict=True) if counts]))


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, HEADED, MARKED])
def test_the_assistants_turns_and_their_ends_are_in_the_loss_and_nothing_else(template: str, tokenizer: Any) -> None:
    assert in_loss(tokenizer, encoded(tokenizer, template)) == "Hello<|end|>So long<|end|>"


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [("assistant", "Hello<|end|>So long<|end|>"), ("last", "So long<|end|>")],
)
def test_the_recipe_says_which_turns_are_trained_on(train_on: str, expected: str, tokenizer: Any) -> None:
    assert in_loss(tokenizer, encoded(tokenizer, HEADED, train_on=train_on)) == expected


def test_all_turns_but_those_of_weight_0_are_trained_on_if_the_recipe_says_so(tokenizer: Any) -> None:
    turns = [*TURNS[:2], {**TURNS[2], "weight": 0}, *TURNS[3:]]

    whole = in_loss(tokenizer, encoded(tokenizer, HEADED, train_on="all"))
    without = in_loss(tokenizer, encoded(tokenizer, HEADED, turns, train_on="all"))

    assert whole == tokenizer.apply_chat_template(TURNS, chat_template=HEADED, tokenize=False)
    assert without == whole.replace("Hello<|end|>", "")


@pytest.mark.parametrize("weight", [{"weight": 0}, {"train": False}, {"loss_weight": 0.0}])
def test_a_turn_of_weight_0_is_not_trained_on_and_counted(weight: dict[str, Any], tokenizer: Any) -> None:
    result = encoded(tokenizer, HEADED, [*TURNS[:2], {**TURNS[2], **weight}, *TURNS[3:]])

    assert in_loss(tokenizer, result) == "So long<|end|>"
    assert any("weight 0" in note for note in result.notes)


def test_the_ids_are_those_of_the_tokenizers_own_template(tokenizer: Any) -> None:
    for messages, tools in ((TURNS, None), (CALLED, TOOLS)):
        own = tokenizer.apply_chat_template(messages, tools=tools, chat_template=CALLING, return_dict=False)

        assert encoded(tokenizer, CALLING, messages, tools=tools).ids == own


def test_calls_of_tools_are_trained_on_and_what_the_tools_say_is_not(tokenizer: Any) -> None:
    result = encoded(tokenizer, CALLING, CALLED, tools=TOOLS)

    call = '<call>{"name": "price", "arguments": "{\\"of\\": \\"pie\\"}"}</call>'
    assert in_loss(tokenizer, result) == f"{call}{call}<|end|>Four or five.<|end|>"
    assert tokenizer.decode(result.ids).startswith('tool {"type": "function"')


def test_sharegpts_calls_of_functions_mean_the_same_as_openais(tokenizer: Any) -> None:
    turns = [
        {"from": "human", "value": "Age of Ann?"},
        {"from": "function_call", "value": '{"name": "age", "arguments": {"who": "Ann"}}'},
        {"from": "observation", "value": "31"},
        {"from": "gpt", "value": "She is 31."},
    ]

    result = encoded(tokenizer, CALLING, turns, tools='[{"name": "age"}]')

    call = '<call>{"name": "age", "arguments": {"who": "Ann"}}</call>'
    assert in_loss(tokenizer, result) == f"{call}<|end|>She is 31.<|end|>"


def test_arguments_are_parsed_for_a_template_that_takes_them_apart(tokenizer: Any) -> None:
    items = (
        "{% for key, value in call['function']['arguments'].items() %}{{ '<call>' + call['function']['name'] + key "
        "+ value + '</call>' }}{% endfor %}"
    )
    template = CALLING.replace("{{ '<call>' + (call['function'] | tojson) + '</call>' }}", items)

    assert "<call>priceofpie</call>" in in_loss(tokenizer, encoded(tokenizer, template, CALLED, tools=TOOLS))


def test_earlier_turns_that_a_template_rewrites_are_found_in_the_whole_conversation(tokenizer: Any) -> None:
    turns = [{**turn, "reasoning_content": "hm"} if turn["role"] == "assistant" else turn for turn in TURNS]

    result = encoded(tokenizer, THINKING, turns)

    assert in_loss(tokenizer, result) == "Hello<|end|><think>hm</think>So long<|end|>"
    assert result.notes == ()  # the thought that is left out is the same as one that is written


def test_thoughts_that_a_template_leaves_out_are_counted(tokenizer: Any) -> None:
    turns = [*TURNS[:2], {**TURNS[2], "reasoning_content": "a greeting"}, *TURNS[3:]]

    assert any("thoughts" in note for note in encoded(tokenizer, THINKING, turns).notes)


@pytest.mark.parametrize(
    ("messages", "more", "reason"),
    [
        (CALLED, {}, "turn 2 has tool_calls, which the chat template does not write"),
        (TURNS, {"tools": TOOLS}, "has tools, which the chat template does not write"),
        ([TURNS[1], {**TURNS[2], "reasoning_content": "hm"}], {}, "turn 2 has reasoning_content"),
        ([TURNS[1], {**TURNS[2], "mood": "gay"}], {}, "turn 2 has mood, which the chat template does not write"),
    ],
)
def test_what_a_template_does_not_write_is_refused_by_name(
    messages: list[Message], more: dict[str, Any], reason: str, tokenizer: Any
) -> None:
    result = encoded(tokenizer, HEADED, messages, **more)

    assert isinstance(result, RowError)
    assert reason in str(result)


def test_a_turn_that_a_template_leaves_out_is_refused_by_its_role(tokenizer: Any) -> None:
    result = encoded(tokenizer, FORGETFUL)

    assert str(result) == "turn 3 is assistant, which the chat template leaves out"


@pytest.mark.parametrize(
    "turns",
    [
        TURNS[2:],
        [TURNS[0], *TURNS[2:]],
        [TURNS[1], TURNS[1], *TURNS[2:]],
        [{"role": "developer", "content": "Be brief."}, *TURNS[1:]],
        [{"role": "system", "content": ""}, *TURNS[1:]],
        [*TURNS, {"role": "user", "content": "Thanks!"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, *TURNS[2:]],
        [{"from": "human", "value": [{"type": "text", "text": "Hi"}]}, *TURNS[2:]],
    ],
    ids=["answer first", "system, answer", "two users", "developer", "no system", "thanks", "parts", "shared parts"],
)
def test_turns_may_come_in_any_order_that_the_template_takes(turns: list[Message], tokenizer: Any) -> None:
    assert in_loss(tokenizer, encoded(tokenizer, HEADED, turns)) == "Hello<|end|>So long<|end|>"


def test_turns_after_the_last_answer_are_left_out_and_counted(tokenizer: Any) -> None:
    result = encoded(tokenizer, HEADED, [*TURNS, TURNS[1]])

    assert result.ids == encoded(tokenizer, HEADED).ids
    assert any("after the last answer" in note for note in result.notes)


def test_a_column_with_what_the_system_says_is_the_first_turn(tokenizer: Any) -> None:
    assert encoded(tokenizer, HEADED, TURNS[1:], system_column="Be brief.") == encoded(tokenizer, HEADED)


def test_a_system_turn_goes_into_the_users_first_words_if_the_recipe_says_so(tokenizer: Any) -> None:
    refused, merged = (encoded(tokenizer, STRICT, system=system) for system in ("keep", "merge"))

    assert str(refused).startswith("the chat template refuses it: no system turn, please (data.system: merge")
    assert tokenizer.decode(merged.ids).startswith("<|user|>Be brief.\n\nHi<|end|>")
    assert in_loss(tokenizer, merged) == "Hello<|end|>So long<|end|>"


def test_the_plain_template_reads_like_a_dialogue(tokenizer: Any) -> None:
    assert tokenizer.decode(encoded(tokenizer, PLAIN_TEMPLATE).ids) == (
        "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\nHello<|end|>\n\n"
        "### User:\nBye\n\n### Assistant:\nSo long<|end|>"
    )


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, HEADED, MARKED, THINKING])
def test_a_prompt_is_how_a_conversation_begins(template: str, tokenizer: Any) -> None:
    result = encoded(tokenizer, template, TURNS[1:3])

    prompt = prompt_ids(Chat().prompt("Hi", tokenizer, Writing(template)), tokenizer)

    assert result.ids[: result.in_loss.index(True)] == prompt


def test_a_prompt_that_the_template_refuses_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be written as a conversation of one turn: .* needs a system turn"):
        Chat().prompt("Hi", tokenizer, Writing("{{ raise_exception('needs a system turn') }}"))


def test_the_end_of_a_turn_is_an_end_token(tokenizer: Any) -> None:
    assert Chat().end_tokens(tokenizer, Writing(HEADED)) == [tokenizer.eos_token_id]


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tokenizer: Any) -> None:
    result = encoded(tokenizer, "{{ raise_exception('not today.') }}")

    assert str(result).startswith("the chat template refuses it: not today")


def test_the_recipes_template_goes_before_the_tokenizers_and_that_before_the_plain_one(tokenizer: Any) -> None:
    assert Chat().choose_template(None, tokenizer) == PLAIN_TEMPLATE
    tokenizer.chat_template = HEADED
    try:
        assert Chat().choose_template(None, tokenizer) == HEADED
        assert Chat().choose_template(MARKED, tokenizer) == MARKED
    finally:
        tokenizer.chat_template = None


def test_a_template_that_is_no_jinja_is_an_error_about_the_field(tokenizer: Any) -> None:
    with pytest.raises(FieldError, match=r"data\.template: is no Jinja template"):
        Chat().choose_template("{% for m in messages %}", tokenizer)


DATED = "{{ 'It is ' + strftime_now('%H:%M') + '. ' }}" + HEADED


def test_a_template_that_reads_the_clock_is_known_and_given_the_time(tokenizer: Any) -> None:
    assert not Chat().reads_clock(tokenizer, Writing(HEADED))
    assert Chat().reads_clock(tokenizer, Writing(DATED))

    result = encoded(tokenizer, DATED, time=datetime(2026, 11, 27, 20, 15))

    assert tokenizer.decode(result.ids).startswith("It is 20:15. <|system|>")
    assert in_loss(tokenizer, result) == "Hello<|end|>So long<|end|>"
