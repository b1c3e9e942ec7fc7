"""Which token may be a stream's last: TGI tells how it ended in the last token's own event."""

from collections.abc import Collection

from services.shared.schemas.sequences import TokenEvent


class StreamEnd:
    """Says which tokens to hold back until it is known whether another follows.

    A stream ends with its last allowed token or with an end-of-text token, which are known at sight. A stop string ends
    it at any token, so with stop strings each token waits for the next.
    """

    def __init__(self, max_new_tokens: int, eos_ids: Collection[int], *, stop: Collection[str]) -> None:
        self._max_new_tokens = max_new_tokens
        self._eos_ids = frozenset(eos_ids)
        self._may_stop_anywhere = bool(stop)

    def may_be(self, event: TokenEvent) -> bool:
        """True when no token may follow this one."""
        is_full = event.index + 1 >= self._max_new_tokens
        return self._may_stop_anywhere or is_full or event.id in self._eos_ids
