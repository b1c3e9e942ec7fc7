"""What jobs have trained, by the names that OpenAI's API gives it: exact versions and checkpoints, not the newest."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.router_service.model_names import FineTunedName
from services.router_service.transactions import Transactions
from services.shared.database.rows import ExpertRow, ExpertVersionRow, JobRow
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import JobKind, JobStatus

_MAX_KNOWN: Final = 1024


@dataclass(frozen=True)
class FineTuned:
    """What a name stands for. A checkpoint may be of an expert that is not registered: its training runs, or failed."""

    version: ExpertRef
    is_registered: bool
    is_final: bool
    """That it will stand for this for ever: a training that is resumed on a GPU may come to other weights."""


class FineTunedModels:
    """Finds them. What an ended job's name stands for never changes, so the last few are remembered, also while
    Postgres is down."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._known: OrderedDict[FineTunedName, FineTuned] = OrderedDict()

    async def find(self, name: FineTunedName) -> FineTuned | None:
        """The expert's version, or None when no job has made it, or its expert was retired before any did."""
        if name in self._known:
            self._known.move_to_end(name)
            return self._known[name]
        found = await self._transactions.run(_read, name)
        if found is not None and found.is_registered and found.is_final:
            self._known[name] = found
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return found


def _read(session: Session, name: FineTunedName) -> FineTuned | None:
    made_it = select(JobRow).where(
        JobRow.id.startswith(f"job-{name.job}", autoescape=True),
        JobRow.kind == JobKind.EXPERT.value,
        JobRow.spec["name"].astext == name.expert,
    )
    row = session.scalar(made_it.limit(1))
    digest = _digest(row, name.step) if row is not None else None
    expert = session.get(ExpertRow, name.expert)
    if row is None or digest is None or (expert is not None and expert.retired_at is not None):
        return None
    version = row.result["version"] if row.result else _next_version(session, name.expert)
    return FineTuned(
        ExpertRef(name=name.expert, version=version, digest=digest),
        is_registered=expert is not None,
        is_final=JobStatus(row.status).is_final,
    )


def _digest(row: JobRow, step: int | None) -> str | None:
    if step is None:
        return str(row.result["digest"]) if row.status == JobStatus.SUCCEEDED and row.result else None
    digests: dict[int, str] = {kept["step"]: kept["digest"] for kept in row.checkpoints or ()}
    return digests.get(step)


def _next_version(session: Session, expert: str) -> int:
    """What the job's version will be if it succeeds before others: a number for logs, no name of anything."""
    newest = select(func.max(ExpertVersionRow.version)).where(ExpertVersionRow.expert_name == expert)
    return (session.scalar(newest) or 0) + 1
