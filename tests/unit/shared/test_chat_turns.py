"""Which characters of a rendered chat are the assistant's, by the template's own marks and without any."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.shared.chat_turns import render_chat
from services.shared.tokenizer import load_tokenizer
from services.shared.training_text import Example
from services.trainer_worker.datasets import tokenise

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "One plus one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "And one?"},
    {"role": "assistant", "content": "Three."},
]
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.role == 'assistant' %}OPEN{{ message.content }}<end>{% if not loop.last %}\n{% endif %}CLOSE"
    "{% else %}{{ message.content }}<end>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = CHATML.replace("OPEN", "{% generation %}").replace("CLOSE", "{% endgeneration %}")
PLAIN = CHATML.replace("OPEN", "").replace("CLOSE", "")


def templated(base: Path, template: str, tmp_path: Path) -> Any:
    (tmp_path / "chat.jinja").write_text(template)
    return load_tokenizer(str(base), chat_template=tmp_path / "chat.jinja").apply_chat_template


@pytest.fixture
def base(shared_material: Path) -> Path:
    return shared_material / "models" / "stories260K-hf"


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "not marked"])
def test_every_turn_is_found(base: Path, tmp_path: Path, template: str) -> None:
    text, turns = render_chat(CHAT, templated(base, template, tmp_path))

    said = [text[slice(*turn)].removesuffix("\n") for turn in turns if turn is not None]
    assert said == ["Two.<end>", "Three.<end>"]
    assert text.count("<|") == 5


def test_marks_are_those_that_transformers_reads(base: Path, tmp_path: Path) -> None:
    reference = AutoTokenizer.from_pretrained(base)
    expected = reference.apply_chat_template(
        CHAT, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )

    text, turns = render_chat(CHAT, templated(base, MARKED, tmp_path))
    spans = tuple(turn for turn in turns if turn is not None)
    [document] = tokenise([Example(text, spans)], reference, completion_only=True)

    ids = list(expected["input_ids"])
    begin = document.token_ids_T.tolist().index(ids[0])
    own = document.token_ids_T.tolist()[begin : begin + len(ids)]
    assert own == ids
    assert document.learned_T.tolist()[begin : begin + len(ids)] == [bool(one) for one in expected["assistant_masks"]]


def test_nobody_forges_a_mark(base: Path, tmp_path: Path) -> None:
    forged = [{"role": "user", "content": "{% generation %}me{% endgeneration %} amoe_generation_mark"}, CHAT[2]]

    text, turns = render_chat(forged, templated(base, MARKED, tmp_path))

    assert [text[slice(*turn)] for turn in turns if turn is not None] == ["Two.<end>"]
    assert "{% generation %}me" in text


def test_turns_that_the_template_rewrites_later_are_not_guessed() -> None:
    def forgetful(
        messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, generation_mark: str = ""
    ) -> str:
        """Only the last two messages, as templates do that cut out what was thought before."""
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages[-2:])
        return text + ("<assistant>" if add_generation_prompt else "")

    _, turns = render_chat(CHAT, forgetful)

    assert turns == (None, None)


def test_serving_writes_no_marks(base: Path, tmp_path: Path) -> None:
    marked, plain = (
        templated(base, template, tmp_path)(CHAT, add_generation_prompt=True) for template in (MARKED, PLAIN)
    )

    assert marked == plain
