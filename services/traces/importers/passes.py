"""From operations that name experts to passes of the model: what tensor tracers of llama.cpp's kind have in common.

Three matrix products of a layer and their biases share one selection: it is counted once. llama.cpp warms up with a
pass through all experts, under the same token as the prompt. A prompt's pass names the experts of its first token only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.shared.errors import InvalidTrace
from services.traces.choices import NOBODY, Phase
from services.traces.description import Finding, Severity
from services.traces.importers.intake import Intake
from services.traces.importers.source_file import IMPOSSIBLE, named
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
    differing: NDArray[np.int32]
    """The layers of operations that name other experts than the first of their pass and layer."""

    def where(self, kept: NDArray[np.bool_]) -> "_Selections":
        return _Selections(self.origin, self.chosen[kept], self.number[kept], self.again[kept], self.differing)

    def first_pass(self) -> bytes:
        """Equal for two recordings that begin alike."""
        first = self.chosen[self.number == 0]
        return bytes(np.sort(first[["layer", "experts"]], order="layer").tobytes()) if len(first) else b""


def write_passes(recordings: Sequence[Recording], intake: Intake) -> list[Finding]:
    """One sequence for each recording. Raises InvalidTrace where no pass is left."""
    findings: list[Finding] = []
    recordings = [
        replace(each, operations=each.operations[each.operations["layer"] != NO_LAYER]) for each in recordings
    ]
    all_selections = [_select(recording) for recording in recordings]
    findings += _shared(recordings, all_selections) + _differing(all_selections)
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


def _select(recording: Recording) -> _Selections:
    """One row for each pass and layer."""
    rows = recording.operations
    again = _occurrence(rows[["token", "layer", "name"]])
    passes = np.stack([rows["token"].astype(np.int64), again], axis=1)
    _, number = np.unique(passes, axis=0, return_inverse=True)
    number = number.reshape(-1)
    key = number * (int(rows["layer"].max(initial=0)) + 1) + rows["layer"]
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    differs = (rows["experts"] != rows["experts"][first][group.reshape(-1)]).any(axis=1)
    return _Selections(recording.origin, rows[first], number[first], again[first], rows["layer"][differs])


def _shared(recordings: Sequence[Recording], all_selections: Sequence[_Selections]) -> list[Finding]:
    num_operations = sum(len(recording.operations) for recording in recordings)
    num_shared = num_operations - sum(len(selections.chosen) for selections in all_selections)
    if not num_shared:
        return []
    return [
        Finding(
            code="shared_selection",
            severity=Severity.INFO,
            message="Operations of a layer share one selection of experts: each was counted once.",
            count=num_shared,
        )
    ]


def _differing(all_selections: Sequence[_Selections]) -> list[Finding]:
    where = [selections.origin.prompt for selections in all_selections if len(selections.differing)]
    if not where:
        return []
    layers = np.concatenate([selections.differing for selections in all_selections])
    return [
        Finding(
            code="selections_differ",
            severity=Severity.WARNING,
            message=f"{named(where)}: operations of one pass and layer name different experts; the first was taken. "
            "The file may be damaged.",
            layers=tuple(np.unique(layers).tolist()),
            count=len(layers),
        )
    ]


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
    kept: list[_Selections] = []
    num_dropped = num_full = 0
    relabelled: list[str] = []
    suspicious: list[str] = []
    same_first = _begin_alike(all_selections)
    for selections in all_selections:
        dropped = np.unique(selections.number[selections.chosen["num_experts"] > intake.top_k])
        num_full += len(dropped)
        if len(dropped):
            intake.saw(int(selections.chosen["experts"].max()))
        if same_first:
            dropped = np.union1d(dropped, [0])
        num_dropped += len(dropped)
        rest = selections.where(~np.isin(selections.number, dropped))
        if 0 in dropped:
            first_token = int(selections.chosen["token"][selections.number == 0][0])
            relabelled += [rest.origin.prompt] if _call_prompt_by_its_name(rest, first_token) else []
        elif (rest.again > 0).any():
            suspicious.append(rest.origin.prompt)
        kept.append(rest)
    if num_dropped:
        findings.append(
            _warm_up(num_dropped, f"has more than {intake.top_k} experts" if num_full else "is the same in all files")
        )
    findings.extend(_about_first_passes(relabelled, suspicious))
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


def _call_prompt_by_its_name(selections: _Selections, token: int) -> bool:
    """The tracer calls the second pass of a token generation, although the first one was the warm-up."""
    wrong = (selections.chosen["token"] == token) & (selections.chosen["phase"] == Phase.GENERATED)
    selections.chosen["phase"][wrong] = Phase.PROMPT
    return bool(wrong.any())


def _warm_up(count: int, how: str) -> Finding:
    return Finding(
        code="warm_up",
        severity=Severity.INFO,
        message=f"A pass that {how} is the warm-up, and was left out.",
        count=count,
    )


def _about_first_passes(relabelled: Sequence[str], suspicious: Sequence[str]) -> Iterator[Finding]:
    if relabelled:
        yield Finding(
            code="prompt_relabelled",
            severity=Severity.INFO,
            message=f"{named(relabelled)}: the pass after the warm-up is labelled GENERATE, but reads the prompt: it "
            "counts as prompt.",
            count=len(relabelled),
        )
    if suspicious:
        yield Finding(
            code="maybe_warm_up",
            severity=Severity.WARNING,
            message=f"{named(suspicious)}: a token was passed through more than once. If the tracer ran a warm-up, the "
            "first pass is not the prompt's: trace with --no-warmup.",
            count=len(suspicious),
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
