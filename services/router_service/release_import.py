"""A release that comes as an archive: unpacked, verified, published, and only then registered; or nothing of it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import BinaryIO

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.router_service.release_archive import ArchivedExpert, InvalidArchive, Manifest, read_archive
from services.router_service.release_making import base_of
from services.router_service.replicas import Replicas
from services.router_service.transactions import Transactions, plain_text
from services.shared.database.rows import ExpertRow, ExpertVersionRow, ReleaseRow
from services.shared.errors import Conflict, InvalidAdapter
from services.shared.garbage import withdraw_artifact
from services.shared.modeling.router_artifact import read_router_file
from services.shared.registry import active_release, create_release, register_expert
from services.shared.schemas.sequences import AdapterReport, BaseModelInfo
from services.shared.storage import Published, Storage

Reports = Mapping[str, AdapterReport]
"""What a replica found in each adapter, by digest."""


class ReleaseImport:
    """Takes archives into storage and registry."""

    def __init__(
        self,
        *,
        transactions: Transactions,
        storage: Storage,
        replicas: Replicas,
        check_release: Callable[[ReleaseRow], object],
    ) -> None:
        self._transactions = transactions
        self._storage = storage
        self._replicas = replicas
        self._check_release = check_release

    async def run(self, archive: BinaryIO) -> ReleaseRow:
        """The staged release; its experts are versions of those of the same name, new ones where they were not known.

        Raises InvalidArchive or InvalidAdapter, and Conflict for a release of another base model.
        """
        base = await self._transactions.run(_base, self._replicas.base)
        published: list[Published] = []
        try:
            manifest = await asyncio.to_thread(self._publish, archive, base[1], published)
            reports = {digest: await self._verify(name, digest) for name, digest in manifest.content.experts}
            return await self._transactions.run(self._register, manifest, reports, base)
        except Exception:
            for artifact in published:
                await self._transactions.run(withdraw_artifact, self._storage, artifact)
            raise

    def _publish(self, archive: BinaryIO, fingerprint: str, published: list[Published]) -> Manifest:
        def check(manifest: Manifest) -> None:
            if manifest.base_fingerprint != fingerprint:
                raise Conflict(
                    f"The release was made for another base model ({manifest.base_model}, "
                    f"{manifest.base_fingerprint[:12]}…; here {fingerprint[:12]}…).",
                    param="archive",
                    code="base_model_mismatch",
                )

        with self._storage.stage() as staged:
            manifest = read_archive(archive, staged, check=check)
            for digest in manifest.artifacts:
                published.append(self._storage.put(staged / digest))
        return manifest

    async def _verify(self, name: str, digest: str) -> AdapterReport:
        try:
            return await self._replicas.check_adapter(digest)
        except InvalidAdapter as error:
            raise InvalidAdapter(f"Expert {name!r}: {error.message}", param="archive") from error

    def _register(self, session: Session, manifest: Manifest, reports: Reports, base: tuple[str, str]) -> ReleaseRow:
        versions = [_version(session, expert, reports[expert.digest]) for expert in manifest.experts]
        for digest in manifest.artifacts:
            if not self._storage.hold(digest):
                raise InvalidArchive(f"Artifact {digest} was removed meanwhile: import the archive again.")
        row = create_release(
            session,
            base_model=base[0],
            base_fingerprint=base[1],
            router_digest=manifest.router,
            router_kind=read_router_file(self._storage.artifact(manifest.router)).kind,
            graph_digest=manifest.graph,
            calibration_digest=manifest.calibration,
            version_ids=[version.id for version in versions],
            note=plain_text(manifest.note),
            evaluation=manifest.evaluation,
        )
        self._check_release(row)
        return row


def _base(session: Session, hosted: BaseModelInfo | None) -> tuple[str, str]:
    return base_of(active_release(session), hosted)


def _version(session: Session, expert: ArchivedExpert, report: AdapterReport) -> ExpertVersionRow:
    """The version that has this content already, in use again if it was retired; else the next one."""
    known = select(ExpertVersionRow).where(
        ExpertVersionRow.expert_name == expert.name,
        ExpertVersionRow.digest == expert.digest,
        ExpertVersionRow.base_fingerprint == report.base_fingerprint,
    )
    version = session.scalar(known.order_by(ExpertVersionRow.version.desc()).limit(1))
    if version is not None:
        session.execute(update(ExpertRow).where(ExpertRow.name == expert.name).values(retired_at=None))
        return version
    return register_expert(
        session,
        name=expert.name,
        domain=plain_text(expert.domain),
        description=plain_text(expert.description),
        digest=expert.digest,
        report=report,
        has_evidence=expert.has_evidence,
        source="imported",
        metrics=plain_text(expert.metrics),
    )
