"""Expert fingerprints of gpt-oss: a JSON object for each answer, with every generated token's experts in every layer.

    {"category": ..., "full_text": ["<|start|>", ...], "router_data": [{"token_178": {"layer_0":
        {"selected_experts": [31, 21, 22, 6], "selected_probs": [0.53, 0.17, 0.16, 0.15]}, ...}}, ...]}

A token is a text and not a number there, so texts are numbered in the order in which they come.
"""

import json
import mmap
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.shared.errors import InvalidTrace
from services.traces.choices import NOBODY, Phase
from services.traces.description import Finding, Severity
from services.traces.importers.intake import Intake
from services.traces.importers.origin import origin
from services.traces.importers.source_file import Reading, SourceFile, expert_numbers, named, parse, weights_of

_TOKEN: Final = re.compile(r"token_(\d{1,9})")
_LAYER: Final = re.compile(r"layer_(\d{1,4})")
_ROUTER_DATA: Final = re.compile(r'"router_data"\s*:\s*\[')
_BETWEEN: Final = re.compile(r"[\s,]*")
_DECODER: Final = json.JSONDecoder()


def detect(file: SourceFile, reading: Reading) -> bool:
    """Whether it is JSON with such data in it, which may be far from its beginning."""
    if file.head(64).lstrip()[:1] not in {b"{", b"["}:
        return False
    with file.path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(b'"router_data"') >= 0


def read(files: Sequence[SourceFile], intake: Intake, reading: Reading) -> list[Finding]:
    """One sequence for each answer."""
    vocabulary: dict[str, int] = {}
    findings: list[Finding] = []
    strange: list[str] = []
    for file in files:
        reading.stop_if_asked()
        for number, answer in enumerate(_answers(file, reading, findings)):
            where = f"{file.name}, answer {number}"
            _write(_read_answer(answer, where, vocabulary), answer, file, intake)
            if answer.get("has_repetition") is True or answer.get("finished_successfully") is False:
                strange.append(where)
    if strange:
        findings.append(
            Finding(
                code="degenerate_text",
                severity=Severity.WARNING,
                message=f"{named(strange)}: the text repeats itself or was broken off, says the file: such "
                "text has routing of its own.",
                count=len(strange),
            )
        )
    findings.append(
        Finding(
            code="local_token_ids",
            severity=Severity.INFO,
            message="Tokens are told as texts: their ids number the texts of this trace, and are no model's.",
            count=len(vocabulary),
        )
    )
    return findings


@dataclass
class _Layer:
    positions: list[int] = field(default_factory=list)
    experts: list[list[int]] = field(default_factory=list)
    weights: list[list[float]] = field(default_factory=list)
    token_ids: list[int | None] = field(default_factory=list)


def _answers(file: SourceFile, reading: Reading, findings: list[Finding]) -> list[dict[str, Any]]:
    text = file.text(reading.limits.max_json_bytes)
    try:
        value = parse(text, file.name)
    except InvalidTrace:
        value = _whole_part(text)
        if value is None:
            raise
        findings.append(
            Finding(
                code="truncated",
                severity=Severity.WARNING,
                message=f"{file.name} is cut off: its first {len(value['router_data'])} tokens were read.",
            )
        )
    answers = value if isinstance(value, list) else [value]
    if not all(isinstance(answer, dict) for answer in answers):
        raise InvalidTrace(f"{file.name} is no JSON object, and no list of objects.", param="files")
    return answers


def _whole_part(text: str) -> dict[str, Any] | None:
    """Of an object that is cut off within its router data: what is before, and the tokens that are whole."""
    match = _ROUTER_DATA.search(text)
    if match is None:
        return None
    tokens, place = [], match.end()
    try:
        answer = json.loads(text[: match.end()] + "]}")
        while True:
            place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
            token, place = _DECODER.raw_decode(text, place)
            tokens.append(token)
    except (ValueError, RecursionError):
        return {**answer, "router_data": tokens} if tokens else None


def _read_answer(answer: dict[str, Any], where: str, vocabulary: dict[str, int]) -> dict[int, _Layer]:
    texts = answer.get("full_text")
    router_data = answer.get("router_data")
    if not isinstance(router_data, list):
        raise InvalidTrace(f"{where} has no list of router_data.", param="files")
    tokens: dict[int, Any] = {}
    for number, entry in enumerate(router_data):
        for name, by_layer in _items(entry, f"{where}, router_data {number}").items():
            tokens[_number(_TOKEN, name, f"{where}, router_data {number}")] = by_layer
    layers: dict[int, _Layer] = defaultdict(_Layer)
    for position, by_layer in sorted(tokens.items()):
        place = f"{where}, token_{position}"
        token_id = _token_id(texts, position, vocabulary)
        for name, choice in _items(by_layer, place).items():
            layer = layers[_number(_LAYER, name, place)]
            layer.positions.append(position)
            layer.token_ids.append(token_id)
            _read_choice(layer, _items(choice, place), f"{place}, {name}")
    return layers


def _read_choice(layer: _Layer, choice: dict[str, Any], where: str) -> None:
    experts = expert_numbers(choice.get("selected_experts"), where, "selected_experts")
    layer.experts.append(experts)
    layer.weights.append(weights_of(choice.get("selected_probs"), experts, where, "selected_probs"))


def _write(layers: dict[int, _Layer], answer: dict[str, Any], file: SourceFile, intake: Intake) -> None:
    category = answer.get("category")
    whence = origin(file.name, intake.reading, domain=category if isinstance(category, str) else None)
    sequence = intake.add_sequence(whence.domain, _prompt(answer, whence.prompt))
    for number, layer in sorted(layers.items()):
        width = max(map(len, layer.experts))
        known = [each for each in layer.token_ids if each is not None]
        intake.add(
            number,
            sequence,
            positions=layer.positions,
            phases=Phase.GENERATED,
            experts=[row + [NOBODY] * (width - len(row)) for row in layer.experts],
            weights=[row + [0.0] * (width - len(row)) for row in layer.weights],
            token_ids=known if len(known) == len(layer.token_ids) else None,
        )


def _prompt(answer: dict[str, Any], name: str) -> str:
    parts = [answer.get("dataset"), answer.get("row_index")]
    told = "/".join(str(part)[:80] for part in parts if isinstance(part, str | int))
    return told or name


def _token_id(texts: Any, position: int, vocabulary: dict[str, int]) -> int | None:
    if not isinstance(texts, list) or position >= len(texts) or not isinstance(texts[position], str):
        return None
    return vocabulary.setdefault(texts[position], len(vocabulary))


def _items(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidTrace(f"{where} is no JSON object.", param="files")
    return value


def _number(pattern: re.Pattern[str], name: str, where: str) -> int:
    match = pattern.fullmatch(name)
    if match is None:
        raise InvalidTrace(f"{where}: {name[:80]!r} is no token's or layer's name.", param="files")
    return int(match.group(1))
