"""A release as a job reads it: its row, its experts and where their files are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.shared.database.rows import ReleaseRow
from services.shared.errors import JobFailed
from services.shared.registry import active_release, find_release
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.releases import BaseIdentity

_CHOICE = "release"


@dataclass(frozen=True)
class Released:
    """The release that a job is about; `experts` are (name, folder) in the order of its gate's columns."""

    row: ReleaseRow
    experts: Sequence[tuple[str, Path]]
    router_dir: Path
    graph_dir: Path | None

    @property
    def names_and_domains(self) -> list[tuple[str, str | None]]:
        """Of the experts, in the order of the gate's columns."""
        return [(column.version.expert_name, column.version.expert.domain) for column in self.row.experts]


def released(context: JobContext, release_id: str | None, base: BaseIdentity) -> Released:
    """The named release, or the one that was active when the job began, also after an interruption.

    Raises NotFound, or JobFailed where there is none, or for another base model.
    """
    choice = context.folder.work / _CHOICE
    if release_id is None and choice.exists():
        release_id = choice.read_text()
    with context.sessions() as session:
        row = active_release(session) if release_id is None else find_release(session, _number(release_id))
    if row is None:
        raise JobFailed("No release is active: name one, or make and activate one first.", code="no_release")
    if row.base_fingerprint != base.fingerprint:
        raise JobFailed(
            f"{row.id} is for the base model {row.base_model} and this worker has {base.name}: name another release.",
            code="base_model_mismatch",
        )
    if not row.experts:
        raise JobFailed(f"{row.id} has no experts, so there is nothing to compare.", code="no_experts")
    choice.write_text(row.id)
    storage = context.storage
    return Released(
        row=row,
        experts=[(column.version.expert_name, storage.artifact(column.version.digest)) for column in row.experts],
        router_dir=storage.artifact(row.router_digest),
        graph_dir=storage.artifact(row.graph_digest) if row.graph_digest else None,
    )


def _number(release_id: str) -> int:
    return int(release_id.removeprefix("release-"))
