"""Whether a gap grows: its requests by day, and in the second half of the window against the first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Trend:
    """Requests by day (UTC), those of the window's halves, and the ratio of these, one request added to both."""

    by_day: dict[str, int]
    num_first_half: int
    num_second_half: int

    @property
    def ratio(self) -> float:
        """Above 1: more and more. The request added keeps it finite, and near 1 where there are few."""
        return (self.num_second_half + 1) / (self.num_first_half + 1)


def trend_of(moments: Sequence[datetime], *, since: datetime, until: datetime) -> Trend:
    """Of requests that came in the window from `since` to `until`."""
    middle = since + (until - since) / 2
    num_late = sum(moment >= middle for moment in moments)
    days = Counter(moment.astimezone(UTC).date().isoformat() for moment in moments)
    return Trend(dict(sorted(days.items())), len(moments) - num_late, num_late)
