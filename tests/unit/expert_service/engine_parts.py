"""An engine over a tiny model, stepped by hand: real parts, a scripted router."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.answer_text import AnswerText
from services.expert_service.answers import Delivery, Event
from services.expert_service.engine import Engine, EngineLimits
from services.expert_service.kv_places import FIRST_CAPACITY
from services.expert_service.metrics import EngineMetrics
from services.expert_service.model_runner import ModelRunner
from services.expert_service.pooled_states import PooledStates
from services.expert_service.sampling import TokenChooser
from services.expert_service.sequence import PlannedAdapter, Sequence
from services.expert_service.sequence_gate import Scores, SequenceGate, States, Weights
from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import (
    ErrorEvent,
    ExpertRef,
    FinishedEvent,
    RoutingPlan,
    SequenceRequest,
    TokenEvent,
)
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import BASE, PlanMode
from tests.unit.shared.modeling.tiny_models import VOCAB_SIZE, random_adapter, tiny_model

MAX_CONTEXT = 64


@dataclass
class ScriptedState:
    """A running number that every token changes."""

    total: float = 0.0

    def copy(self) -> "ScriptedState":
        return ScriptedState(self.total)


@dataclass(frozen=True)
class ScriptedScorer:
    """An honest little router: scores depend on all tokens so far, and on trunk states where it taps."""

    names: tuple[str, ...]
    tap_layer: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.names, BASE)

    def start(self) -> ScriptedState:
        return ScriptedState()

    def advance(self, state: ScriptedState, token_ids: Items[int], trunk_states_TD: States | None = None) -> Scores:
        rows = []
        for index, token_id in enumerate(token_ids):
            seen = float(token_id) / VOCAB_SIZE
            if self.tap_layer is not None:
                assert trunk_states_TD is not None
                seen += float(np.tanh(trunk_states_TD[index].sum()))
            state.total = 0.7 * state.total + seen
            raw_C = np.array([np.cos(3 * state.total + 2 * column) for column in range(len(self.columns))])
            raw_C = np.maximum(raw_C, 0) + 1e-9
            rows.append(raw_C / raw_C.sum())
        return np.stack(rows)

    def advance_batch(
        self, states: Items[ScriptedState], token_ids: Items[int], trunk_states_BD: States | None = None
    ) -> Scores:
        assert trunk_states_BD is None
        return np.concatenate([self.advance(s, [t]) for s, t in zip(states, token_ids, strict=True)])

    def weights(self, scores_TC: Scores, candidates: Items[str] | None = None) -> Weights:
        allowed_C = np.array([candidates is None or name in candidates or name == BASE for name in self.columns])
        kept_TC = np.where((scores_TC > 0.1) & allowed_C, scores_TC, 0.0)
        kept_TC[:, -1] += kept_TC.sum(axis=1) == 0
        weights_TC: Weights = (kept_TC / kept_TC.sum(axis=1, keepdims=True)).astype(np.float32)
        return weights_TC


def letters_tokenizer() -> Tokenizer:
    """One visible character per token, ids as in the tiny models; 0-2 are special."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(33 + i): i for i in range(3, VOCAB_SIZE)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    return Tokenizer(backend, eos_ids=frozenset({2}), max_context=MAX_CONTEXT, vocab_size=VOCAB_SIZE)


class HeldCopies(Executor):
    """Copies to a device that end when the test says so."""

    def __init__(self) -> None:
        self._held: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self._held.append((future, lambda: work(*args, **kwargs)))
        return future

    def finish(self, error: Exception | None = None) -> int:
        """All that were started end, with `error` if there is one. Returns how many there were."""
        held, self._held = self._held, []
        for future, work in held:
            if error is None:
                future.set_result(work())
            else:
                future.set_exception(error)
        return len(held)


