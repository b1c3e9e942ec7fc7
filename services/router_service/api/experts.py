"""`/experts`: what is registered, and how an adapter from elsewhere gets there."""

from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from services.router_service.api.examples import ERRORS
from services.router_service.dependencies import Resources, ResourcesDep
from services.router_service.expert_import import ExpertImport, ExpertUpload, UploadedFile
from services.router_service.schemas.listing import DEFAULT_LIMIT, After, Limit, Listing, page
from services.router_service.schemas.registry import Deleted, Expert, ExpertVersion, ImportedExpert
from services.router_service.uploads import safe_filename
from services.shared.database.rows import ExpertRow, ExpertVersionRow
from services.shared.errors import InvalidRequest
from services.shared.registry import find_expert, retire_expert
from services.shared.vocabulary import BASE, NAME_PATTERN

router = APIRouter(prefix="/experts", tags=["experts"], responses=ERRORS)

Name = Annotated[str, Form(pattern=NAME_PATTERN, description="Lower case, digits, `_` and `-`; not `base`.")]


@router.get("")
async def list_experts(
    resources: ResourcesDep,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    retired: Annotated[bool, Query(description="Also those that are retired.")] = False,  # noqa: FBT002
) -> Listing[Expert]:
    """By name."""
    rows = await resources.transactions.run(_list, limit=limit + 1, after=after, with_retired=retired)
    return page(rows, limit, lambda row: shown(row, resources))


@router.get("/{name}")
async def get_expert(name: str, resources: ResourcesDep) -> Expert:
    """One expert with all its versions."""
    return shown(await resources.transactions.run(find_expert, name), resources)


@router.post("", status_code=201)
async def import_expert(  # noqa: PLR0913, PLR0917 - the fields of the form
    name: Name,
    files: Annotated[
        list[UploadFile], File(description="adapter_config.json and adapter_model.safetensors, as PEFT saves them.")
    ],
    resources: ResourcesDep,
    exemplars: Annotated[
        UploadFile | None, File(description="Texts of its domain: without them it cannot be routed to, only named.")
    ] = None,
    domain: Annotated[str | None, Form(max_length=200)] = None,
    description: Annotated[str, Form(max_length=2000)] = "",
    add_to_release: Annotated[bool, Form(description="Make a release with it.")] = False,  # noqa: FBT002
    activate: Annotated[bool, Form(description="Activate that release.")] = False,  # noqa: FBT002
) -> ImportedExpert:
    """Import a PEFT LoRA adapter (safetensors) as the next version of `name`; a replica verifies it first."""
    upload = ExpertUpload(
        name=name,
        domain=domain,
        description=description,
        files=[_part(file) for file in files],
        exemplars=_part(exemplars) if exemplars else None,
        add_to_release=add_to_release,
        activate=activate,
    )
    _check(upload)
    result = await importer(resources).run(upload)
    await resources.catalog.try_refresh()
    expert = shown(await resources.transactions.run(find_expert, name), resources)
    return ImportedExpert(**expert.model_dump(), release=result.release)


@router.delete("/{name}")
async def delete_expert(name: str, resources: ResourcesDep) -> Deleted:
    """Retire an expert: it is no longer offered. Refused while the active release needs it; its versions are kept."""
    await resources.transactions.run(retire_expert, name)
    await resources.catalog.try_refresh()
    await resources.pins.apply()
    return Deleted(id=name, object="expert")


@router.post("/{name}/pin")
async def pin_expert(name: str, resources: ResourcesDep) -> Expert:
    """Keep an expert in a slot on every replica; 409 where there is no room, as one slot stays free for others."""
    await resources.pins.pin(name)
    return shown(await resources.transactions.run(find_expert, name), resources)


@router.delete("/{name}/pin")
async def unpin_expert(name: str, resources: ResourcesDep) -> Expert:
    """Let an expert be evicted again when others need its slot."""
    await resources.pins.unpin(name)
    return shown(await resources.transactions.run(find_expert, name), resources)


def _check(upload: ExpertUpload) -> None:
    refuse_base_name(upload.name, param="name")
    if upload.activate and not upload.add_to_release:
        raise InvalidRequest("activate needs add_to_release: a release is what is activated.", param="activate")


def refuse_base_name(name: str, *, param: str) -> None:
    """No expert can be called what the base model is called."""
    if name == BASE:
        raise InvalidRequest(f"{BASE!r} is the base model's own name: choose another.", param=param)


def _part(file: UploadFile) -> UploadedFile:
    return UploadedFile(filename=safe_filename(file.filename), content=file.file)


def importer(resources: Resources) -> ExpertImport:
    """What takes adapters into the registry."""
    return ExpertImport(
        transactions=resources.transactions,
        storage=resources.storage,
        tokenizer=resources.tokenizer,
        replicas=resources.replicas,
        max_upload_bytes=resources.settings.storage.max_upload_bytes,
        check_release=resources.catalog.read,
    )


def _list(session: Session, *, limit: int, after: str | None, with_retired: bool) -> list[ExpertRow]:
    query = select(ExpertRow).order_by(ExpertRow.name).limit(limit).options(selectinload(ExpertRow.versions))
    if after is not None:
        query = query.where(ExpertRow.name > after)
    if not with_retired:
        query = query.where(ExpertRow.retired_at.is_(None))
    return list(session.scalars(query))


def shown(row: ExpertRow, resources: Resources) -> Expert:
    """The row as the API tells it."""
    snapshot = resources.catalog.latest
    speaking = snapshot.release.experts if snapshot and snapshot.release else ()
    return Expert(
        id=row.name,
        name=row.name,
        domain=row.domain,
        description=row.description,
        retired=row.retired_at is not None,
        pinned=row.pinned_at is not None,
        active_version=next((expert.version for expert in speaking if expert.name == row.name), None),
        latest_version=max((version.version for version in row.versions), default=0),
        created_at=row.created_at,
        versions=[_shown_version(version) for version in row.versions],
    )


def _shown_version(row: ExpertVersionRow) -> ExpertVersion:
    return ExpertVersion.model_validate(row, from_attributes=True)
