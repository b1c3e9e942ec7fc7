"""How likely an answer is under a plan: its tokens read after its prompt as they stand (teacher-forced)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from services.router_service.admission import Admission
from services.router_service.at_once import at_once
from services.router_service.dispatch import Dispatcher
from services.router_service.metrics import Metrics
from services.shared.errors import ExpertServiceFailed
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import RoutingPlan, SequenceRequest

Logprobs = npt.NDArray[np.float64]

_FORCING: Final = 100.0
"""The largest bias there is: logits are not so far apart."""


@dataclass(frozen=True)
class WrittenAnswer:
    """A prompt and the tokens that were generated after it, at least one."""

    request_id: str
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    base_fingerprint: str | None
    deadline: float


class AnswerReader:
    """Has replicas read answers. Readings of one answer are sent together, so that they share passes."""

    def __init__(self, dispatcher: Dispatcher, admission: Admission, metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._metrics = metrics

    async def logprobs(self, answers: Sequence[tuple[WrittenAnswer, RoutingPlan]]) -> list[Logprobs]:
        """Log-probabilities [T] of each answer's tokens under the model's raw logits, in nats.

        The caller holds a place; the readings take as many more as are free, and wait for each other otherwise.
        """
        with self._admission.spare(len(answers) - 1) as num_more:
            readings = [
                self._read(answer, plan, request_id=f"{answer.request_id}-reading-{index}")
                for index, (answer, plan) in enumerate(answers)
            ]
            return await at_once(readings, limit=1 + num_more)

    async def _read(self, answer: WrittenAnswer, plan: RoutingPlan, *, request_id: str) -> Logprobs:
        """The last token is not read but chosen, by a bias that leaves no other: so the text is no longer than it was
        when it was generated, and fits the context. Reported log-probabilities are those before any bias."""
        *read_ids, last_id = answer.token_ids
        request = SequenceRequest(
            request_id=request_id,
            prompt_ids=(*answer.prompt_ids, *read_ids),
            sampling=SamplingParameters(max_new_tokens=1, logit_bias={last_id: _FORCING}),
            plan=plan,
            prompt_logprobs=bool(read_ids),
        )
        tokens, finished = await self._dispatcher.read(
            request, base_fingerprint=answer.base_fingerprint, deadline=answer.deadline
        )
        self._metrics.tokens.labels("reread").inc(len(answer.prompt_ids) + len(answer.token_ids))
        read = (finished.prompt_logprobs or ())[len(answer.prompt_ids) :]
        if len(read) != len(read_ids) or [token.id for token in tokens] != [last_id]:
            raise ExpertServiceFailed(
                "The expert service did not read the answer as it was written: send the request again.",
                code="answer_not_read",
            )
        return np.array([*read, tokens[0].logprob], dtype=np.float64)
