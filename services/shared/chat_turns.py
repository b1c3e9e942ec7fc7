"""Which characters of a rendered chat are an assistant's: what a training on completions learns."""

import secrets
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any, Protocol

Span = tuple[int, int]
"""From a character to the one after the last."""


class ChatTemplate(Protocol):
    """Messages as text; `Tokenizer.apply_chat_template` is one.

    `generation_mark` is written before and after everything that the template encloses in `{% generation %}`.
    """

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, generation_mark: str = ""
    ) -> str: ...


def render_chat(messages: Sequence[Mapping[str, Any]], template: ChatTemplate) -> tuple[str, tuple[Span | None, ...]]:
    """The chat as text, and for each assistant message in turn where it stands; None where that cannot be told.

    A template says it with `{% generation %}`, as transformers' `return_assistant_tokens_mask` reads it. Of others, the
    chat up to a turn is rendered with and without the turn: what one has beyond the other is the assistant's, if both
    are a beginning of the whole. Templates that change earlier turns (they cut reasoning out, say) fail that.
    """
    # Nobody can write into a message what is drawn here.
    mark = secrets.token_hex(16)
    pieces = template(messages, add_generation_prompt=False, generation_mark=mark).split(mark)
    text = "".join(pieces)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(pieces) == 2 * len(turns) + 1 and turns:
        return text, tuple(_marked(pieces))
    return text, tuple(_rendered_apart(text, messages, index, template) for index in turns)


def _marked(pieces: Sequence[str]) -> list[Span | None]:
    spans: list[Span | None] = []
    position = 0
    for number, piece in enumerate(pieces):
        if number % 2:
            spans.append((position, position + len(piece)) if piece else None)
        position += len(piece)
    return spans


def _rendered_apart(
    text: str, messages: Sequence[Mapping[str, Any]], index: int, template: ChatTemplate
) -> Span | None:
    before = template(messages[:index], add_generation_prompt=True) if index else ""
    until = template(messages[: index + 1], add_generation_prompt=False)
    # The end of the last turn may be written otherwise than that of one in the middle.
    end = len(commonprefix([text, until]))  # noqa: RUF071 - of characters, not of paths
    return (len(before), end) if text.startswith(before) and end > len(before) else None
