"""Training files: JSON lines of `{"text"}`, `{"prompt", "completion"}` or `{"messages"}`, or plain text.

Read line by line with a bound on the line, so that a bad file costs no memory; every complaint names its line.
"""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from services.shared.errors import InvalidDataset

MAX_LINE_BYTES: Final = 4 * 1024**2
DOCUMENT_CHARACTERS: Final = 2000
"""Plain text is cut at blank lines into documents of about this length."""

_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
_FORMS: Final = '{"text"}, {"prompt", "completion"} or {"messages"}'
_LFS_POINTER: Final = "version https://git-lfs"


@dataclass(frozen=True)
class Example:
    """One document. `completion_start` is the character where the completion begins; None: all text counts."""

    text: str
    completion_start: int | None


class ChatTemplate(Protocol):
    """Messages as text; `Tokenizer.apply_chat_template` is one."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str: ...


def read_examples(path: Path, *, filename: str, chat_template: ChatTemplate | None = None) -> list[Example]:
    """All examples of a file. Raises InvalidDataset, with the line's number, at the first that cannot be used.

    `.jsonl` (and `.json`) are JSON lines, `.txt` and `.md` plain text; of other names the first line decides.
    """
    return list(iterate_examples(path, filename=filename, chat_template=chat_template))


def count_examples(path: Path, *, filename: str) -> int:
    """How many examples a file holds, without keeping them; raises as `read_examples` does."""
    return sum(1 for _ in iterate_examples(path, filename=filename))


def iterate_examples(path: Path, *, filename: str, chat_template: ChatTemplate | None = None) -> Iterator[Example]:
    """`read_examples` one at a time."""
    found = False
    lines = _Lines(path, filename)
    examples = _json_examples(lines, chat_template or _plain_chat) if _is_jsonl(path, filename) else _documents(lines)
    for example in examples:
        found = True
        yield example
    if not found:
        raise InvalidDataset(f"{filename} is empty: it needs lines of {_FORMS}, or plain text.", param="training_file")


class _Lines:
    """The file's lines with numbers from 1, decoded; complaints about the one read last."""

    def __init__(self, path: Path, filename: str) -> None:
        self._path = path
        self._filename = filename
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                self._number += 1
                yield self._decoded(raw)

    def complaint(self, reason: str) -> InvalidDataset:
        """The error for the line read last."""
        return InvalidDataset(f"{self._filename} line {self._number}: {reason}", param="training_file")

    def _decoded(self, raw: bytes) -> str:
        if len(raw) > MAX_LINE_BYTES:
            raise self.complaint(f"longer than {MAX_LINE_BYTES:,} bytes; cut it into several.")
        if self._number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise self.complaint(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8 text.") from None
        if self._number == 1 and line.startswith(_LFS_POINTER):
            raise self.complaint("this is a Git-LFS pointer, not the file; run `git lfs pull` and upload again.")
        return line


def _is_jsonl(path: Path, filename: str) -> bool:
    suffix = Path(filename).suffix.lower()
    if suffix in {".jsonl", ".json", ".ndjson"}:
        return True
    if suffix in {".txt", ".md"}:
        return False
    with path.open("rb") as file:
        return file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def _json_examples(lines: _Lines, chat_template: ChatTemplate) -> Iterator[Example]:
    for line in lines:
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise lines.complaint(f"not JSON ({_reason(error)}); each line must be one object like {_FORMS}.") from None
        except RecursionError:
            raise lines.complaint(f"nested too deeply; each line must be one object like {_FORMS}.") from None
        if not isinstance(fields, dict):
            raise lines.complaint(f"a {type(fields).__name__}, not an object like {_FORMS}.")
        yield _example(fields, lines, chat_template)


def _reason(error: ValueError) -> str:
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)[:100]


def _example(fields: dict[str, Any], lines: _Lines, chat_template: ChatTemplate) -> Example:
    forms = [form for form in ("text", "completion", "messages") if form in fields]
    if len(forms) != 1:
        keys = ", ".join(repr(key[:40]) for key in list(fields)[:6]) or "nothing"
        raise lines.complaint(f"holds {keys}, but must be one of {_FORMS}.")
    if forms == ["text"]:
        return Example(_text(fields, "text", lines), None)
    if forms == ["messages"]:
        return _conversation(fields["messages"], lines, chat_template)
    prompt = _text(fields, "prompt", lines, may_be_empty=True)
    return Example(prompt + _text(fields, "completion", lines), len(prompt))


def _text(fields: Mapping[str, Any], key: str, lines: _Lines, *, may_be_empty: bool = False) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise lines.complaint(f"{key!r} must be a string." if key in fields else f"{key!r} is missing.")
    if not value.strip() and not may_be_empty:
        raise lines.complaint(f"{key!r} is empty.")
    if not _is_encodable(value):
        raise lines.complaint(f"{key!r} holds half a surrogate pair (\\ud800…\\udfff); write the whole character.")
    return value


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _conversation(messages: Any, lines: _Lines, chat_template: ChatTemplate) -> Example:
    if not isinstance(messages, list) or not messages:
        raise lines.complaint("'messages' must be a list of at least one message.")
    checked = [_message(message, lines) for message in messages]
    text = chat_template(checked, add_generation_prompt=False)
    if checked[-1]["role"] != "assistant":
        return Example(text, None)
    prompt = chat_template(checked[:-1], add_generation_prompt=True) if len(checked) > 1 else ""
    return Example(text, len(prompt) if text.startswith(prompt) else None)


def _message(message: Any, lines: _Lines) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise lines.complaint(f"each message needs a 'role' of {', '.join(sorted(_ROLES))}.")
    return {"role": message["role"], "content": _text(message, "content", lines, may_be_empty=True)}


def _plain_chat(messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
    text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    return f"{text}assistant: " if add_generation_prompt else text


def _documents(lines: _Lines) -> Iterator[Example]:
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
