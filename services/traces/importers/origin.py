"""Which domain and which prompt a file belongs to: by what its owner says, else by the folders that it was in."""

import re
from pathlib import PurePosixPath
from typing import Final

from services.traces.importers.source_file import Reading
from services.traces.table import TracedSequence

UNLABELLED: Final = "unlabelled"
_DOMAIN_FOLDER: Final = re.compile(r"domain-\d+-(.+)")
_TRACES_FOLDER: Final = "traces"
_LONGEST: Final = 200


def origin(name: str, reading: Reading, *, domain: str | None = None) -> TracedSequence:
    """Of the file or folder of that name; `domain` is what it says itself, if it does."""
    path = PurePosixPath(name)
    steps = [step for step in path.parts if step != _TRACES_FOLDER]
    for known in (reading.options.domains, reading.domains):
        for key in (name, *map(str, path.parents), *reversed(path.parts)):
            if key in known:
                return TracedSequence(known[key], _prompt(steps))
    if domain:
        return TracedSequence(domain[:_LONGEST], _prompt(steps))
    for step in reversed(steps):
        if match := _DOMAIN_FOLDER.fullmatch(step):
            return TracedSequence(match.group(1)[:_LONGEST], _prompt(steps))
    return TracedSequence(reading.options.domain or UNLABELLED, _prompt(steps))


def _prompt(steps: list[str]) -> str:
    return "/".join(steps)[-_LONGEST:] or UNLABELLED
