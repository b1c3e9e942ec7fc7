"""Several complete answers by different experts, of which one is given."""

from collections import Counter
from collections.abc import Sequence

from services.router_service.integration.composed_answer import ComposedAnswer
from services.router_service.schemas.generation import (
    EnsembleChoice,
    Integration,
    IntegrationCandidate,
    IntegrationReport,
)
from services.shared.schemas.sequences import TokenEvent
from services.shared.vocabulary import BASE


class EnsembleAnswer(ComposedAnswer):
    """All answers are made at once and read again under the mixture, whose mean log-likelihood is their score."""

    async def whole(self) -> list[list[TokenEvent]]:
        """The tokens of the likeliest answer, or of the likeliest of those that most experts give."""
        members = self.generations
        tokens = await super().whole()
        readings = await self.parts.reader.logprobs([(member.written(), self.parts.mixture) for member in members])
        scores = [float(logprobs_T.mean()) for logprobs_T in readings]
        votes = None
        if self.parts.options.ensemble_choice is EnsembleChoice.VOTE:
            votes = count_votes([member.record.generated_text for member in members])
        chosen = choose(scores, votes)
        candidates = [
            IntegrationCandidate(
                written_by=next(iter(member.record.plan.candidates), BASE),
                request_id=member.record.id,
                score=scores[index],
                votes=votes[index] if votes else None,
                chosen=index == chosen,
            )
            for index, member in enumerate(members)
        ]
        self.give(members[chosen], IntegrationReport(mode=Integration.ENSEMBLE, candidates=candidates))
        return [tokens[chosen]]


def count_votes(texts: Sequence[str]) -> list[int]:
    """For each answer, how many say the same, itself included; case and white space do not count. Pure."""
    said = [" ".join(text.split()).casefold() for text in texts]
    counts = Counter(said)
    return [counts[text] for text in said]


def choose(scores: Sequence[float], votes: Sequence[int] | None) -> int:
    """The one with most votes, the highest score among equals; without votes the highest score. Pure."""
    return max(range(len(scores)), key=lambda index: (votes[index] if votes else 0, scores[index]))
