"""The router service on real sockets, real Postgres and Valkey, with a replica that can be told to fail."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.main import build_app
from services.shared.config import RouterServiceSettings, RouterSettings, Settings
from services.shared.database.rows import GapRequestRow, GapRow, RequestRow, Row
from services.shared.database.session import session_factory
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.packed_states import pack_states
from services.shared.registry import create_release, latest_versions, register_expert
from services.shared.release_activation import activate_release
from services.shared.schemas.sequences import AdapterReport
from services.shared.storage import Storage
from services.shared.tokenizer import Tokenizer, load_tokenizer
from tests.integration.router_service.base_folder import GENERIC, TEXTS, write_base_folder
from tests.integration.router_service.replica_double import FINGERPRINT, ReplicaDouble
from tests.integration.router_service.running import served

REPORT = AdapterReport(
    rank=8, num_parameters=10, num_bytes=40, target_modules=("q_proj",), lowest_layer=0, base_fingerprint=FINGERPRINT
)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass
class Registry:
    """Puts things into the registry as jobs do, without the API."""

    sessions: sessionmaker[Session]
    storage: Storage
    tokenizer: Tokenizer

    def expert(
        self,
        name: str,
        *,
        with_evidence: bool = True,
        text: str | None = None,
        content: bytes | None = None,
        metrics: dict[str, float] | None = None,
    ) -> int:
        """The id of a new version of `name`, whose text is TEXTS[text or name] and whose weights are `content`."""
        with self.storage.stage() as staged:
            (staged / "adapter_config.json").write_text("{}")
            (staged / "adapter_model.safetensors").write_bytes(name.encode() if content is None else content)
            if with_evidence:
                streams = [self.tokenizer.encode(TEXTS[text or name] * 20)]
                evidence = build_bigram_evidence(streams, self.tokenizer.vocab_size)
                evidence.save(staged / "evidence" / "bigram.safetensors")
            digest = self.storage.publish(staged)
        with self.sessions.begin() as session:
            version = register_expert(
                session,
                name=name,
                domain=name,
                description="",
                digest=digest,
                report=REPORT,
                has_evidence=with_evidence,
                source="imported",
                metrics=metrics,
            )
            return version.id

    def router(self, settings: RouterSettings | None = None) -> str:
        """The digest of a Bayes router."""
        with self.storage.stage() as staged:
            streams = [self.tokenizer.encode(GENERIC * 20)]
            evidence = build_bigram_evidence(streams, self.tokenizer.vocab_size)
            write_bayes_router(staged, settings=settings or RouterSettings(), base_evidence=evidence)
            return self.storage.publish(staged)

    def release(self, *names: str, activate: bool = True) -> str:
        """The id of a release of experts that are there."""
        router = self.router()
        with self.sessions.begin() as session:
            row = create_release(
                session,
                base_model="double",
                base_fingerprint=FINGERPRINT,
                router_digest=router,
                router_kind="bayes",
                graph_digest=None,
                version_ids=[version.id for version in latest_versions(session, names)],
                note="",
            )
            if activate:
                activate_release(session, row.number)
            return row.id


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and configuration of a base model."""
    return write_base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tokenizer(base_folder: Path) -> Tokenizer:
    """That base model's tokenizer."""
    return load_tokenizer(str(base_folder))


@pytest.fixture
def sessions(database_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on the module's database, emptied for this test."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(Row.metadata.tables)} RESTART IDENTITY CASCADE"))
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def registry(sessions: sessionmaker[Session], storage: Storage, tokenizer: Tokenizer) -> Registry:
    """Registers experts and releases."""
    return Registry(sessions, storage, tokenizer)


@pytest.fixture
def three_experts(registry: Registry) -> str:
    """math, code and story in the active release, whose id this is."""
    for name in TEXTS:
        registry.expert(name)
    return registry.release(*TEXTS)


@pytest.fixture
def make_gap(sessions: sessionmaker[Session]) -> Callable[..., str]:
    """A gap with two requests, as an analysis leaves it; each is seen an hour after the one before."""
    made: list[str] = []

    def make() -> str:
        number = len(made)
        gap_id = f"gap-{number:012x}"
        with sessions.begin() as session:
            session.add(
                GapRow(
                    id=gap_id,
                    base_fingerprint="f",
                    release="release-1",
                    num_prompts=2,
                    trend=1.5,
                    domain="law",
                    keywords=["article", "clause"],
                    expert_name=f"law_article_{number}_expert",
                    centroid=pack_states([1.0, 0.0]),
                    report={"typical_prompts": ["Article 4"], "data_request": {"num_examples": 150}},
                    job_id="job-1",
                    last_seen_at=NOON + timedelta(hours=number),
                )
            )
            for place in range(2):
                request = RequestRow(
                    id=f"r{number}-{place}",
                    endpoint="/generate",
                    plan={},
                    parameters={},
                    num_prompt_tokens=1,
                    num_generated_tokens=1,
                    attribution=[],
                    timings={},
                    flagged=True,
                )
                session.add(request)
                session.flush()
                session.add(GapRequestRow(request_id=request.id, gap_id=gap_id))
        made.append(gap_id)
        return gap_id

    return make


@pytest.fixture
def double(tokenizer: Tokenizer, storage: Storage) -> ReplicaDouble:
    """The replica's behaviour."""
    return ReplicaDouble(tokenizer, storage)


@pytest.fixture
def replica_url(double: ReplicaDouble) -> Iterator[str]:
    """The replica on a socket."""
    with served(double.app()) as url:
        yield url


@pytest.fixture
def router_settings() -> dict[str, Any]:
    """Settings of the router service that a test module overrides."""
    return {}


@pytest.fixture
def app_settings(settings: Settings, base_folder: Path, replica_url: str, router_settings: dict[str, Any]) -> Settings:
    """The router service's settings: this test's database, storage and replica."""
    own = RouterServiceSettings(**{"expert_urls": (replica_url,), "catalog_poll_s": 0.05, **router_settings})
    return settings.model_copy(update={"base_model": str(base_folder), "router_service": own})


@pytest.fixture
def router_url(app_settings: Settings, sessions: sessionmaker[Session]) -> Iterator[str]:
    """The router service on a socket. Ask for what must be registered before it."""
    with served(build_app(app_settings)) as url:
        yield url


@pytest.fixture
def client(router_url: str) -> Iterator[httpx.Client]:
    """A client of the router service."""
    with httpx.Client(base_url=router_url, timeout=30) as http:
        yield http


@pytest.fixture
def broken_database(database_url: str) -> Callable[[], AbstractContextManager[None]]:
    """A block in which Postgres throws everybody out of this test's database and lets nobody in."""
    server, _, name = database_url.rpartition("/")

    def execute(statement: str) -> None:
        engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text(statement), {"name": name} if ":name" in statement else {})
        engine.dispose()

    @contextmanager
    def broken() -> Iterator[None]:
        execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        try:
            yield
        finally:
            execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    return broken
