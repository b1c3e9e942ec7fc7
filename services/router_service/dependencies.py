"""What the routes need, made once by `main` and closed in order by the lifespan."""

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request

from services.router_service.catalog import Catalog
from services.router_service.embedding import Embedder
from services.router_service.file_store import FileStore
from services.router_service.fine_tuned_models import FineTunedModels
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
from services.shared.config import Settings
from services.shared.storage import Storage
from services.shared.tokenizer import Tokenizer
from services.shared.web import new_request_id


@dataclass(frozen=True)
class Resources:
    """Everything that lives as long as the service."""

    settings: Settings
    metrics: Metrics
    storage: Storage
    tokenizer: Tokenizer
    transactions: Transactions
    catalog: Catalog
    replicas: Replicas
    reader: PromptReader
    request_log: RequestLog
    pipeline: Pipeline
    embedder: Embedder
    files: FileStore
    hub_datasets: HubDatasets
    fine_tuned: FineTunedModels
    pins: Pins
    queue: Celery
    submission: JobSubmission
    live_analyses: LiveAnalyses


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


def _log_id(request: Request) -> str:
    """The id of the routing log: the request's own where we made it, as one that a client chose may come again."""
    state = request.state
    log_id: str = new_request_id() if state.request_id_is_given else state.request_id
    return log_id


ResourcesDep = Annotated[Resources, Depends(_resources)]
LogIdDep = Annotated[str, Depends(_log_id)]
