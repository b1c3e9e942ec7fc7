"""What must not be repeated from prompts, by the operator's rules (setting `gaps.redact`)."""

import re
from collections.abc import Sequence
from typing import Final

REDACTED: Final = "[redacted]"
_SHOWN_CHARACTERS: Final = 500


class Redaction:
    """Replaces what any of the patterns matches."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def words_of(self, text: str) -> str:
        """The text without it."""
        return self._replace(text, " ")

    def shown(self, text: str) -> str:
        """The text with a mark in its place, no longer than a report wants it."""
        redacted = self._replace(text, REDACTED)
        return redacted if len(redacted) <= _SHOWN_CHARACTERS else f"{redacted[: _SHOWN_CHARACTERS - 1]}…"

    def _replace(self, text: str, by: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub(lambda _match: by, text)
        return text
