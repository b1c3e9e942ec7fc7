"""The routing log as a trace in memory: one layer, whose experts are those that spoke, and `base`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router_service.token_log import PackedTokenLog
from services.shared.vocabulary import BASE
from services.traces.choices import NOBODY, LayerChoices, Phase
from services.traces.description import TraceDescription, TracedLayer, TraceSource

UNCLASSIFIED: Final = "unclassified"
_ROUNDING: Final = 1e-4
_MOST_PER_TOKEN: Final = 255


@dataclass(frozen=True)
class LoggedTokens:
    """What one request kept: its classified domain, if it has one, and its tokens."""

    domain: str | None
    log: PackedTokenLog


@dataclass(frozen=True)
class LiveChoices:
    """Gives `analyse` its only layer."""

    description: TraceDescription
    choices: LayerChoices | None

    @property
    def layers(self) -> list[int]:
        """0, if there is a token."""
        return [layer.layer for layer in self.description.layers]

    def layer(self, number: int, /) -> LayerChoices:
        """The layer. Raises KeyError for another one."""
        if self.choices is None or number != self.choices.layer:
            raise KeyError(number)
        return self.choices


def live_choices(requests: Sequence[LoggedTokens], experts: Sequence[str]) -> LiveChoices:
    """Of requests from the oldest to the newest; `experts` are the active release's, which are numbered first.

    Weights are shares, as in attributions: what experts leave of 1 is the base model's.
    """
    requests = [request for request in requests if len(request.log.token_ids)]
    others = sorted({name for request in requests for name in request.log.names} - {*experts, BASE})
    names = [*dict.fromkeys(experts), BASE, *others]
    domains = list(dict.fromkeys(request.domain or UNCLASSIFIED for request in requests))
    choices = _choices(requests, names, domains) if requests else None
    return LiveChoices(_described(requests, names, domains, choices), choices)


def _choices(requests: Sequence[LoggedTokens], names: Sequence[str], domains: Sequence[str]) -> LayerChoices:
    index = {name: number for number, name in enumerate(names)}
    logs = [request.log for request in requests]
    counts = np.concatenate([log.num_weights for log in logs]).astype(np.int64)
    token = np.repeat(np.arange(len(counts)), counts)
    expert = np.concatenate(
        [np.array([index[name] for name in log.names], dtype=np.int64)[log.weight_names] for log in logs]
    )
    weight = np.concatenate([log.weights for log in logs]).astype(np.float64)
    lengths = [len(log.token_ids) for log in logs]
    experts_TK, weights_TK = _ranked(*_with_base(token, expert, weight, len(counts), base=index[BASE]), len(counts))
    ids = np.concatenate([log.token_ids for log in logs]).astype(np.int64)
    return LayerChoices(
        layer=0,
        num_experts=len(names),
        experts=experts_TK,
        weights=weights_TK,
        # Where prompts are not kept, ids, which are the text by other means, are all 0.
        token_ids=ids if all(log.token_ids.any() for log in logs) else None,
        phases=np.concatenate([_phases(log) for log in logs]),
        starts=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        domains=np.array([domains.index(request.domain or UNCLASSIFIED) for request in requests], dtype=np.int64),
    )


def _phases(log: PackedTokenLog) -> NDArray[np.uint8]:
    phases = np.full(len(log.token_ids), Phase.GENERATED, dtype=np.uint8)
    phases[: log.num_prompt_tokens] = Phase.PROMPT
    return phases


def _with_base(
    token: NDArray[np.int64], expert: NDArray[np.int64], weight: NDArray[np.float64], num_tokens: int, *, base: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The same as shares of each token, with the base model's where it was left to be understood."""
    is_base = expert == base
    size = np.where(is_base, np.maximum(weight, 0.0), np.abs(weight))
    mixed = np.bincount(token[~is_base], size[~is_base], num_tokens)
    told = np.bincount(token, is_base, num_tokens) > 0
    left = np.where(told | (1.0 - mixed <= _ROUNDING), 0.0, 1.0 - mixed)
    left[np.bincount(token, size, num_tokens) + left <= 0.0] = 1.0
    silent = np.flatnonzero(left > 0.0)
    token, expert = np.concatenate((token, silent)), np.concatenate((expert, np.full(len(silent), base)))
    size = np.concatenate((size, left[silent]))
    kept = size > 0.0
    total = np.bincount(token[kept], size[kept], num_tokens)
    return token[kept], expert[kept], size[kept] / total[token[kept]]


def _ranked(
    token: NDArray[np.int64], expert: NDArray[np.int64], share: NDArray[np.float64], num_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """[T, K] each, by falling share."""
    order = np.lexsort((expert, -share, token))
    token, expert, share = token[order], expert[order], share[order]
    counts = np.bincount(token, minlength=num_tokens)
    rank = np.arange(len(token)) - np.repeat(np.cumsum(counts) - counts, counts)
    top_k = min(int(counts.max()), _MOST_PER_TOKEN)
    kept = rank < top_k
    experts_TK = np.full((num_tokens, top_k), NOBODY, dtype=np.int32)
    weights_TK = np.zeros((num_tokens, top_k), dtype=np.float32)
    experts_TK[token[kept], rank[kept]] = expert[kept]
    weights_TK[token[kept], rank[kept]] = share[kept]
    return experts_TK, weights_TK


def _described(
    requests: Iterable[LoggedTokens], names: Sequence[str], domains: Sequence[str], choices: LayerChoices | None
) -> TraceDescription:
    layers: tuple[TracedLayer, ...] = ()
    if choices is not None:
        num_rows, top_k = int((choices.experts != NOBODY).sum()), choices.experts.shape[1]
        layers = (TracedLayer(layer=0, num_experts=len(names), top_k=top_k, num_rows=num_rows),)
    return TraceDescription(
        source=TraceSource.ROUTING_LOG,
        experts=tuple(names),
        domains=tuple(domains),
        num_sequences=len(list(requests)),
        num_tokens=choices.num_tokens if choices is not None else 0,
        layers=layers,
        has_weights=True,
        has_token_ids=choices is not None and choices.token_ids is not None,
        about={},
    )