@dataclass
class HandEngine:
    """An engine whose steps the test makes, and what it has told so far."""

    engine: Engine
    runner: ModelRunner
    cache: AdapterCache
    tokenizer: Tokenizer
    adapters: Mapping[str, Adapter]
    events: dict[str, list[Event]] = field(default_factory=dict)

    def step(self) -> None:
        for sequence, events in self.engine.step():
            self.events.setdefault(sequence.request.request_id, []).extend(events)

    def run(self, *, max_steps: int = 400) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            self.step()
            status = self.engine.status
            if not status.running and not status.waiting:
                return
        raise AssertionError(f"not done after {max_steps} steps: {self.engine.status}")

    def submit(self, name: str, prompt_ids: Items[int], **options: Any) -> Sequence:
        sequence = self.sequence(name, prompt_ids, **options)
        self.engine.submit(sequence)
        return sequence

    def sequence(
        self,
        name: str,
        prompt_ids: Items[int],
        *,
        fixed: Mapping[str, float] | None = None,
        scorer: ScriptedScorer | None = None,
        candidates: Items[str] | None = None,
        prompt_logprobs: bool = False,
        prompt_states: bool = False,
        states_layer: int | None = None,
        **sampling: Any,
    ) -> Sequence:
        """A sequence under fixed weights, under a scripted router, or of the base model alone."""
        experts = tuple(fixed or (scorer.names if scorer else ()))
        names = tuple(candidates or experts)
        mode = PlanMode.FIXED if fixed else PlanMode.ROUTED if scorer else PlanMode.BASE
        plan = RoutingPlan(
            mode=mode,
            router="0" * 64 if scorer else None,
            experts=tuple(ExpertRef(name=expert, version=1, digest=_digest(expert)) for expert in experts),
            candidates=names,
            weights=dict(fixed or {}),
        )
        parameters = SamplingParameters(**{"max_new_tokens": 8, "ignore_eos_token": True, **sampling})
        request = SequenceRequest(
            request_id=name,
            prompt_ids=tuple(prompt_ids),
            sampling=parameters,
            plan=plan,
            prompt_logprobs=prompt_logprobs,
            prompt_states=prompt_states,
            states_layer=states_layer,
        )
        planned = [PlannedAdapter(expert, _digest(expert), self.adapters[expert]) for expert in names]
        lowest = min((item.adapter.report.lowest_layer for item in planned), default=None)
        return Sequence(
            request=request,
            gate=SequenceGate.of(plan, scorer, lowest_layer=lowest),
            adapters=planned,
            chooser=TokenChooser(parameters, vocab_size=VOCAB_SIZE, device=self.runner.device),
            text=AnswerText(self.tokenizer, prompt_ids=prompt_ids, stop=parameters.stop),
            pooled=PooledStates(len(prompt_ids)) if prompt_states else None,
        )

    def tokens(self, name: str) -> list[TokenEvent]:
        return [event for event in self.events.get(name, []) if isinstance(event, TokenEvent)]

    def ids(self, name: str) -> list[int]:
        return [event.id for event in self.tokens(name)]

    def last(self, name: str) -> Event:
        return self.events[name][-1]

    def finished(self, name: str) -> FinishedEvent:
        last = self.last(name)
        assert isinstance(last, FinishedEvent), last
        return last

    def error(self, name: str) -> ErrorEvent:
        last = self.last(name)
        assert isinstance(last, ErrorEvent), last
        return last


def _digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def make_adapters(folder: Path, names: Items[str], family: str = "llama", **options: Any) -> dict[str, Adapter]:
    """Random adapters by name."""
    model = tiny_model(family)
    return {
        name: random_adapter(folder / name, model, family, seed=seed, **options) for seed, name in enumerate(names, 1)
    }


def hand_engine(
    adapters: Mapping[str, Adapter],
    *,
    family: str = "llama",
    num_slots: int = 8,
    slot_bytes: int = 2**30,
    max_sequences: int = 6,
    max_waiting: int = 100,
    prefill_step_tokens: int = 512,
    kv_cache_bytes: int | None = None,
    first_capacity: int = FIRST_CAPACITY,
    max_overtaken: int = 16,
    copies: Executor | None = None,
    deliver: Callable[[list[Delivery]], None] = lambda _deliveries: None,
    dtype: torch.dtype = torch.float32,
) -> HandEngine:
    """Everything real but the clock: the test makes the steps.

    In float64, what is left of a difference between two batches is no longer rounding that a router of trunk states
    makes larger.
    """
    model = tiny_model(family).to(dtype)
    mixture = LoraMixture.attach(model, num_slots=num_slots)
    runner = ModelRunner(
        model,
        mixture,
        max_sequences=max_sequences,
        max_context=MAX_CONTEXT,
        kv_cache_bytes=kv_cache_bytes,
        first_capacity=first_capacity,
    )
    cache = AdapterCache(mixture, slot_bytes=slot_bytes, copies=copies)
    tokenizer = letters_tokenizer()
    engine = Engine(
        runner,
        cache,
        tokenizer,
        limits=EngineLimits(
            max_sequences=max_sequences,
            max_waiting=max_waiting,
            prefill_step_tokens=prefill_step_tokens,
            max_overtaken=max_overtaken,
        ),
        deliver=deliver,
        metrics=EngineMetrics(),
    )
    return HandEngine(engine, runner, cache, tokenizer, adapters)
