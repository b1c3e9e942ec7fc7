"""The base model answers first; the mixture only where the base was not sure of its answer."""

from services.router_service.answer import mean_logprob
from services.router_service.integration.composed_answer import ComposedAnswer
from services.router_service.schemas.generation import Integration, IntegrationCandidate, IntegrationReport
from services.shared.schemas.sequences import TokenEvent
from services.shared.vocabulary import BASE


class CascadeAnswer(ComposedAnswer):
    """The base's confidence is the mean log-probability of its answer's tokens, by raw logits, as they were chosen."""

    async def whole(self) -> list[list[TokenEvent]]:
        """The tokens of the base model's answer, or of the mixture's."""
        [base] = self.generations
        [tokens] = await super().whole()
        tried = [(BASE, base, tokens)]
        if self.parts.later and mean_logprob(tokens) < self.parts.cascade_threshold:
            tried.append((Integration.MIXTURE, *await self.another(self.parts.later[0])))
        _, given, tokens = tried[-1]
        candidates = [
            IntegrationCandidate(
                written_by=written_by,
                request_id=generation.record.id,
                score=mean_logprob(its_tokens),
                chosen=generation is given,
            )
            for written_by, generation, its_tokens in tried
        ]
        threshold = self.parts.cascade_threshold
        self.give(given, IntegrationReport(mode=Integration.CASCADE, candidates=candidates, threshold=threshold))
        return [tokens]
