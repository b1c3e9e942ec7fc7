"""The expert service: `python -m services.expert_service.main`, one replica, until SIGTERM or SIGINT.

Reads Settings once, loads the base model, then serves. On SIGTERM it takes nothing new, lets streams finish for a few
seconds and ends the rest with an error event.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from types import FrameType
from typing import Final

import torch
import uvicorn
from fastapi import FastAPI

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.adapter_loader import AdapterLoader, ScorerLoader
from services.expert_service.admission import Admission
from services.expert_service.answers import Delivery
from services.expert_service.api import adapters, sequences, status
from services.expert_service.dependencies import Replica
from services.expert_service.engine import Engine, EngineLimits
from services.expert_service.host_cache import HostCache
from services.expert_service.intake import Intake
from services.expert_service.memory import MemoryReader, MemoryWatch
from services.expert_service.metrics import EngineMetrics
from services.expert_service.model_runner import ModelRunner
from services.expert_service.replica_gauges import ReplicaGauges
from services.expert_service.self_test import check_architecture
from services.expert_service.streaming import Streams
from services.shared.config import Settings
from services.shared.errors import AmoeError
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.storage import Storage
from services.shared.telemetry import configure_logging, get_logger
from services.shared.web import KEEP_ALIVE_S, install_error_handlers, install_middleware

log = get_logger(__name__)

DRAIN_S: Final = 5.0
_MAX_BODY_BYTES: Final = 16 * 1024**2


def build_app(settings: Settings, base: LoadedBase) -> FastAPI:
    """The application over a loaded base model; the engine starts and stops with it."""

    streams = Streams()
    replica = build_replica(settings, base, streams)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        streams.attach(asyncio.get_running_loop())
        app.state.replica = replica
        replica.engine.start()
        watching = asyncio.create_task(MemoryWatch(replica.memory.uses).keep_watching())
        log.info("ready", base_model=base.name, device=str(base.device), max_context=base.max_context)
        yield
        watching.cancel()
        await asyncio.to_thread(replica.engine.stop)

    app = FastAPI(title="Adaptive MoE expert service", lifespan=lifespan)
    install_error_handlers(app)
    install_middleware(app, max_body_bytes=_MAX_BODY_BYTES)
    for routes in (sequences, adapters, status):
        app.include_router(routes.router)
    return app


def build_replica(settings: Settings, base: LoadedBase, streams: Streams) -> Replica:
    """All parts of a replica, wired; the engine not yet started."""
    limits = settings.expert_service
    storage = Storage(settings.storage.root)
    mixture = LoraMixture.attach(base.model, num_slots=limits.num_slots)
    runner = ModelRunner(
        base.model,
        mixture,
        max_sequences=limits.max_sequences,
        max_context=base.max_context,
        kv_cache_bytes=limits.kv_cache_bytes,
    )
    check_architecture(runner, base.tokenizer)
    host = HostCache(limits.host_cache_bytes)
    # On a CPU there is nothing to copy: a slot holds what host memory holds.
    copies = None if base.device.type == "cpu" else ThreadPoolExecutor(1, thread_name_prefix="slot-copies")
    slots = AdapterCache(mixture, slot_bytes=limits.slot_bytes, host=host, copies=copies)
    metrics = EngineMetrics()

    def deliver(deliveries: list[Delivery]) -> None:
        streams.deliver(deliveries)
        for _, events in deliveries:
            metrics.told(events)

    engine = Engine(
        runner,
        slots,
        base.tokenizer,
        limits=EngineLimits(
            max_sequences=limits.max_sequences,
            max_waiting=limits.max_waiting,
            prefill_step_tokens=limits.prefill_step_tokens,
            max_overtaken=limits.max_overtaken,
            num_threads=limits.num_threads,
        ),
        deliver=deliver,
        metrics=metrics,
    )
    vocab_size = int(base.model.config.get_text_config().vocab_size)
    loader = AdapterLoader(
        storage,
        mixture.shapes,
        dtype=base.dtype,
        max_rank=limits.max_rank,
        base_fingerprint=base.fingerprint,
        host=host,
    )
    admission = Admission(base, vocab_size, loader, ScorerLoader(storage, vocab_size=vocab_size), slots)
    memory = MemoryReader(lambda: engine.status, limits, base.device)
    intake = Intake()
    gauges = ReplicaGauges(
        metrics,
        status=lambda: intake.seen_in(engine.status),
        in_flight=lambda: streams.open_sequences,
        slots=slots.counts,
        loads=loader.counts,
        memory=memory.uses,
    )
    metrics.registry.register(gauges)
    return Replica(settings, base, storage, runner, engine, admission, streams, metrics, gauges, memory, intake)


class _Server(uvicorn.Server):
    """uvicorn that tells the engine of a signal at once, so that streams can end in words."""

    def __init__(self, app: FastAPI, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        replica: Replica | None = getattr(self._app.state, "replica", None)
        if replica is not None:
            replica.engine.drain(DRAIN_S)
        super().handle_exit(sig, frame)


def main() -> int:
    """Serve until told to stop; 2 when the configuration cannot work."""
    settings = Settings()
    configure_logging(settings.telemetry, service="expert")
    if settings.expert_service.num_threads is not None:
        torch.set_num_threads(settings.expert_service.num_threads)
    try:
        app = build_app(settings, load_base_model(settings))
    except AmoeError as error:
        log.error("cannot start", reason=error.message, setting=error.param)
        return 2
    gc.freeze()  # a full collection would stop the engine's steps to walk 400,000 objects that stay
    # uvicorn raises the signal again when it is done; by then everything is in order, so the exit status is 0.
    for expected in (signal.SIGTERM, signal.SIGINT):
        signal.signal(expected, lambda _signal, _frame: None)
    server = _Server(
        app,
        uvicorn.Config(
            app,
            host=settings.expert_service.host,
            port=settings.expert_service.port,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(2 * DRAIN_S),
        ),
    )
    server.run()
    return 0


def _leave(status: int) -> None:
    """End at once: taking torch's modules apart one by one would cost seconds and gain nothing."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
