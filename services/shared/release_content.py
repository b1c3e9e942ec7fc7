"""What a release serves, and the one name of it: equal content has an equal digest, in whichever database it lies."""

import hashlib
import json
from dataclasses import dataclass

_FORMAT = 1


@dataclass(frozen=True)
class ReleaseContent:
    """Everything that decides what a release answers. Versions are numbers of one database and do not belong to it."""

    base_fingerprint: str
    router: str
    graph: str | None
    calibration: str | None
    experts: tuple[tuple[str, str], ...]
    """Name and digest of each expert, in the order of the gate's columns."""

    @property
    def digest(self) -> str:
        """SHA-256 over the content as canonical JSON."""
        content = {
            "format": _FORMAT,
            "base_fingerprint": self.base_fingerprint,
            "router": self.router,
            "graph": self.graph,
            "calibration": self.calibration,
            "experts": self.experts,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def artifacts(self) -> tuple[str, ...]:
        """The digests of all artifacts that it takes, each once, in a fixed order."""
        named = (self.router, self.graph, self.calibration, *(digest for _, digest in self.experts))
        return tuple(dict.fromkeys(digest for digest in named if digest is not None))
