"""What jobs have trained, by the names that OpenAI's API gives it: exact versions and checkpoints, not the newest."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from services.router_service.model_names import FineTunedName
from services.router_service.transactions import Transactions
from services.shared.database.rows import JobRow
from services.shared.schemas.sequences import ExpertRef
from services.shared.vocabulary import JobKind, JobStatus

_MAX_KNOWN: Final = 1024


class FineTunedModels:
    """Finds them. What a name stands for never changes, so the last few are remembered, also while Postgres is down."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._known: OrderedDict[FineTunedName, ExpertRef] = OrderedDict()

    async def find(self, name: FineTunedName) -> ExpertRef | None:
        """The expert's version, or None when no job has made it. Whether the expert is still in use is not asked."""
        if name not in self._known:
            found = await self._transactions.run(_read, name)
            if found is None:
                return None
            self._known[name] = found
        self._known.move_to_end(name)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return self._known[name]


def _read(session: Session, name: FineTunedName) -> ExpertRef | None:
    made_it = select(JobRow).where(
        JobRow.id.startswith(f"job-{name.job}", autoescape=True),
        JobRow.kind == JobKind.EXPERT.value,
        JobRow.status == JobStatus.SUCCEEDED.value,
        JobRow.spec["name"].astext == name.expert,
    )
    row = session.scalar(made_it.limit(1))
    if row is None or row.result is None:
        return None
    digest = row.result["digest"] if name.step is None else _checkpoint(row.result, name.step)
    return ExpertRef(name=name.expert, version=row.result["version"], digest=digest) if digest else None


def _checkpoint(result: Mapping[str, Any], step: int) -> str | None:
    digests: dict[int, str] = {kept["step"]: kept["digest"] for kept in result.get("checkpoints", ())}
    return digests.get(step)
