"""Who wrote an answer: shares of the gate's weight over its tokens. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from services.router_service.schemas.generation import ExpertShare
from services.shared.vocabulary import BASE

_ROUNDING: Final = 1e-5
"""Weights arrive rounded: so little left of 1 is not a share of the base model's."""


def attribute(gates_per_token: Sequence[Mapping[str, float]]) -> list[ExpertShare]:
    """Share and leading tokens of every expert that had weight, largest share first, and always of `base`.

    Each token counts the same. Within a token, weight is shared in proportion to its size; what the experts leave of
    1 is the base model's. Shares sum to 1; with no token there is nothing to attribute, and the list is empty.
    """
    if not gates_per_token:
        return []
    totals: defaultdict[str, float] = defaultdict(float)
    num_led: defaultdict[str, int] = defaultdict(int)
    for gates in gates_per_token:
        shares = token_shares(gates)
        for expert, share in shares.items():
            totals[expert] += share
        num_led[max(shares, key=shares.__getitem__)] += 1
    whole = sum(totals.values())
    named = [
        ExpertShare(expert=expert, share=total / whole, num_tokens=num_led[expert])
        for expert, total in totals.items()
        if total > 0.0 or expert == BASE
    ]
    return sorted(named, key=lambda part: (-part.share, part.expert))


def token_shares(gates: Mapping[str, float]) -> dict[str, float]:
    """One token's weights as shares that sum to 1, `base` included."""
    sizes = {expert: abs(weight) for expert, weight in gates.items() if expert != BASE}
    mixed = sum(sizes.values())
    # The base model always computes; a share is left for it where the experts' weights do not fill up 1.
    left = 1.0 - mixed if 1.0 - mixed > _ROUNDING else 0.0
    sizes[BASE] = max(0.0, gates[BASE]) if BASE in gates else left
    whole = sum(sizes.values())
    if whole <= 0.0:
        return {BASE: 1.0}
    return {expert: size / whole for expert, size in sizes.items()}
