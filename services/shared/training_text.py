"""Training files: records of `{"text"}`, `{"prompt", "completion"}` or `{"messages"}`, or plain text.

Records are JSON lines, CSV or Parquet (training_records.py). Every complaint names its line or row.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.shared.chat_turns import ChatTemplate, Span, render_chat
from services.shared.errors import InvalidDataset, InvalidRequest
from services.shared.training_records import RecordFile, TextLines, open_records

DOCUMENT_CHARACTERS: Final = 2000
"""Plain text is cut at blank lines into documents of about this length."""

_DIGEST_BYTES: Final = 8
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
_FORMS: Final = '{"text"}, {"prompt", "completion"} or {"messages"}'
_COLUMNS: Final = frozenset({"text", "prompt", "completion", "messages"})


@dataclass(frozen=True)
class Example:
    """One document. `completions` are the characters that answer something: a completion, or every turn of an
    assistant; none of them if they cannot be told apart; None where all text counts."""

    text: str
    completions: tuple[Span, ...] | None


def read_examples(path: Path, *, filename: str, chat_template: ChatTemplate | None = None) -> list[Example]:
    """All examples of a file. Raises InvalidDataset, with the line's number, at the first that cannot be used.

    `.jsonl` (and `.json`) are JSON lines, `.csv` and `.tsv` have a header, `.parquet` is Parquet, `.txt` and `.md` are
    plain text; of other names the first bytes decide.
    """
    return list(iterate_examples(path, filename=filename, chat_template=chat_template))


def count_examples(path: Path, *, filename: str, chat_template: ChatTemplate | None = None) -> int:
    """How many examples a file holds, without keeping them; raises as `read_examples` does."""
    return sum(1 for _ in iterate_examples(path, filename=filename, chat_template=chat_template))


def iterate_examples(path: Path, *, filename: str, chat_template: ChatTemplate | None = None) -> Iterator[Example]:
    """`read_examples` one at a time."""
    found = False
    records = open_records(path, filename=filename, columns=_COLUMNS, forms=_FORMS)
    template = chat_template or _plain_chat
    examples = _documents(TextLines(path, filename)) if records is None else _examples(records, template)
    for example in examples:
        found = True
        yield example
    if not found:
        raise InvalidDataset(
            f"{filename} is empty: it needs records of {_FORMS}, or plain text.", param="training_file"
        )


def text_digest(text: str) -> int:
    """64 bits that texts share which differ at most in the blanks around them: how repeated examples are found."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=_DIGEST_BYTES).digest(), "big")


def _examples(records: RecordFile, chat_template: ChatTemplate) -> Iterator[Example]:
    for fields in records:
        yield _example(fields, records, chat_template)


def _example(fields: Mapping[str, Any], records: RecordFile, chat_template: ChatTemplate) -> Example:
    forms = [form for form in ("text", "completion", "messages") if form in fields]
    if len(forms) != 1:
        keys = ", ".join(repr(key[:40]) for key in list(fields)[:6]) or "nothing"
        raise records.complaint(f"holds {keys}, but must be one of {_FORMS}.")
    if forms == ["text"]:
        return Example(_text(fields, "text", records), None)
    if forms == ["messages"]:
        return _conversation(fields["messages"], records, chat_template)
    prompt = _text(fields, "prompt", records, may_be_empty=True)
    text = prompt + _text(fields, "completion", records)
    return Example(text, ((len(prompt), len(text)),))


def _text(fields: Mapping[str, Any], key: str, records: RecordFile, *, may_be_empty: bool = False) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise records.complaint(f"{key!r} must be a string." if key in fields else f"{key!r} is missing.")
    if not value.strip() and not may_be_empty:
        raise records.complaint(f"{key!r} is empty.")
    if not _is_encodable(value):
        raise records.complaint(f"{key!r} holds half a surrogate pair (\\ud800…\\udfff); write the whole character.")
    return value


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conversation(messages: Any, records: RecordFile, chat_template: ChatTemplate) -> Example:
    if not isinstance(messages, list) or not messages:
        raise records.complaint("'messages' must be a list of at least one message.")
    checked = [_message(message, records) for message in messages]
    learned = [one.get("weight") != 0 for one in messages if one["role"] == "assistant"]
    if learned and not any(learned):
        raise records.complaint("every assistant message has weight 0, so there is nothing to learn; leave it out.")
    try:
        text, turns = render_chat(checked, chat_template)
    except InvalidRequest as error:
        raise records.complaint(error.message) from error
    if not turns:
        return Example(text, None)
    return Example(text, tuple(span for span, wanted in zip(turns, learned, strict=True) if wanted and span))


def _message(message: Any, records: RecordFile) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise records.complaint(f"each message needs a 'role' of {', '.join(sorted(_ROLES))}.")
    return {"role": message["role"], "content": _text(message, "content", records, may_be_empty=True)}


def _plain_chat(
    messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, generation_mark: str = ""
) -> str:
    text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    return f"{text}assistant: " if add_generation_prompt else text


def _documents(lines: TextLines) -> Iterator[Example]:
    parts: list[str] = []
    num_characters = 0
    for line in lines:
        parts.append(line)
        num_characters += len(line)
        full = num_characters >= DOCUMENT_CHARACTERS
        if (full and not line.strip()) or num_characters >= 4 * DOCUMENT_CHARACTERS:
            yield from _document(parts)
            parts, num_characters = [], 0
    yield from _document(parts)


def _document(parts: list[str]) -> Iterator[Example]:
    text = "".join(parts).strip("\r\n")
    if text.strip():
        yield Example(text, None)
