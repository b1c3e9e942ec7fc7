"""The data that an expert for a gap would need: of what kind, how much, and in which form."""

from collections.abc import Sequence
from typing import Any, Final

FEWEST_EXAMPLES: Final = 100
MOST_EXAMPLES: Final = 500
NUM_SHOWN: Final = 5
_COMPLETION: Final = "<the right answer>"
_HARD_NATS: Final = 2.0
"""Above known domains by so much, and a gap is as hard as any."""
_VARIED: Final = 200
"""So many prompts, and a gap is as varied as any."""


def num_examples(num_prompts: int, nats_above_known: float | None) -> int:
    """100 to 500 in tens: half of what is between for how hard it is (unknown: half as hard), half for how much of it
    there is."""
    hardness = 0.5 if nats_above_known is None else min(max(nats_above_known / _HARD_NATS, 0.0), 1.0)
    variety = min(num_prompts / _VARIED, 1.0)
    between = (MOST_EXAMPLES - FEWEST_EXAMPLES) * (hardness + variety) / 2
    return FEWEST_EXAMPLES + 10 * round(between / 10)


def data_request(
    *, keywords: Sequence[str], typical: Sequence[str] | None, num_prompts: int, nats_above_known: float | None
) -> dict[str, Any]:
    """What to ask a person or a teacher for. `typical` prompts are None where prompts are not kept."""
    about = f" about {', '.join(keywords[:5])}" if keywords else ""
    kind = f"Prompts{about} like those that were flagged, as people write them, each with its right completion."
    if typical is None:
        kind += " The prompts themselves were not kept, so there is none to show."
    return {
        "kind": kind,
        "format": {"prompt": "text that is asked", "completion": "text that answers it"},
        "num_examples": num_examples(num_prompts, nats_above_known),
        "examples": [{"prompt": prompt, "completion": _COMPLETION} for prompt in (typical or ())[:NUM_SHOWN]],
    }
