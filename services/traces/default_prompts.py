"""The general prompts that come with the project, in five domains: `prompts.json` beside this file."""

from collections import Counter
from pathlib import Path
from typing import Final

from services.shared.schemas.trace import PromptsFile, TracePrompt, read_prompts_file

_FILE: Final = Path(__file__).with_name("prompts.json")


def default_prompts(*, per_domain: int) -> PromptsFile:
    """The first so many of every domain; at most eight are there."""
    whole = read_prompts_file(_FILE)
    counted: Counter[str] = Counter()
    chosen: list[TracePrompt] = []
    for prompt in whole.prompts:
        counted[prompt.domain] += 1
        if counted[prompt.domain] <= per_domain:
            chosen.append(prompt)
    return whole.model_copy(update={"prompts": tuple(chosen)})
