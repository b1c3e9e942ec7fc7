"""An expert replica without a model: it speaks the hop's protocol, says what it is told to, and fails on demand."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from services.shared.errors import AmoeError, InvalidAdapter, Overloaded
from services.shared.schemas.sequences import (
    AdapterCheckRequest,
    AdapterReport,
    BaseModelInfo,
    ErrorEvent,
    FinishedEvent,
    ReplicaStatus,
    RoutingPlan,
    SequenceEvent,
    SequenceRequest,
    SequenceTimings,
    TokenEvent,
)
from services.shared.storage import Storage
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import BASE, FinishReason, PlanMode
from services.shared.web import install_error_handlers, install_middleware

FINGERPRINT = "f" * 64
MAX_CONTEXT = 256
TIMINGS = SequenceTimings(queue_ms=1.0, prefill_ms=2.0, decode_ms=3.0)


class Crash(Exception):
    """What ends a connection in the middle."""


@dataclass
class ReplicaDouble:
    """What the replica does next, and what it was asked."""

    tokenizer: Tokenizer
    storage: Storage
    answer: str = "one two three four five six seven eight"
    answers: dict[str, str] = field(default_factory=dict)
    """What it says instead when one expert, or the base, speaks alone."""
    pause_s: float = 0.0
    reading_pause_s: float = 0.0
    """Before it has read an answer."""
    refusal: AmoeError | None = None
    num_before_full: int | None = None
    """Sequences that are taken before all others are refused; None for all."""
    num_crashes_before_first_token: int = 0
    crash_after_tokens: int | None = None
    error_after_tokens: int | None = None
    fingerprint: str = FINGERPRINT
    max_context: int = MAX_CONTEXT
    resident: tuple[str, ...] = ()
    is_draining: bool = False
    is_frozen: bool = False
    """Accepts connections and says nothing, as a process that was stopped or a machine that hangs."""
    requests: list[SequenceRequest] = field(default_factory=list)
    num_cancelled: int = 0
    num_open: int = 0

    def app(self) -> FastAPI:
        """The replica as an application."""
        app = FastAPI()
        install_error_handlers(app)
        install_middleware(app, max_body_bytes=16 * 1024**2)
        app.post("/sequences")(self.sequences)
        app.post("/adapters/check")(self.check)
        app.get("/base")(self.base)
        app.get("/status")(self.status)
        app.post("/drain")(self.drain)
        app.post("/undrain")(self.undrain)
        return app

    async def sequences(self, request: SequenceRequest) -> StreamingResponse:
        """Say `answer`, token by token."""
        if self.refusal is not None:
            raise self.refusal
        if self.num_before_full is not None and len(self.requests) >= self.num_before_full:
            raise Overloaded("Full.", retry_after_s=1)
        self.requests.append(request)
        await self._while_frozen()
        return StreamingResponse(self._lines(request), media_type="application/x-ndjson")

    async def check(self, request: AdapterCheckRequest) -> AdapterReport:
        """Accepts weights that are not called bad."""
        weights = (self.storage.artifact(request.digest) / "adapter_model.safetensors").read_bytes()
        if b"bad" in weights:
            raise InvalidAdapter("The weights are bad.", param="files")
        return AdapterReport(
            rank=8,
            num_parameters=len(weights),
            num_bytes=len(weights),
            target_modules=("q_proj",),
            lowest_layer=0,
            base_fingerprint=self.fingerprint,
        )

    async def base(self) -> BaseModelInfo:
        """The pretended base model."""
        return BaseModelInfo(
            name="double",
            fingerprint=self.fingerprint,
            max_context=self.max_context,
            vocab_size=self.tokenizer.vocab_size,
            dtype="float32",
            device="cpu",
            num_parameters=1,
        )

    async def status(self) -> ReplicaStatus:
        """Its load, with slots."""
        await self._while_frozen()
        return ReplicaStatus(
            running=self.num_open,
            waiting=0,
            num_slots=4,
            resident=self.resident,
            pinned=(),
            resident_bytes=0,
            draining=self.is_draining,
        )

    async def drain(self) -> ReplicaStatus:
        """Say that it takes nothing new."""
        self.is_draining = True
        return await self.status()

    async def undrain(self) -> ReplicaStatus:
        """And that it does again."""
        self.is_draining = False
        return await self.status()

    async def _while_frozen(self) -> None:
        # Polled: the tests' threads set it, and an asyncio event is of one loop.
        while self.is_frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _lines(self, request: SequenceRequest) -> AsyncIterator[bytes]:
        self.num_open += 1
        try:
            if self.num_crashes_before_first_token > 0:
                self.num_crashes_before_first_token -= 1
                raise Crash
            async for event in self._events(request):
                yield event.model_dump_json().encode() + b"\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_open -= 1

    async def _events(self, request: SequenceRequest) -> AsyncIterator[SequenceEvent]:
        ids = self._ids(request)
        is_reading = bool(request.sampling.logit_bias)
        await asyncio.sleep(self.reading_pause_s if is_reading else 0.0)
        texts = self.tokenizer.tokens(ids)
        for index, (token_id, text) in enumerate(zip(ids, texts, strict=True)):
            if index == self.crash_after_tokens:
                await asyncio.sleep(0.05)
                raise Crash
            await self._while_frozen()
            if index == self.error_after_tokens:
                yield ErrorEvent(message="The replica ran out of memory.", code="out_of_memory")
                return
            yield TokenEvent(
                index=index,
                id=token_id,
                text=text,
                logprob=logprob_of(request.plan) if is_reading else -0.5,
                special=False,
                gates=gates_of(request.plan),
                top_logprobs=self._top(token_id, request),
            )
            await asyncio.sleep(self.pause_s)
        is_full = len(ids) == request.sampling.max_new_tokens
        yield FinishedEvent(
            finish_reason=FinishReason.LENGTH if is_full else FinishReason.STOP_SEQUENCE,
            generated_text="".join(texts),
            num_prompt_tokens=len(request.prompt_ids),
            num_generated_tokens=len(ids),
            seed=request.sampling.seed,
            prompt_logprobs=self._prompt_logprobs(request) if request.prompt_logprobs else None,
            prompt_top_logprobs=((), *[self._top(0, request)] * (len(request.prompt_ids) - 1))
            if request.prompt_logprobs
            else None,
            prompt_states=(0.5, -0.25, float(len(request.prompt_ids))) if request.prompt_states else None,
            timings=TIMINGS,
        )

    def _ids(self, request: SequenceRequest) -> list[int]:
        """What it says, unless a bias leaves one token only."""
        forced = [token_id for token_id, bias in request.sampling.logit_bias.items() if bias == 100.0]
        alone = next(iter(request.plan.candidates), BASE) if request.plan.mode is not PlanMode.ROUTED else ""
        ids = forced or self.tokenizer.encode(self.answers.get(alone, self.answer), add_special_tokens=False)
        return ids[: request.sampling.max_new_tokens]

    def _prompt_logprobs(self, request: SequenceRequest) -> tuple[float | None, ...]:
        logprob = logprob_of(request.plan) if request.sampling.logit_bias else -1.0
        return (None, *[logprob] * (len(request.prompt_ids) - 1))

    def _top(self, token_id: int, request: SequenceRequest) -> tuple[tuple[int, float], ...]:
        """The token itself, then others in the tokenizer's order, each less likely by one."""
        others = (other for other in range(10, 100) if other != token_id)
        ids = [token_id, *itertools.islice(others, request.sampling.num_top_logprobs)]
        return tuple((likely, -0.5 - rank) for rank, likely in enumerate(ids[: request.sampling.num_top_logprobs]))


def logprob_of(plan: RoutingPlan) -> float:
    """Of each token of an answer that is read: the more experts may speak, the likelier."""
    return -2.0 / (1 + len(plan.candidates))


def gates_of(plan: RoutingPlan) -> dict[str, float]:
    """Three quarters to the best candidate where a release decides; fixed weights as given."""
    if plan.mode == PlanMode.FIXED:
        left = 1.0 - sum(plan.weights.values())
        return {**plan.weights, **({BASE: left} if left > 0 else {})}
    return {plan.candidates[0]: 0.75, BASE: 0.25} if plan.candidates else {BASE: 1.0}
