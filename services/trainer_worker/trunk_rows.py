"""Trunk evidence of a release's columns after any layer, whether or not its experts were published with it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from services.shared.errors import InvalidRequest, JobFailed
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.router_artifact import BASE_FOLDER, EVIDENCE_FOLDER, TRUNK_FILE
from services.shared.modeling.trunk_evidence import DiscriminantRows
from services.shared.modeling.trunk_statistics import TrunkStatistics
from services.shared.modeling.wiring import decoder_stack
from services.shared.vocabulary import BASE
from services.trainer_worker.evidence import EvidenceMaker
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.released import Released
from services.trainer_worker.training_files import evidence_texts


def trunk_rows(
    context: JobContext, release: Released, base: LoadedBase, tap_layers: Sequence[int], files: Mapping[str, str]
) -> dict[int, DiscriminantRows]:
    """Rows of all columns by tap layer: what is published, and for the rest what a router job would make.

    That is made of the experts' `files`, by name, or of their exemplars, and for the base of what it writes itself.
    Raises InvalidRequest for a layer that the base model has not, JobFailed for an expert without text.
    """
    _, stack = decoder_stack(base.model)
    if max(tap_layers, default=0) >= len(stack):
        raise InvalidRequest(f"tap_layers must lie in 0..{len(stack) - 1} for this base model.", param="tap_layers")
    return {tap: _Columns(context, release, base, tap).rows(files) for tap in tap_layers}


class _Columns:
    """The columns of a release at one tap."""

    def __init__(self, context: JobContext, release: Released, base: LoadedBase, tap_layer: int) -> None:
        self._context = context
        self._release = release
        self._tokenizer = base.tokenizer
        self._tap_layer = tap_layer
        self._maker = EvidenceMaker(
            settings=context.settings,
            storage=context.storage,
            tokenizer=base.tokenizer,
            fingerprint=base.fingerprint,
            tap_layer=tap_layer,
            base=base,
        )

    def rows(self, files: Mapping[str, str]) -> DiscriminantRows:
        """Goes on from the statistics that an interrupted attempt left."""
        statistics = [self._expert(name, folder, files.get(name)) for name, folder in self._release.experts]
        published = self._release.router_dir / BASE_FOLDER / TRUNK_FILE
        return DiscriminantRows.of([*statistics, self._statistics(BASE, published, self._maker.trunk_of_base)])

    def _expert(self, name: str, folder: Path, file_id: str | None) -> TrunkStatistics:
        def make() -> TrunkStatistics:
            examples = evidence_texts(self._context, folder, file_id, self._tokenizer)
            if examples is None:
                raise JobFailed(
                    f"Expert {name!r} has no evidence after layer {self._tap_layer} and carries no exemplars to make "
                    f"it of: name a file with texts of its domain under training_files.{name}, or leave the layer out "
                    "of tap_layers.",
                    code="expert_without_evidence",
                )
            return self._maker.trunk_of(examples)

        return self._statistics(name, folder / EVIDENCE_FOLDER / TRUNK_FILE, make)

    def _statistics(self, name: str, published: Path, make: Callable[[], TrunkStatistics]) -> TrunkStatistics:
        if published.exists() and (found := TrunkStatistics.load(published)).tap_layer == self._tap_layer:
            return found
        kept = self._context.folder.work / "trunk" / f"{name}-{self._tap_layer}.safetensors"
        if not kept.exists():
            self._context.enter(f"evidence of {name} after layer {self._tap_layer}")
            kept.parent.mkdir(exist_ok=True)
            half_written = kept.with_suffix(".partial")
            make().save(half_written)
            half_written.rename(kept)
        return TrunkStatistics.load(kept)
