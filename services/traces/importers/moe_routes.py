"""`moe_routes.jsonl`, as patches of vLLM write it: a line for each token and layer, perhaps a line of metadata first.

    {"type": "meta", "model_id": ..., "top_k": 8, "num_experts": 64, ...}
    {"type": "route", "req_id": "r0", "token_idx": 0, "layer": 0, "topk_ids": [...], "topk_weights": [...]}

Requests and layers may come in any order. A line may also have "token_id", "phase" ("prompt", "generate"), "domain".
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.shared.errors import InvalidTrace
from services.traces.choices import NOBODY, Phase
from services.traces.description import Finding, Severity
from services.traces.importers.intake import Intake
from services.traces.importers.origin import origin
from services.traces.importers.source_file import Reading, SourceFile, expert_numbers, integer, parse, weights_of

_LISTEN_EVERY: Final = 4096
_LONG: Final = 1024
"""Tokens of one request that nobody is surprised by."""

_PHASES: Final = {
    "prompt": Phase.PROMPT, "prefill": Phase.PROMPT,
    "generate": Phase.GENERATED, "generated": Phase.GENERATED, "decode": Phase.GENERATED, "padding": Phase.PADDING,
}  # fmt: skip
_UNKNOWN_ID: Final = -1


def detect(file: SourceFile, reading: Reading) -> bool:
    """Whether its first line is of this kind."""
    first = file.head().lstrip().split(b"\n", 1)[0]
    return first[:1] == b"{" and (b'"topk_ids"' in first or (b'"meta"' in first and b'"type"' in first))


def read(files: Sequence[SourceFile], intake: Intake, reading: Reading) -> list[Finding]:
    """One sequence for each request, or for each piece of one whose tokens are counted from the beginning again."""
    findings: list[Finding] = []
    for file in files:
        routes = _read_lines(file, intake, reading, findings)
        if len(routes.layer):
            _write(routes, file, intake, findings)
    return findings


@dataclass
class _Routes:
    """The lines of a file, column by column: 20 bytes each, and 12 for each choice."""

    requests: dict[tuple[str, str | None], int] = field(default_factory=dict)
    request: "array[int]" = field(default_factory=lambda: array("i"))
    position: "array[int]" = field(default_factory=lambda: array("q"))
    layer: "array[int]" = field(default_factory=lambda: array("i"))
    phase: "array[int]" = field(default_factory=lambda: array("b"))
    token_id: "array[int]" = field(default_factory=lambda: array("q"))
    count: "array[int]" = field(default_factory=lambda: array("i"))
    experts: "array[int]" = field(default_factory=lambda: array("q"))
    weights: "array[float]" = field(default_factory=lambda: array("d"))
    has_weights: bool = True
    has_phases: bool = True

    def add(self, line: dict[str, Any], where: str) -> None:
        experts = expert_numbers(line.get("topk_ids"), where, "topk_ids")
        told = line.get("topk_weights")
        self.has_weights &= told is not None
        weights = [0.0] * len(experts) if told is None else weights_of(told, experts, where, "topk_weights")
        self.experts.extend(experts)
        self.weights.extend(weights)
        self.count.append(len(experts))
        self.request.append(self._request_of(line, where))
        self.position.append(integer(line.get("token_idx"), where, "token_idx"))
        self.layer.append(integer(line.get("layer", 0), where, "layer", below=10_000))
        token_id = line.get("token_id")
        self.token_id.append(_UNKNOWN_ID if token_id is None else integer(token_id, where, "token_id"))
        self.phase.append(self._phase_of(line, where))

    def _request_of(self, line: dict[str, Any], where: str) -> int:
        name, domain = line.get("req_id", ""), line.get("domain")
        if not isinstance(name, str | int) or not isinstance(domain, str | None):
            raise InvalidTrace(f"{where}: req_id or domain is no text.", param="files")
        return self.requests.setdefault((str(name)[:200], domain), len(self.requests))

    def _phase_of(self, line: dict[str, Any], where: str) -> int:
        told = line.get("phase")
        if told is None:
            self.has_phases = False
            return Phase.PROMPT
        phase = _PHASES.get(str(told).lower())
        if phase is None:
            raise InvalidTrace(f"{where}: phase is none of {', '.join(_PHASES)}.", param="files")
        return phase


def _read_lines(file: SourceFile, intake: Intake, reading: Reading, findings: list[Finding]) -> _Routes:
    routes = _Routes()
    for number, text in file.lines(reading.limits.max_line_bytes):
        if number % _LISTEN_EVERY == 0:
            reading.stop_if_asked()
        where = f"{file.name}, line {number}"
        try:
            line = parse(text, where)
        except InvalidTrace:
            if text.endswith(b"\n"):
                raise
            findings.append(_truncated(where))
            break
        if not isinstance(line, dict):
            raise InvalidTrace(f"{where} is no JSON object.", param="files")
        if line.get("type") == "meta":
            _read_meta(line, intake, where)
        else:
            routes.add(line, where)
        if len(routes.experts) > reading.limits.max_choices:
            raise InvalidTrace(
                f"{where}: there are more than {reading.limits.max_choices:,} chosen experts: import fewer at once.",
                param="files",
            )
    return routes


def _read_meta(line: dict[str, Any], intake: Intake, where: str) -> None:
    counts = {name: line.get(name) for name in ("num_experts", "top_k")}
    for name, count in counts.items():
        if count is not None and not 1 <= integer(count, where, name) <= 65_535:
            raise InvalidTrace(f"{where}: {name} is not from 1 to 65,535.", param="files")
    intake.told(num_experts=counts["num_experts"], top_k=counts["top_k"])
    model = line.get("model_id")
    if isinstance(model, str):
        intake.model = intake.model or model[:200]


def _write(routes: _Routes, file: SourceFile, intake: Intake, findings: list[Finding]) -> None:
    request, layer = np.array(routes.request, dtype=np.int64), np.array(routes.layer, dtype=np.int64)
    position = np.array(routes.position, dtype=np.int64)
    piece = _pieces(request, layer, position)
    _look_at_requests(routes, piece, file, findings)
    experts, weights = _padded(routes)
    token_ids = np.array(routes.token_id, dtype=np.int64)
    phases = np.array(routes.phase, dtype=np.uint8)
    order = np.lexsort((position, layer, piece, request))
    # A group is what one layer has of one sequence.
    keys = np.stack([request, piece, layer], axis=1)[order]
    starts = np.flatnonzero(np.concatenate(([True], (keys[1:] != keys[:-1]).any(axis=1))))
    names = list(routes.requests)
    sequence, present = -1, (-1, -1)
    for rows in np.split(order, starts[1:]):
        its_request, its_piece, its_layer = int(request[rows[0]]), int(piece[rows[0]]), int(layer[rows[0]])
        if (its_request, its_piece) != present:
            present = (its_request, its_piece)
            name, domain = names[its_request]
            whence = origin(file.name, intake.reading, domain=domain)
            sequence = intake.add_sequence(whence.domain, f"{whence.prompt}/{name}#{its_piece}"[-200:])
        intake.add(
            its_layer,
            sequence,
            positions=position[rows],
            phases=phases[rows],
            experts=experts[rows],
            weights=weights[rows] if routes.has_weights else None,
            token_ids=token_ids[rows] if (token_ids != _UNKNOWN_ID).all() else None,
        )


def _pieces(
    request: NDArray[np.int64], layer: NDArray[np.int64], position: NDArray[np.int64]
) -> NDArray[np.int64]:  # fmt: skip
    """[N] how often the tokens of the line's request had begun again before it, in its layer."""
    order = np.lexsort((layer, request))
    same = (request[order][1:] == request[order][:-1]) & (layer[order][1:] == layer[order][:-1])
    restarts = np.concatenate(([False], same & (position[order][1:] <= position[order][:-1])))
    total = np.cumsum(restarts)
    begins = np.concatenate(([True], ~same))
    piece = np.empty(len(order), dtype=np.int64)
    piece[order] = total - np.repeat(total[begins], np.diff(np.append(np.flatnonzero(begins), len(order))))
    return piece


