"""Past requests in the routing log, with the demo base's own states of real demo prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import RequestRow
from services.shared.packed_states import pack_states

KNOWN = ("code", "creative", "factual", "math", "mixed")
UNKNOWN = ("chess_notation", "law", "recipes", "sql")
WIDTH = 192


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt and the mean of its hidden states after two layers, [D]."""

    text: str
    states_D: np.ndarray


@dataclass
class Traffic:
    """Writes requests. Every prompt is sent once; `ids` says which domain each request was really of."""

    sessions: sessionmaker[Session]
    prompts: Mapping[str, Sequence[ReadPrompt]]
    release: str
    really: dict[str, str] = field(default_factory=dict)
    _sent: dict[str, int] = field(default_factory=dict)
    _numbers: count = field(default_factory=count)

    def send(
        self,
        domain: str,
        num: int,
        *,
        flagged: bool,
        ago: timedelta = timedelta(hours=1),
        stored: bool = True,
        suffix: str = "",
    ) -> list[str]:
        """Requests of that domain, a second apart; the flagged ones' losses are higher. Their ids."""
        start = self._sent.get(domain, 0)
        self._sent[domain] = start + num
        chosen = self.prompts[domain][start : start + num]
        assert len(chosen) == num, f"there are only {len(self.prompts[domain])} prompts of {domain}"
        rows = [self._row(domain, prompt, flagged=flagged, stored=stored, suffix=suffix) for prompt in chosen]
        for place, row in enumerate(rows):
            row.at = datetime.now(UTC) - ago + timedelta(seconds=place)
        with self.sessions.begin() as session:
            session.add_all(rows)
            return [row.id for row in rows]

    def ordinary(self, num_each: int = 12, *, ago: timedelta = timedelta(hours=2)) -> None:
        """Requests of all domains that the demo knows."""
        for domain in KNOWN:
            self.send(domain, num_each, flagged=False, ago=ago)

    def _row(self, domain: str, prompt: ReadPrompt, *, flagged: bool, stored: bool, suffix: str) -> RequestRow:
        number = next(self._numbers)
        request_id = f"r{number:05}"
        self.really[request_id] = domain
        nats = (3.0 if flagged else 1.0) + number % 5 / 10
        expert = "factual" if flagged else domain
        return RequestRow(
            id=request_id,
            endpoint="/generate",
            release=self.release,
            plan={},
            prompt=prompt.text + suffix if stored else None,
            generated_text=None,
            parameters={},
            num_prompt_tokens=10,
            num_generated_tokens=4,
            confidence=0.1,
            attribution=[
                {"expert": "base", "share": 0.6, "num_tokens": 2},
                {"expert": expert, "share": 0.4, "num_tokens": 2},
            ],
            token_log=None,
            finish_reason="length",
            error=None,
            timings={},
            flagged=flagged,
            domain=None if flagged else domain,
            domain_probability=0.3,
            states=pack_states(prompt.states_D),
            prompt_nats=nats,
            base_nats=nats + 0.1,
        )
