"""From operations that name experts to passes of the model: what tensor tracers of llama.cpp's kind have in common.

Three matrix products of a layer and their biases share one selection: it is counted once. llama.cpp warms up with a
pass through all experts, under the same token as the prompt. A prompt's pass names the experts of its first token only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.shared.errors import InvalidTrace
from services.traces.choices import NOBODY, Phase
from services.traces.description import Finding, Severity
from services.traces.importers.intake import Intake
from services.traces.importers.source_file import IMPOSSIBLE
from services.traces.table import TracedSequence

MOST_EXPERTS: Final = 16
"""A record has room for so many."""

OPERATION: Final = np.dtype([
    ("token", "<u4"),
    ("layer", "<i4"),
    ("name", "<u8"),
    ("phase", "u1"),
    ("num_experts", "u1"),
    ("experts", "<i4", (MOST_EXPERTS,)),
])  # fmt: skip
"""An operation with experts; `name` is a hash of what it makes and its kind, and comes once in a pass."""

NO_LAYER: Final = -1


@dataclass(frozen=True)
class Recording:
    """The operations with experts of one prompt, in the order in which they ran."""

    origin: TracedSequence
    operations: NDArray[Any]


@dataclass
class _Selections:
    """Of one recording: row i is what layer `layer[i]` chose in pass `number[i]`, each once."""

    origin: TracedSequence
    chosen: NDArray[Any]
    number: NDArray[np.int64]
    """[S] passes in order."""
    again: NDArray[np.int64]
    """[S] how many passes with the same token there were before."""

    def where(self, kept: NDArray[np.bool_]) -> "_Selections":
        return _Selections(self.origin, self.chosen[kept], self.number[kept], self.again[kept])

    def first_pass(self) -> bytes:
        """Equal for two recordings that begin alike."""
        first = self.chosen[self.number == 0]
        return bytes(np.sort(first[["layer", "experts"]], order="layer").tobytes()) if len(first) else b""


def write_passes(recordings: Sequence[Recording], intake: Intake) -> list[Finding]:
    """One sequence for each recording. Raises InvalidTrace where no pass is left."""
    findings: list[Finding] = []
    all_selections = [_select(recording, findings) for recording in recordings]
    counts = np.concatenate([selections.chosen["num_experts"] for selections in all_selections])
    if not len(counts):
        raise InvalidTrace(
            "No operation names its layer and its experts: trace in the mode `experts` or `all`.", param="files"
        )
    _tell_top_k(counts, intake, findings)
    kept = _without_warm_up(all_selections, intake, findings)
    for selections in kept:
        _write(selections, intake)
    if any(_num_prompt_passes(selections) == 1 for selections in kept):
        findings.append(
            Finding(
                code="first_token_of_prompt",
                severity=Severity.WARNING,
                message="Of a prompt that is read in one pass only the first token's experts were recorded: positions "
                "are passes, and the prompt counts as one token of each. Look at the generated tokens.",
            )
        )
    return findings


def _num_prompt_passes(selections: _Selections) -> int:
    """A prompt of several was read token by token."""
    return len(np.unique(selections.number[selections.chosen["phase"] == Phase.PROMPT]))


def _select(recording: Recording, findings: list[Finding]) -> _Selections:
    """One row for each pass and layer."""
    rows = recording.operations[recording.operations["layer"] != NO_LAYER]
    again = _occurrence(rows[["token", "layer", "name"]])
    passes = np.stack([rows["token"].astype(np.int64), again], axis=1)
    _, number = np.unique(passes, axis=0, return_inverse=True)
    number = number.reshape(-1)
    key = number * (int(rows["layer"].max(initial=0)) + 1) + rows["layer"]
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    num_shared = len(rows) - len(first)
    if num_shared:
        findings.append(
            Finding(
                code="shared_selection",
                severity=Severity.INFO,
                message=f"{recording.origin.prompt}: operations of a layer that share one selection were counted once.",
                count=num_shared,
            )
        )
    differs = (rows["experts"] != rows["experts"][first][group]).any(axis=1)
    if differs.any():
        findings.append(
            Finding(
                code="selections_differ",
                severity=Severity.WARNING,
                message=f"{recording.origin.prompt}: operations of one pass and layer name different experts; the "
                "first was taken. The file may be damaged.",
                layers=tuple(sorted(set(rows["layer"][differs].tolist()))),
                count=int(differs.sum()),
            )
        )
    return _Selections(recording.origin, rows[first], number[first], again[first])


def _occurrence(keys: NDArray[Any]) -> NDArray[np.int64]:
    """[N] how often each key came before."""
    _, inverse = np.unique(keys, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    ranked = inverse[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))[: len(ranked)]
    counted = np.arange(len(ranked)) - np.repeat(starts, np.diff(np.append(starts, len(ranked))))
    occurrence = np.empty(len(ranked), dtype=np.int64)
    occurrence[order] = counted
    return occurrence


def _tell_top_k(counts: NDArray[np.uint8], intake: Intake, findings: list[Finding]) -> None:
    """The usual number of experts, of equally usual ones the lowest: warm-up passes have more, and are few."""
    if intake.top_k is not None:
        return
    usual = int(np.bincount(counts).argmax())
    intake.told(num_experts=None, top_k=usual)
    if usual == MOST_EXPERTS:
        findings.append(
            Finding(
                code="top_k_cut",
                severity=Severity.WARNING,
                message=f"Every pass has {MOST_EXPERTS} experts, as many as a record has room for: these may be the "
                "first of a full ranking, as in a warm-up. Import again with the model's top_k.",
            )
        )


def _without_warm_up(
    all_selections: Sequence[_Selections], intake: Intake, findings: list[Finding]
) -> list[_Selections]:
    assert intake.top_k is not None
    kept, num_dropped = [], 0
    same_first = _begin_alike(all_selections)
    for selections in all_selections:
        counts = selections.chosen["num_experts"]
        too_many = np.unique(selections.number[counts > intake.top_k])
        if len(too_many):
            intake.saw(int(selections.chosen["experts"].max()))
        if same_first:
            too_many = np.union1d(too_many, [0])
        num_dropped += len(too_many)
        is_dropped = np.isin(selections.number, too_many)
        rest = selections.where(~is_dropped)
        if 0 in too_many:
            _call_prompt_by_its_name(rest, int(selections.chosen["token"][selections.number == 0][0]), findings)
        elif (rest.again > 0).any():
            findings.append(_maybe_warm_up(rest))
        kept.append(rest)
    if num_dropped:
        how = "is the same in all files" if same_first else f"has more than {intake.top_k} experts"
        findings.append(
            Finding(
                code="warm_up",
                severity=Severity.INFO,
                message=f"A pass that {how} is the warm-up, and was left out.",
                count=num_dropped,
            )
        )
    if not any(len(selections.chosen) for selections in kept):
        raise InvalidTrace(
            f"Every pass has more than {intake.top_k} experts, so all are warm-up: name the model's own top_k, and "
            "trace with --no-warmup.",
            param="files",
        )
    return kept


def _begin_alike(all_selections: Sequence[_Selections]) -> bool:
    """Whether all of several recordings pass twice through their first token, and the first time all chose the same:
    different prompts do not, a warm-up does."""
    if len(all_selections) < 2:
        return False
    for selections in all_selections:
        first_token = selections.chosen["token"].min(initial=2**32 - 1)
        if not (selections.again[selections.chosen["token"] == first_token] > 0).any():
            return False
    first_passes = {selections.first_pass() for selections in all_selections}
    return len(first_passes) == 1 and first_passes != {b""}


def _call_prompt_by_its_name(selections: _Selections, token: int, findings: list[Finding]) -> None:
    """The tracer calls the second pass of a token generation, although the first one was the warm-up."""
    prompt = selections.chosen["token"] == token
    wrong = prompt & (selections.chosen["phase"] == Phase.GENERATED)
    if not wrong.any():
        return
    selections.chosen["phase"][wrong] = Phase.PROMPT
    findings.append(
        Finding(
            code="prompt_relabelled",
            severity=Severity.INFO,
            message=f"{selections.origin.prompt}: the pass after the warm-up is labelled GENERATE, but reads the "
            "prompt: it counts as prompt.",
        )
    )


def _maybe_warm_up(selections: _Selections) -> Finding:
    return Finding(
        code="maybe_warm_up",
        severity=Severity.WARNING,
        message=f"{selections.origin.prompt}: a token was passed through more than once. If the tracer ran a warm-up, "
        "the first pass is not the prompt's: trace with --no-warmup.",
    )


def _write(selections: _Selections, intake: Intake) -> None:
    sequence = intake.add_sequence(selections.origin.domain, selections.origin.prompt)
    _, position = np.unique(selections.number, return_inverse=True)
    for layer in np.unique(selections.chosen["layer"]).tolist():
        here = selections.chosen["layer"] == layer
        chosen = selections.chosen[here]
        ranks = np.arange(MOST_EXPERTS)
        experts = np.where(ranks < chosen["num_experts"][:, None], chosen["experts"], NOBODY)
        # A negative number is no expert's, and must not be taken for nobody.
        absurd = (ranks < chosen["num_experts"][:, None]) & (chosen["experts"] < 0)
        intake.add(
            layer,
            sequence,
            positions=position.reshape(-1)[here],
            phases=chosen["phase"],
            experts=np.where(absurd, IMPOSSIBLE, experts),
        )
