"""The router service: the public API. `python -m services.router_service.main` runs it until SIGTERM or SIGINT."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import httpx
import uvicorn
from fastapi import FastAPI, Request

from services.router_service import page_files
from services.router_service.api import (
    experts,
    files,
    gap_experts,
    gaps,
    garbage,
    generate,
    health,
    health_report,
    job_records,
    jobs,
    live_analysis,
    openai_adapters,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_files,
    openai_fine_tuning,
    openai_models,
    releases,
    replicas,
    requests,
    route,
    tgi_info,
    traces,
)
from services.router_service.api.disconnect import install_disconnect_handler
from services.router_service.api.docs import install_docs
from services.router_service.api.page import install_page
from services.router_service.catalog import Catalog
from services.router_service.dependencies import Resources
from services.router_service.discovery import Discovery
from services.router_service.embedding import Embedder
from services.router_service.file_store import FileStore
from services.router_service.fine_tuned_models import FineTunedModels
from services.router_service.http_protocol import BoundedHttpProtocol
from services.router_service.hub_datasets import HubDatasets
from services.router_service.job_submission import JobSubmission
from services.router_service.live_analysis import LiveAnalyses
from services.router_service.metrics import Metrics
from services.router_service.pins import Pins
from services.router_service.pipeline import Pipeline
from services.router_service.replicas import Replicas
from services.router_service.request_log import RequestLog
from services.router_service.scoring import PromptReader
from services.router_service.transactions import Transactions
from services.shared.config import RouterServiceSettings, Settings
from services.shared.database.session import open_engine
from services.shared.errors import AmoeError, Overloaded
from services.shared.queue import celery_client
from services.shared.storage import Storage
from services.shared.telemetry import configure_logging, get_logger
from services.shared.tokenizer import Tokenizer, load_tokenizer
from services.shared.vocabulary import JobKind
from services.shared.web import KEEP_ALIVE_S, install_error_handlers, install_middleware

log = get_logger(__name__)

SERVICE: Final = "router"
_BODY_BYTES_PER_PROMPT_BYTE: Final = 6
"""JSON may write any character as \\uXXXX."""

_MULTIPART_OVERHEAD_BYTES: Final = 80 * 1024**2
"""Room for the other parts of an expert's upload: exemplars, configuration, boundaries."""

_TGI_PATHS: Final = frozenset({"/", "/generate", "/generate_stream"})
_SHUTDOWN_S: Final = 5
_STAGING_AGE_S: Final = 24 * 3600.0
"""No upload or job stages an artifact for so long; what is older belongs to a process that was killed."""

_ROUTES: Final = (
    generate,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    openai_files,
    openai_fine_tuning,
    route,
    experts,
    files,
    jobs,
    job_records,
    releases,
    replicas,
    requests,
    gap_experts,
    gaps,
    garbage,
    traces,
    live_analysis,
    tgi_info,
    health,
    health_report,
)

OpenHttp = Callable[[RouterServiceSettings], httpx.AsyncClient]


