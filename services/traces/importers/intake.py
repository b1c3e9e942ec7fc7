"""Between an importer and the trace's writer: tokens that cannot be are left out, and what is suspicious is told."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from services.shared.errors import InvalidTrace
from services.traces.choices import NOBODY
from services.traces.description import Finding, Severity
from services.traces.importers.source_file import Reading
from services.traces.importers.tally import LONG_RUN, LayerTally, has_many_sets, runs, set_hashes
from services.traces.table import TraceWriter

_MAX_LAYERS: Final = 256
_MAX_LAYER: Final = 9999
_HIGHEST_PLAUSIBLE: Final = 4095
"""Where nobody says how many experts there are; published models have up to some hundreds."""

_UNIFORM_OFTEN: Final = 0.05


@dataclass
class Intake:
    """Writes what an importer reads. `num_experts`, `top_k` and `model` are as told, by the owner or by the files."""

    writer: TraceWriter
    reading: Reading
    num_experts: int | None = None
    top_k: int | None = None
    model: str | None = None
    _tallies: dict[int, LayerTally] = field(default_factory=dict)
    _left_out: Counter[str] = field(default_factory=Counter)
    _num_choices: int = 0
    _num_sequences: int = 0
    _highest: int = -1

    def __post_init__(self) -> None:
        self.told(num_experts=None, top_k=None)
        self.model = self.reading.options.model

    def told(self, *, num_experts: int | None, top_k: int | None) -> None:
        """By the files; what their owner says goes before it."""
        options = self.reading.options
        self.num_experts = options.num_experts or num_experts or self.num_experts
        self.top_k = options.top_k or top_k or self.top_k

    def saw(self, highest: int) -> None:
        """An expert's number, in what is left out for another reason."""
        if self._is_possible(highest):
            self._highest = max(self._highest, highest)

    def add_sequence(self, domain: str, prompt: str) -> int:
        """The number of a new sequence."""
        self.reading.stop_if_asked()
        self._num_sequences += 1
        if self._num_sequences > self.reading.limits.max_sequences:
            raise InvalidTrace(
                f"There are more than {self.reading.limits.max_sequences:,} sequences: import fewer at once, or raise "
                "the setting traces.max_sequences.",
                param="files",
            )
        return self.writer.add_sequence(domain, prompt)

    def add(  # noqa: PLR0913
        self,
        layer: int,
        sequence: int,
        *,
        positions: ArrayLike,
        phases: ArrayLike,
        experts: ArrayLike,
        weights: ArrayLike | None = None,
        token_ids: ArrayLike | None = None,
    ) -> None:
        """As TraceWriter.add takes them, but in any order of ranks, and with whatever a file may hold."""
        chosen = np.asarray(experts, dtype=np.int64)
        given = np.asarray(weights, dtype=np.float64) if weights is not None else None
        kept = self._possible(chosen, given)
        if self.reading.options.drop_constant_runs and kept.any():
            kept &= self._varied(chosen, kept)
        if not kept.any():
            return
        self._check_bounds(layer, chosen[kept])
        chosen, ordered = _by_falling_weight(chosen[kept], given[kept] if given is not None else None)
        self._tallies[layer].add(chosen, ordered)
        self.writer.add(
            layer,
            sequence,
            positions=np.asarray(positions)[kept],
            phases=np.broadcast_to(np.asarray(phases, dtype=np.uint8), len(kept))[kept],
            experts=chosen,
            weights=ordered,
            token_ids=np.asarray(token_ids)[kept] if token_ids is not None else None,
        )

    @property
    def layers(self) -> dict[int, int]:
        """The number of experts of each layer that has a token: as told, else as high as any layer's go."""
        highest = max([self._highest, *(tally.highest for tally in self._tallies.values())])
        return dict.fromkeys(sorted(self._tallies), self.num_experts or highest + 1)

    def findings(self) -> list[Finding]:
        """What was wrong with what was read, and what is still suspicious."""
        found = [_LEFT_OUT[code](count) for code, count in sorted(self._left_out.items())]
        if self.num_experts is None:
            (num_experts,) = set(self.layers.values()) or {0}
            found.append(
                Finding(
                    code="num_experts_inferred",
                    severity=Severity.INFO,
                    message=f"The files do not say how many experts there are: {num_experts}, as the highest number "
                    "seen has it. Import again with num_experts if there are more.",
                )
            )
        return found + _suspicious(self._tallies, self.layers)

    def _possible(self, experts: NDArray[np.int64], weights: NDArray[np.float64] | None) -> NDArray[np.bool_]:
        """[T] the tokens that can be."""
        there = experts != NOBODY
        num_chosen = there.sum(axis=1)
        absurd = (there & ~self._is_possible(experts)).any(axis=1) | (num_chosen == 0)
        ranked = np.sort(experts, axis=1)
        twice = ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != NOBODY)).any(axis=1)
        strange = np.zeros(len(experts), dtype=np.bool_)
        if weights is not None:
            strange = (~np.isfinite(weights) & there).any(axis=1)
        bad = absurd | twice | strange
        warm_up = np.zeros(len(experts), dtype=np.bool_) if self.top_k is None else ~bad & (num_chosen > self.top_k)
        if warm_up.any():
            self.saw(int(experts[warm_up].max()))
        for code, where in (
            ("absurd_ids", absurd),
            ("repeated_ids", twice & ~absurd),
            ("absurd_weights", strange & ~absurd & ~twice),
            ("warm_up", warm_up),
        ):
            if where.any():
                self._left_out[code] += int(where.sum())
        kept: NDArray[np.bool_] = ~bad & ~warm_up
        return kept

    def _is_possible(self, expert: Any) -> Any:
        return (expert >= 0) & (expert < (self.num_experts or _HIGHEST_PLAUSIBLE + 1))

    def _varied(self, experts: NDArray[np.int64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[T] whether a token is outside of long runs of one set."""
        lengths = runs(np.where(kept, set_hashes(np.where(kept[:, None], experts, NOBODY)), 0))
        is_long = lengths >= LONG_RUN
        if not has_many_sets(self.num_experts or int(experts.max()) + 1, experts.shape[1]):
            is_long[:] = False
        constant: NDArray[np.bool_] = np.repeat(is_long, lengths)
        if (constant & kept).any():
            self._left_out["constant_runs"] += int((constant & kept).sum())
        return ~constant

    def _check_bounds(self, layer: int, experts: NDArray[np.int64]) -> None:
        if layer not in self._tallies and (len(self._tallies) == _MAX_LAYERS or not 0 <= layer <= _MAX_LAYER):
            raise InvalidTrace(
                f"Layer {layer} is one too many: at most {_MAX_LAYERS} are taken, numbered from 0 to {_MAX_LAYER:,}.",
                param="files",
            )
        self._tallies.setdefault(layer, LayerTally())
        self._num_choices += int((experts != NOBODY).sum())
        if self._num_choices > self.reading.limits.max_choices:
            raise InvalidTrace(
                f"There are more than {self.reading.limits.max_choices:,} chosen experts: import fewer at once, or "
                "raise the setting traces.max_choices.",
                param="files",
            )


def _by_falling_weight(
    experts: NDArray[np.int64], weights: NDArray[np.float64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Each token's choices with nobody behind them; as they came where weights are equal or not known."""
    rank = np.where(experts == NOBODY, 1, 0) if weights is None else np.where(experts == NOBODY, np.inf, -weights)
    order = np.argsort(rank, axis=1, kind="stable")
    experts = np.take_along_axis(experts, order, axis=1)
    if weights is None:
        return experts, None
    weights = np.where(experts == NOBODY, 0.0, np.take_along_axis(weights, order, axis=1))
    return experts, weights.astype(np.float32)


def _left_out(code: str, severity: Severity, what: str) -> Any:
    def finding(count: int) -> Finding:
        return Finding(code=code, severity=severity, message=what, count=count)

    return finding


_LEFT_OUT: Final = {
    code: _left_out(code, severity, what)
    for code, severity, what in (
        ("absurd_ids", Severity.WARNING, "Choices of experts that there are not were left out, with their tokens."),
        ("repeated_ids", Severity.WARNING, "Tokens that have an expert twice were left out."),
        ("absurd_weights", Severity.WARNING, "Tokens with weights that are no finite numbers were left out."),
        ("warm_up", Severity.INFO, "Passes with more experts than top-k, as a warm-up runs them, were left out."),
        ("constant_runs", Severity.INFO, "Long runs of tokens with the same experts were left out, as asked."),
    )
}


def _suspicious(tallies: dict[int, LayerTally], layers: dict[int, int]) -> list[Finding]:
    found = [_constant(layer, tally) for layer, tally in sorted(tallies.items()) if tally.is_degenerate(layers[layer])]
    sound = {layer: tally for layer, tally in sorted(tallies.items()) if not tally.is_degenerate(layers[layer])}
    long = {
        layer: tally.longest_run
        for layer, tally in sound.items()
        if tally.longest_run >= LONG_RUN and has_many_sets(layers[layer], tally.top_k)
    }
    if long:
        found.append(
            Finding(
                code="constant_run",
                severity=Severity.WARNING,
                message=f"Up to {max(long.values())} tokens in a row have the same experts. Import again with "
                "drop_constant_runs to leave such runs out.",
                layers=tuple(long),
            )
        )
    uniform = {layer: each.num_uniform for layer, each in tallies.items() if _is_uniform(each)}
    if uniform:
        found.append(
            Finding(
                code="uniform_weights",
                severity=Severity.WARNING,
                message="Tokens' weights are all the same, which no router does: they were not recorded, or the tokens "
                "are padding.",
                layers=tuple(sorted(uniform)),
                count=sum(uniform.values()),
            )
        )
    return found


def _is_uniform(tally: LayerTally) -> bool:
    return tally.num_weighted > 0 and tally.num_uniform >= max(1.0, _UNIFORM_OFTEN * tally.num_weighted)


def _constant(layer: int, tally: LayerTally) -> Finding:
    experts, share = tally.commonest()
    return Finding(
        code="constant_experts",
        severity=Severity.DEGENERATE,
        message=f"Layer {layer}: {share:.0%} of the tokens have the very same {len(experts)} experts "
        f"({', '.join(map(str, experts[:8]))}{', …' if len(experts) > 8 else ''}), {tally.longest_run} of them in a "
        "row. That is a profiling run, padding or a text that repeats itself, not routing. Record again, or import "
        "again with drop_constant_runs to look at the rest.",
        layers=(layer,),
        count=round(share * tally.num_tokens),
    )