def _padded(routes: _Routes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    count = np.array(routes.count, dtype=np.int64)
    filled = np.arange(max(1, int(count.max()))) < count[:, None]
    experts = np.full(filled.shape, NOBODY, dtype=np.int64)
    weights = np.zeros(filled.shape)
    experts[filled] = np.array(routes.experts, dtype=np.int64)
    weights[filled] = np.array(routes.weights)
    return experts, weights


def _look_at_requests(routes: _Routes, piece: NDArray[np.int64], file: SourceFile, findings: list[Finding]) -> None:
    num_pieces = int(piece.max()) + 1
    if num_pieces > 1:
        findings.append(
            Finding(
                code="split_requests",
                severity=Severity.INFO,
                message=f"{file.name}: tokens of a request are counted from the beginning again, up to {num_pieces} "
                "times: each time is a sequence of its own.",
                count=num_pieces,
            )
        )
    elif len(routes.requests) == 1 and max(routes.position) >= _LONG:
        (name, _), *_ = routes.requests
        findings.append(
            Finding(
                code="one_request_id",
                severity=Severity.WARNING,
                message=f"{file.name}: all {max(routes.position) + 1:,} tokens have the request id {name!r} and are "
                "counted through, so that requests cannot be told apart. Figures have no interval, and neighbours may "
                "belong to different texts.",
            )
        )
    if not routes.has_phases:
        findings.append(
            Finding(
                code="phase_unknown",
                severity=Severity.INFO,
                message=f"{file.name} does not tell prompt and generated tokens apart: all count as prompt.",
            )
        )


def _truncated(where: str) -> Finding:
    return Finding(
        code="truncated",
        severity=Severity.WARNING,
        message=f"{where}, the last one, is cut off and was left out. What is before it was read.",
    )
