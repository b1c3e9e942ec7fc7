"""Which replica a plan goes to: adapter affinity first, then the better of two choices by load. Pure.

Loads are a second old, and other router services see the same ones: if everybody took the least loaded replica, it
would be flooded until the next look. Two drawn at random, the better one taken, spreads nearly as well without that
(M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
"""

from collections.abc import Collection, Sequence
from random import Random
from typing import Final

from services.router_service.replica import Replica

_CHOICES: Final = 2


def ranked(replicas: Sequence[Replica], wanted: Collection[str], draw: Random) -> list[Replica]:
    """Best first for a plan with these adapters; then the other ones that are up, by cost; those that are down last.

    Two are drawn from those that lack the fewest adapters and two from the others, so that a replica with all of them
    is always considered, and left when it is much busier than others.
    """
    up = [replica for replica in replicas if replica.is_up]
    drawn = _drawn(up, wanted, draw)
    rest = draw.sample(up, len(up))
    down = [replica for replica in replicas if not replica.is_up]
    by_cost = [*_sorted(drawn, wanted), *_sorted([replica for replica in rest if replica not in drawn], wanted)]
    return [*by_cost, *draw.sample(down, len(down))]


def _drawn(replicas: Sequence[Replica], wanted: Collection[str], draw: Random) -> list[Replica]:
    fewest = min((replica.num_missing(wanted) for replica in replicas), default=0)
    holders = [replica for replica in replicas if replica.num_missing(wanted) == fewest]
    others = [replica for replica in replicas if replica not in holders]
    return [replica for group in (holders, others) for replica in draw.sample(group, min(_CHOICES, len(group)))]


def _sorted(replicas: Sequence[Replica], wanted: Collection[str]) -> list[Replica]:
    return sorted(replicas, key=lambda replica: replica.cost(wanted))