def build_app(settings: Settings, *, tokenizer: Tokenizer | None = None, open_http: OpenHttp | None = None) -> FastAPI:
    """The application; its resources live as long as its lifespan. `open_http` reaches the expert replicas.

    Raises InvalidRequest when the base model's tokenizer cannot be read.
    """
    own = settings.router_service
    known_tokenizer = tokenizer or load_tokenizer(settings.base_model, chat_template=settings.chat_template)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings, known_tokenizer, open_http or _open_http) as resources:
            app.state.resources = resources
            yield

    app = FastAPI(
        title="Adaptive MoE",
        summary="One frozen language model and many LoRA experts, chosen token by token.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app, more=_tgi_error_type, union_tags=list(JobKind))
    install_disconnect_handler(app)
    uploads = settings.storage.max_upload_bytes + _MULTIPART_OVERHEAD_BYTES
    install_middleware(
        app,
        max_body_bytes=own.max_body_bytes or _BODY_BYTES_PER_PROMPT_BYTE * own.max_prompt_bytes + 64 * 1024,
        max_json_depth=own.max_json_depth,
        upload_limits={
            "/files": uploads,
            "/v1/files": uploads,
            "/experts": uploads,
            "/traces": settings.traces.max_upload_bytes + _MULTIPART_OVERHEAD_BYTES,
            "/releases/import": settings.releases.max_archive_bytes + _MULTIPART_OVERHEAD_BYTES,
        },
        api_key=own.api_key,
        open_files=page_files.OPEN_PATHS,
    )
    for module in _ROUTES:
        app.include_router(module.router)
    if own.adapter_folder is not None:
        app.include_router(openai_adapters.router)
    install_docs(app)
    install_page(app)
    return app


@asynccontextmanager
async def open_resources(settings: Settings, tokenizer: Tokenizer, open_http: OpenHttp) -> AsyncIterator[Resources]:
    """Everything the routes need, closed in reverse order; the catalog and the replicas have been looked at once."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        engine = open_engine(settings.database, application_name=SERVICE)
        transactions = Transactions(engine, num_threads=settings.database.pool_size)
        stack.callback(transactions.close)
        http = await stack.enter_async_context(open_http(settings.router_service))
        resources = _connect(settings, metrics, tokenizer, transactions, http)
        stack.push_async_callback(resources.request_log.flush)
        await asyncio.to_thread(_sweep_staging, resources.storage)
        await resources.replicas.discover()
        await asyncio.gather(resources.catalog.try_refresh(), resources.replicas.look())
        for work in (
            resources.catalog.keep_fresh,
            resources.replicas.keep_watching,
            resources.replicas.keep_discovering,
            resources.pins.keep_applied,
            resources.request_log.keep_writing,
            resources.pipeline.records.keep_measuring,
        ):
            stack.push_async_callback(_stop, asyncio.create_task(work()))
        yield resources


def _connect(
    settings: Settings, metrics: Metrics, tokenizer: Tokenizer, transactions: Transactions, http: httpx.AsyncClient
) -> Resources:
    own = settings.router_service
    storage = Storage(settings.storage.root)
    catalog = Catalog(
        transactions=transactions,
        storage=storage,
        vocab_size=tokenizer.vocab_size,
        poll_s=own.catalog_poll_s,
        metrics=metrics,
    )
    replicas = Replicas(Discovery(own.expert_urls), http, metrics, lost_after_s=own.replica_silence_s)
    reader = PromptReader(tokenizer, max_prompt_bytes=own.max_prompt_bytes, remote=replicas)
    request_log = RequestLog(transactions, metrics, max_waiting=own.request_log_queue, store_prompts=own.store_prompts)
    pipeline = Pipeline(
        catalog=catalog, reader=reader, replicas=replicas, request_log=request_log, metrics=metrics, settings=own
    )
    queue = celery_client(settings)
    return Resources(
        settings=settings,
        metrics=metrics,
        storage=storage,
        tokenizer=tokenizer,
        transactions=transactions,
        catalog=catalog,
        replicas=replicas,
        reader=reader,
        request_log=request_log,
        pipeline=pipeline,
        embedder=Embedder(pipeline, max_at_once=own.max_choices),
        files=FileStore(transactions, storage, max_bytes=settings.storage.max_upload_bytes),
        hub_datasets=HubDatasets(own.dataset_hub_url),
        fine_tuned=FineTunedModels(transactions),
        pins=Pins(transactions=transactions, catalog=catalog, replicas=replicas),
        queue=queue,
        submission=JobSubmission(transactions, storage, queue, tokenizer, settings, hosted_base=lambda: replicas.base),
        live_analyses=LiveAnalyses(transactions),
    )


def _sweep_staging(storage: Storage) -> None:
    left = storage.sweep_staging(older_than_s=_STAGING_AGE_S)
    if left:
        log.info("removed what killed processes had left in staging", num_folders=len(left))


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _open_http(settings: RouterServiceSettings) -> httpx.AsyncClient:
    timeout = httpx.Timeout(settings.request_timeout_s, connect=settings.connect_timeout_s)
    # As many connections as requests are admitted; the pool must not be a second, hidden queue.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.max_concurrent_requests)
    return httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)


def _tgi_error_type(request: Request, error: AmoeError) -> dict[str, str]:
    """TGI's clients read `error_type` beside `error`."""
    if request.url.path not in _TGI_PATHS:
        return {}
    if isinstance(error, Overloaded):
        return {"error_type": "overloaded"}
    return {"error_type": "validation" if error.status < 500 else "generation"}


def main() -> None:
    """Run until told to stop; answers in the making get five seconds to end."""
    settings = Settings()
    configure_logging(settings.telemetry, service=SERVICE)
    try:
        app = build_app(settings)
    except AmoeError as error:
        log.error("cannot start", reason=error.message)
        sys.exit(2)
    gc.freeze()  # a full collection would hold every stream up to walk what stays anyway
    own = settings.router_service
    uvicorn.run(
        app,
        host=own.host,
        port=own.port,
        loop="auto",
        http=BoundedHttpProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
