"""Jobs of kind `gap_analysis`: flagged requests become clusters, and these become gaps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.shared.jobs import find_job
from services.shared.schemas.gap_analysis import GapAnalysisJobSpec
from services.trainer_worker.base_identity import configured_base
from services.trainer_worker.expert_creation.teacher import configured_endpoint
from services.trainer_worker.gap_analysis.clusters import Space, find_clusters
from services.trainer_worker.gap_analysis.description import Describer
from services.trainer_worker.gap_analysis.labelling import Labeller
from services.trainer_worker.gap_analysis.publication import Analysis
from services.trainer_worker.gap_analysis.redaction import Redaction
from services.trainer_worker.gap_analysis.window import Prompt, Window, read_window
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish

_FEW_ORDINARY: Final = 15
_TOO_FEW_TO_COMPARE: Final = (
    "So few ordinary requests hardly tell what is unlike them: try again after some more, or have more of them "
    "measured (the setting router_service.measured_per_s)."
)


def run_gap_analysis_job(context: JobContext) -> Publish:
    """Find the clusters; what is returned makes gaps of them.

    The window ends when the job was submitted, so that another attempt at it sees the same requests.
    """
    spec = GapAnalysisJobSpec.model_validate(context.spec)
    context.enter("reading")
    base = configured_base(context.settings)
    with context.sessions() as session:
        until = find_job(session, context.job_id).created_at
        window = read_window(session, spec, base_fingerprint=base.fingerprint, until=until)
    if len(window.flagged) < spec.min_cluster_size:
        return _too_few(context, spec, window)
    context.enter("clustering")
    width = len(window.flagged[0].states_D)
    flagged_ND, ordinary_MD = _states(window.flagged, width), _states(window.ordinary, width)
    space = Space.of(np.concatenate([flagged_ND, ordinary_MD]))
    points_ND = space.place(flagged_ND)
    clusters = find_clusters(points_ND, space.place(ordinary_MD), min_cluster_size=spec.min_cluster_size)
    _note(context, window, clusters)
    describer = Describer(window, points_ND, Redaction(context.settings.gaps.redact), seed=spec.seed)
    if spec.teacher is not None:
        context.enter("naming domains")
        describer = replace(describer, labels=_labels(context, spec.teacher, describer, clusters))
    analysis = Analysis(
        job_id=context.job_id,
        base_fingerprint=base.fingerprint,
        min_cluster_size=spec.min_cluster_size,
        space=space,
        clusters=clusters,
        describer=describer,
    )
    return analysis.publish


def _too_few(context: JobContext, spec: GapAnalysisJobSpec, window: Window) -> Publish:
    explanation = (
        f"{window.num_flagged} requests of the window were flagged, and {spec.min_cluster_size} alike make a gap: "
        "there is nothing to find yet. Wait for more, look further back (window_s), or ask for smaller ones "
        "(min_cluster_size). Only releases with a calibration flag requests."
    )
    context.note(explanation)
    return lambda _session: {**window.told(), "num_new": 0, "gaps": [], "explanation": explanation}


def _labels(
    context: JobContext, teacher: str, describer: Describer, clusters: Sequence[NDArray[np.int64]]
) -> dict[int, str]:
    known = sorted({prompt.domain for prompt in describer.window.ordinary if prompt.domain})
    endpoint = configured_endpoint(teacher, context.settings, should_stop=context.should_stop)
    labeller = Labeller(endpoint.chat, known=known, tell=partial(context.note, level="warn"))
    labels = [(cluster, labeller.label(describer.typical(cluster) or ())) for cluster in clusters]
    return {place: label for cluster, label in labels if label is not None for place in cluster.tolist()}


def _note(context: JobContext, window: Window, clusters: Sequence[NDArray[np.int64]]) -> None:
    sizes = [len(cluster) for cluster in clusters]
    left_out = window.num_flagged - len(window.flagged)
    context.note(
        f"{len(window.flagged)} flagged requests beside {len(window.ordinary)} ordinary ones: {len(sizes)} clusters"
        + (f" of {', '.join(map(str, sizes))}" if sizes else "")
        + f", {len(window.flagged) - sum(sizes)} in none of them."
        + (f" {left_out} older ones were left out (max_requests)." if left_out > 0 else "")
        + ("" if clusters or len(window.ordinary) >= _FEW_ORDINARY else f" {_TOO_FEW_TO_COMPARE}")
    )


def _states(prompts: Sequence[Prompt], width: int) -> NDArray[np.float32]:
    """[N, D] of N prompts, also of none."""
    return np.asarray([prompt.states_D for prompt in prompts], dtype=np.float32).reshape(len(prompts), width)
