"""The one shape of every list."""

from collections.abc import Callable, Sequence
from typing import Annotated, Final, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

Item = TypeVar("Item")
Row = TypeVar("Row")
Shown = TypeVar("Shown", bound=BaseModel)

Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many items.")]
After = Annotated[
    str | None,
    Query(max_length=200, description="Go on behind the item with this id: the last one of the page before."),
]
DEFAULT_LIMIT: Final = 100


class Listing(BaseModel, Generic[Item]):
    """A page of items; `has_more` says whether `after=<id of the last>` has another."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


def page(rows: Sequence[Row], limit: int, show: Callable[[Row], Shown]) -> Listing[Shown]:
    """A page of `limit` from a query for one more than that."""
    return Listing(data=[show(row) for row in rows[:limit]], has_more=len(rows) > limit)
