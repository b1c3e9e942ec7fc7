"""A real expert service over real HTTP in this process: real model, adapters, router, storage."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from pydantic import TypeAdapter

from services.expert_service.main import build_app
from services.shared.config import ExpertServiceSettings, RouterSettings, Settings, StorageSettings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.schemas.sequences import FinishedEvent, SequenceEvent, TokenEvent
from services.shared.storage import Storage

EVENT: TypeAdapter[SequenceEvent] = TypeAdapter(SequenceEvent)


@dataclass
class Served:
    """A running service and what is in its storage."""

    url: str
    settings: Settings
    base: LoadedBase
    experts: dict[str, str] = field(default_factory=dict)
    router: str = ""

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def ids(self, text: str) -> list[int]:
        return self.base.tokenizer.encode(text)

    def plan(self, mode: str, **fields: Any) -> dict[str, Any]:
        """A plan over all experts."""
        experts = [{"name": name, "version": 1, "digest": digest} for name, digest in self.experts.items()]
        plans: dict[str, dict[str, Any]] = {
            "routed": {"router": self.router, "experts": experts, "candidates": list(self.experts)},
            "fixed": {"experts": experts},
            "base": {},
        }
        return {"mode": mode, **plans[mode], **fields}

    def body(self, text: str, plan: Mapping[str, Any], **sampling: Any) -> dict[str, Any]:
        return {
            "request_id": "test",
            "prompt_ids": self.ids(text),
            "sampling": {"max_new_tokens": 8, **sampling},
            "plan": plan,
        }

    def generate(self, text: str, plan: Mapping[str, Any], **sampling: Any) -> list[SequenceEvent]:
        """All events of one sequence."""
        with self.client as client:
            response = client.post("/sequences", json=self.body(text, plan, **sampling))
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [EVENT.validate_json(line) for line in response.text.splitlines()]

    def wait_until_idle(self, *, seconds: float = 5.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status: dict[str, Any] = httpx.get(f"{self.url}/status").json()
            if not status["running"] and not status["waiting"]:
                return status
            time.sleep(0.02)
        raise AssertionError(f"still busy: {status}")


def answer(events: Sequence[SequenceEvent]) -> tuple[list[TokenEvent], FinishedEvent]:
    """Tokens and the end of a sequence that went well."""
    finished = events[-1]
    assert isinstance(finished, FinishedEvent), finished
    tokens = [event for event in events[:-1] if isinstance(event, TokenEvent)]
    assert len(tokens) == len(events) - 1
    return tokens, finished


@contextmanager
def serving(base_model: Path, root: Path, *, port: int = 0, **limits: Any) -> Iterator[Served]:
    """The service on `port`, by default a free one."""
    settings = Settings(
        base_model=str(base_model),
        storage=StorageSettings(root=root),
        expert_service=ExpertServiceSettings(**{"num_threads": 1, **limits}),
    )
    base = load_base_model(settings)
    server = uvicorn.Server(uvicorn.Config(build_app(settings, base), port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{port}", settings, base)
    finally:
        server.should_exit = True
        thread.join()


def publish_expert(storage: Storage, adapter: Path, texts: Sequence[Sequence[int]], vocab_size: int) -> str:
    """An expert version: the PEFT folder with bigram evidence from its texts."""
    (adapter / "evidence").mkdir(exist_ok=True)
    build_bigram_evidence(texts, vocab_size).save(adapter / "evidence" / "bigram.safetensors")
    return storage.publish(adapter)


def publish_router(storage: Storage, texts: Sequence[Sequence[int]], vocab_size: int) -> str:
    """A Bayes router whose base row is made of `texts`."""
    with storage.stage() as folder:
        write_bayes_router(folder, settings=RouterSettings(), base_evidence=build_bigram_evidence(texts, vocab_size))
        return storage.publish(folder)
