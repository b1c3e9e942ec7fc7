"""`/v1/models`: the active release, every release, the base model, every expert and what jobs have made of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from services.router_service.api.examples import ERRORS
from services.router_service.api.openai_request import base_name
from services.router_service.dependencies import Resources, ResourcesDep
from services.router_service.model_names import expert_model, fine_tuned_model, unknown_model
from services.router_service.schemas.listing import After, Listing
from services.router_service.schemas.openai_models import Model, ModelRouting
from services.router_service.schemas.openai_requests import ACTIVE_MODEL
from services.shared.database.rows import ExpertRow, ExpertVersionRow, ReleaseRow
from services.shared.vocabulary import VersionStatus

router = APIRouter(prefix="/v1/models", tags=["openai"], responses=ERRORS)

_STARTED: Final = int(time.time())
"""The base model and the model that is always there have no date of their own."""


@dataclass(frozen=True)
class Registered:
    """What the registry has that can be a model."""

    releases: Sequence[tuple[int, str, datetime]]
    experts: Sequence[tuple[str, int, datetime]]
    trained: Sequence[tuple[str, int, str, datetime]]
    """Expert, version, the job that made it, when."""


@router.get("")
async def list_models(
    resources: ResourcesDep,
    limit: Annotated[int, Query(ge=1, le=100_000, description="At most so many; OpenAI's clients want all.")] = 10_000,
    after: After = None,
) -> Listing[Model]:
    """The active release first, then the base model, releases from the newest on, experts by name, what jobs made."""
    models = await _models(resources)
    ids = [model.id for model in models]
    if after is not None and after not in ids:
        raise unknown_model(after)
    start = ids.index(after) + 1 if after is not None else 0
    return Listing(data=models[start : start + limit], has_more=len(models) > start + limit)


@router.get("/{model:path}")
async def get_model(model: str, resources: ResourcesDep) -> Model:
    """One of them."""
    models = await _models(resources)
    found = next((known for known in models if known.id == model), None)
    if found is None:
        raise unknown_model(model, [known.id for known in models])
    return found


async def _models(resources: Resources) -> list[Model]:
    registered = await resources.transactions.run(_read)
    base, hosted = base_name(resources), resources.replicas.base
    snapshot = resources.catalog.latest
    active = snapshot.release.id if snapshot and snapshot.release else None

    def model(name: str, routing: ModelRouting, created: int = _STARTED) -> Model:
        return Model(
            id=name,
            created=created,
            root=name,
            parent=None if routing.kind == "base" else base,
            max_model_len=hosted.max_context if hosted else resources.tokenizer.max_context,
            routing=routing,
        )

    return [
        model(ACTIVE_MODEL, ModelRouting(kind="active", release=active)),
        model(base, ModelRouting(kind="base")),
        *(
            model(f"release-{number}", ModelRouting(kind="release", status=VersionStatus(status)), _seconds(at))
            for number, status, at in registered.releases
        ),
        *(
            model(expert_model(base, name), ModelRouting(kind="expert", version=version), _seconds(at))
            for name, version, at in registered.experts
        ),
        *(
            model(fine_tuned_model(base, name, job_id), ModelRouting(kind="expert", version=version), _seconds(at))
            for name, version, job_id, at in registered.trained
        ),
    ]


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _read(session: Session) -> Registered:
    releases = select(ReleaseRow.number, ReleaseRow.status, ReleaseRow.created_at).order_by(ReleaseRow.number.desc())
    newest = func.max(ExpertVersionRow.version), func.max(ExpertVersionRow.created_at)
    experts = (
        select(ExpertRow.name, *newest)
        .join(ExpertVersionRow, ExpertVersionRow.expert_name == ExpertRow.name)
        .where(ExpertRow.retired_at.is_(None))
        .group_by(ExpertRow.name)
        .order_by(ExpertRow.name)
    )
    version = ExpertVersionRow
    trained = (
        select(version.expert_name, version.version, version.job_id, version.created_at)
        .join(ExpertRow, ExpertRow.name == version.expert_name)
        .where(ExpertRow.retired_at.is_(None), version.job_id.is_not(None))
        .order_by(version.expert_name, version.version)
    )
    return Registered(
        releases=[(number, status, at) for number, status, at in session.execute(releases)],
        experts=[(name, newest, at) for name, newest, at in session.execute(experts)],
        trained=[(name, number, job_id, at) for name, number, job_id, at in session.execute(trained) if job_id],
    )
