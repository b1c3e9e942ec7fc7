"""A name for the expert that would fill a gap, by the requirements' rule (Step 17): lower case, what is no letter or
digit becomes `_`, runs of it one, the domain in front, at most 50 characters, `_expert` at the end."""

import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import chain, count
from typing import Final

from services.shared.vocabulary import UNKNOWN

MAX_PROPOSED_LENGTH: Final = 50
_SUFFIX: Final = "_expert"


def propose_name(domain: str, words: Sequence[str], *, taken: Collection[str], otherwise: str) -> str:
    """A name that nobody in `taken` has, of the domain and the first two words; of `otherwise` where they say nothing.

    A domain that is `unknown` is none: the words alone name it.
    """
    prefix = "" if domain == UNKNOWN else _plain(domain)
    rest = "_".join(word for word in map(_plain, words) if word and word not in prefix.split("_"))
    rest = "_".join(rest.split("_")[:2])
    stem = "_".join(filter(None, (prefix, rest))) or _plain(f"{UNKNOWN}_{otherwise}")
    for number in chain([""], (f"_{number}" for number in count(2))):
        end = f"{number}{_SUFFIX}"
        name = f"{stem[: MAX_PROPOSED_LENGTH - len(end)].strip('_')}{end}"
        if name not in taken:
            return name
    raise AssertionError("numbers do not end")


def _plain(text: str) -> str:
    """Lower case in ASCII, everything else as one `_`, none at the ends."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text).strip("_")
