"""A token is hidden wherever it stands in a text, and everything else stays as it is."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftkit.redaction import HIDDEN, holds_secret, redact

LETTERS = string.ascii_letters + string.digits
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "WANDB_API_KEY")
FORMS = {
    "hugging-face": "hf_" + "aB3" * 11 + "c",
    "github-personal": "ghp_" + "aB3" * 12,
    "github-app": "ghs_" + "aB3" * 12,
    "github-oauth": "gho_" + "aB3" * 12,
    "github-user": "ghu_" + "aB3" * 12,
    "github-refresh": "ghr_" + "aB3" * 12,
    "github-fine-grained": "github_pat_" + "aB3_" * 20,
    "openai": "sk-proj-" + "aB3_-" * 8,
    "anthropic": "sk-ant-api03-" + "aB3_-" * 8,
    "amazon": "AKIA" + "AB34" * 4,
}
AROUND = ("{}", "token={}", '{{"token": "{}"}}', "({})", "a {} b", "{}\n", "'{}',", "/models/{}/main", "Bearer {}.")


@pytest.fixture(autouse=True)
def _no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("form", FORMS)
def test_a_token_is_hidden_and_what_stands_around_it_is_not(form: str, around: str) -> None:
    text = around.format(FORMS[form])

    assert redact(text) == around.format(HIDDEN)
    assert holds_secret(text)


@given(
    token=st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk-"]),
            st.text(LETTERS, min_size=20, max_size=60),
        ),
    ),
    before=st.text(" \n\t.,:;=/'\"()[]{}<>-", max_size=9),
    after=st.text(" \n\t.,:;=/'\"()[]{}<>", max_size=9),
)
def test_of_no_token_anything_is_left(token: str, before: str, after: str) -> None:
    assert redact(before + token + after) == before + HIDDEN + after


@given(text=st.lists(st.sampled_from([*FORMS.values(), "https://me:pass@host/", " ", "\n", "text", "@"])).map("".join))
def test_what_was_hidden_once_stays_as_it_is(text: str) -> None:
    hidden = redact(text)

    assert redact(hidden) == hidden
    assert not holds_secret(hidden)


def test_every_token_of_a_text_is_hidden() -> None:
    text = " and ".join(FORMS.values())

    assert redact(text) == " and ".join([HIDDEN] * len(FORMS))


@pytest.mark.parametrize(
    ("address", "hidden"),
    [
        ("https://me:pass@host.org/path", f"https://{HIDDEN}@host.org/path"),
        ("http://me:p%40ss@host:8080", f"http://{HIDDEN}@host:8080"),
        (f"https://me:{FORMS['hugging-face']}@huggingface.co/me/model", f"https://{HIDDEN}@huggingface.co/me/model"),
        (f"https://{FORMS['github-personal']}@github.com/me/it.git", f"https://{HIDDEN}@github.com/me/it.git"),
        (f"https://host.org/?key={FORMS['openai']}&x=1", f"https://host.org/?key={HIDDEN}&x=1"),
    ],
)
def test_what_is_secret_in_an_address_is_hidden_and_its_host_is_not(address: str, hidden: str) -> None:
    assert redact(f"cannot reach {address}") == f"cannot reach {hidden}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the loss rose to 9.5 at step 7, from about 2.",
        "hf_",
        "hf_hub_download and hf_transfer",
        "hf_short123",
        "sk-learn, risk-averse-optimization-of-large-models",
        "ghp_short gho_ github_pat_x",
        "AKIA AKIAAB34 AKIAAB34AB34AB34AB345",
        "task-0123456789012345678901234567890",
        "https://huggingface.co/gpt2:main",
        "https://host.org:8080/path@revision",
        "git@github.com:me/it.git",
        "mail me@host.org: a:b@c",
        "f" * 64,
        "step-3.damaged-1 [hidden]",
        "Übung, ⟦marked⟧\0\n",
    ],
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
    assert not holds_secret(text)


@given(text=st.text(string.ascii_letters + " .,:;/@\n", max_size=200))
def test_words_and_signs_alone_are_never_a_secret_but_in_an_address(text: str) -> None:
    assert redact(text.replace("://", "")) == text.replace("://", "")


@pytest.mark.parametrize("name", NAMES)
def test_the_environments_token_is_hidden_though_it_has_no_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct horse")

    assert redact("401 for correct horse; correct horse is no token") == f"401 for {HIDDEN}; {HIDDEN} is no token"
    assert holds_secret("x=correct horse")
    assert not holds_secret("the horse is correct")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["", "a", "1", "true", "offline"])
def test_a_value_of_the_environment_that_is_too_short_for_a_token_is_ignored(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    assert redact("a run 1 is offline: true") == "a run 1 is offline: true"


def test_a_value_of_eight_characters_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "12345678")

    assert redact("at 12345678, 1234567") == f"at {HIDDEN}, 1234567"


def test_a_token_is_read_from_the_environment_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "the-first-token")
    first = redact("the-first-token, the-second-token")
    monkeypatch.setenv("HF_TOKEN", "the-second-token")
    second = redact("the-first-token, the-second-token")

    assert first == f"{HIDDEN}, the-second-token"
    assert second == f"the-first-token, {HIDDEN}"


def test_signs_in_the_environments_token_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", ".*\\1(?i)+")

    assert redact("key .*\\1(?i)+ and more") == f"key {HIDDEN} and more"


def test_other_variables_of_the_environment_are_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", "/home/me/caches")

    assert redact("in /home/me/caches") == "in /home/me/caches"
