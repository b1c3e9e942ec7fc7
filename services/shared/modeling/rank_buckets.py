"""Ranks that adapters are padded to, so that experts of mixed ranks lie side by side without odd widths."""

from typing import Final

RANK_BUCKETS: Final = (4, 8, 16, 32, 64, 128, 256)


def bucket_of(rank: int) -> int:
    """The smallest bucket that holds `rank`; beyond the last one the rank itself."""
    return next((bucket for bucket in RANK_BUCKETS if bucket >= rank), rank)
