"""The demo's own generators as teachers of the domains that base model and experts have never seen."""

import json
from dataclasses import dataclass

from services.shared.errors import JobFailed
from services.trainer_worker.demo.domains import DOMAINS, HELD_BACK_DOMAINS, Domain
from services.trainer_worker.expert_creation.data_request import DataRequest


@dataclass(frozen=True)
class DemoTeacher:
    """Writes items of one domain's training split; the same for the same number."""

    domain: Domain
    examples_per_request: int = 50

    @classmethod
    def of(cls, domain: str) -> "DemoTeacher":
        """The teacher of a held-back domain. Raises JobFailed for any other."""
        if domain not in HELD_BACK_DOMAINS:
            raise JobFailed(
                f"The demo has no held-back domain {domain!r}: it has {', '.join(HELD_BACK_DOMAINS)}.",
                param="teacher",
                code="unknown_teacher",
            )
        return cls(DOMAINS[domain])

    def ask(self, request: DataRequest, *, count: int, number: int) -> str:
        """`count` items as JSON lines; what is asked for beyond the domain is not heard."""
        items = self.domain.generate(number, count, "train")
        return "".join(json.dumps({"prompt": item.prompt, "completion": item.completion}) + "\n" for item in items)
