"""Traces over HTTP: imported, analysed, looked into, deleted; and the same analysis of the routing log."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.router_service.token_log import TokenLog, encode_token_log
from services.shared.config import Settings, TraceSettings
from services.shared.database.rows import RequestRow
from services.shared.storage import Storage
from services.trainer_worker.job_runner import JobRunner
from tests.integration.router_service.conftest import NOON
from tests.unit.traces.importers.recordings import route, routes
from tests.unit.traces.importers.test_buffer_timeline import EVENTS

pytestmark = pytest.mark.integration

Answer = dict[str, Any]
Import = Callable[..., Answer]


def recording(num_requests: int = 8, num_tokens: int = 20) -> bytes:
    """Two layers of eight experts; mathematics prefers the upper four in layer 1."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(num_requests):
        domain = ("code", "math")[number % 2]
        for position in range(num_tokens):
            for layer in (0, 1):
                chosen = rng.permutation(4)[:2] + (4 if layer and domain == "math" else 0)
                lines.append(
                    route(f"r{number}", position, chosen.tolist(), layer=layer, domain=domain, token_id=position % 5)
                )
    return routes([{"type": "meta", "model_id": "tiny", "num_experts": 8, "top_k": 2}, *lines])


@pytest.fixture
def app_settings(app_settings: Settings) -> Settings:
    return app_settings.model_copy(update={"traces": TraceSettings(max_upload_bytes=4 * 1024**2)})


@pytest.fixture
def run_jobs(app_settings: Settings, sessions: sessionmaker[Session], storage: Storage) -> Callable[[], None]:
    """A worker's turn, in this process."""
    runner = JobRunner(
        settings=app_settings, sessions=sessions, storage=storage, owner="test", shutting_down=lambda: False
    )
    return lambda: runner.run_next(app_settings.trainer.celery_queue)


@pytest.fixture
def imported(client: httpx.Client, run_jobs: Callable[[], None]) -> Import:
    """Import files by name to the end; the trace."""

    def imported(files: dict[str, bytes], **options: Any) -> Answer:
        form = [("files", (name, content)) for name, content in files.items()]
        response = client.post("/traces", data={"name": "routes", "options": json.dumps(options)}, files=form)
        assert response.status_code == 202, response.text
        submitted = response.json()
        assert submitted["trace"]["status"] == "importing"
        assert submitted["trace"]["job"] == submitted["job"]["id"]
        run_jobs()
        trace: Answer = client.get(f"/traces/{submitted['trace']['id']}").json()
        return trace

    return imported


class TestTraces:
    def test_a_recording_becomes_figures(self, imported: Import, client: httpx.Client) -> None:
        trace = imported({"moe_routes.jsonl": recording()})
        url = f"/traces/{trace['id']}"

        assert (trace["status"], trace["source"]) == ("ready", "moe_routes")
        assert trace["description"]["domains"] == ["code", "math"]
        assert [each["id"] for each in client.get("/traces").json()["data"]] == [trace["id"]]
        index = client.get(f"{url}/analysis").json()
        assert set(index["layers"]) == {"0", "1"}
        assert "transitions" in index["layers"]["1"]["figures"]["all"]
        frequency = client.get(f"{url}/analysis/frequency", params={"layer": 1}).json()
        assert frequency["phase"] == "all"
        code, mathematics = frequency["data"]["share"]["value"]
        assert sum(code[:4]) == pytest.approx(1.0)
        assert sum(mathematics[4:]) == pytest.approx(1.0)
        strength = [
            client.get(f"{url}/analysis/independence", params={"layer": layer}).json()["data"]["cramers_v"]["value"]
            for layer in (0, 1)
        ]
        assert strength[1] > 0.8 > strength[0]
        assert client.get(f"{url}/analysis/cache").json()["layer"] is None

    def test_its_report_runs_nothing_and_asks_nobody(self, imported: Import, client: httpx.Client) -> None:
        url = f"/traces/{imported({'moe_routes.jsonl': recording()})['id']}"

        page = client.get(f"{url}/report")
        text = client.get(f"{url}/report.md")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert text.headers["content-type"].startswith("text/markdown")
        pictures = re.findall(r"\]\(([^)]+\.png)\)", text.text)
        assert pictures
        assert client.get(f"{url}/{pictures[0]}").content.startswith(b"\x89PNG")
        assert client.get(f"{url}/none.png").status_code == 404

    def test_tokens_can_be_looked_into(self, imported: Import, client: httpx.Client) -> None:
        url = f"/traces/{imported({'moe_routes.jsonl': recording()})['id']}"

        window = client.get(f"{url}/choices", params={"layer": 1, "sequence": 3, "from": 5, "count": 2}).json()
        assert (window["domain"], window["num_experts"]) == ("math", 8)
        assert [(token["position"], token["token_id"]) for token in window["tokens"]] == [(5, 0), (6, 1)]
        assert all(expert >= 4 for token in window["tokens"] for expert in token["experts"])
        assert window["tokens"][0]["weights"] == [0.5, 0.25]
        prompts = client.get(f"{url}/sequences", params={"from": 6, "count": 5}).json()
        assert (prompts["total"], [each["sequence"] for each in prompts["data"]]) == (8, [6, 7])

    def test_what_is_not_there_is_told(self, imported: Import, client: httpx.Client) -> None:
        url = f"/traces/{imported({'moe_routes.jsonl': recording()})['id']}"

        def reason(path: str, status: int = 404, **parameters: Any) -> str:
            response = client.get(f"{url}/{path}", params=parameters)
            assert response.status_code == status, response.text
            return str(response.json()["error"]["message"])

        assert "Name a layer: 0, 1" in reason("analysis/frequency", 400)
        assert "has no layer 7: 0, 1" in reason("analysis/frequency", layer=7)
        assert "no generated tokens" in reason("analysis/frequency", layer=0, phase="generated")
        assert "`final`" in reason("analysis/saturation", 400)
        assert "has no layer 9" in reason("choices", layer=9)
        assert "8 sequences" in reason("choices", layer=0, sequence=8)
        assert "without allocation events" in reason("buffers")
        assert "figure" in reason("analysis/nonsense", 400)
        assert client.get("/traces/trace-none").json()["error"]["code"] == "trace_not_found"

    def test_saturation_compares_two_traces(self, imported: Import, client: httpx.Client) -> None:
        first, second = (imported({"moe_routes.jsonl": recording()})["id"] for _ in range(2))

        answer = client.get(f"/traces/{first}/analysis/saturation", params={"final": second}).json()
        assert [each["saturation"]["value"] for each in answer["data"]["layers"]] == [1.0, 1.0]

    def test_a_layer_that_is_degenerate_has_no_figures(self, imported: Import, client: httpx.Client) -> None:
        constant = routes([route("r0", position, [3, 1, 0, 2]) for position in range(100)])
        trace = imported({"moe_routes.jsonl": constant}, num_experts=64)

        assert [each["severity"] for each in trace["description"]["findings"]].count("degenerate") == 1
        response = client.get(f"/traces/{trace['id']}/analysis/frequency", params={"layer": 0})
        assert response.status_code == 404
        assert "the very same 4 experts" in response.json()["error"]["message"]

    def test_an_experiments_archive_brings_domains_and_buffers(self, imported: Import, client: httpx.Client) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, content in (
                ("domain-1-code/moe_routes.jsonl", routes([route("r", 0, [1, 2]), route("r", 1, [2, 3])])),
                ("domain-1-code/buffer_stats.jsonl", routes(EVENTS)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        trace = imported({"experiment.tar.gz": packed.getvalue()})

        assert trace["description"]["domains"] == ["code"]
        (run,) = client.get(f"/traces/{trace['id']}/buffers").json()["runs"]
        assert run["buffers"]["metadata"]["total_buffers"] == 3

    def test_folders_in_names_tell_domains_and_lead_nowhere(self, imported: Import, storage: Storage) -> None:
        trace = imported({"../../domain-2-math/moe_routes.jsonl": routes([route("r", 0, [1, 2])])})

        assert trace["description"]["domains"] == ["math"]
        assert {path.parent for path in storage.uploads.iterdir()} == {storage.uploads}

    def test_what_cannot_be_read_fails_with_a_reason(self, imported: Import, client: httpx.Client) -> None:
        trace = imported({"notes.bin": b"no recording at all"})

        assert trace["status"] == "failed"
        assert "No choices of experts in 'notes.bin'" in trace["error"]["message"]
        response = client.get(f"/traces/{trace['id']}/analysis")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "trace_failed")

    def test_bad_forms_are_refused_and_leave_nothing(self, client: httpx.Client, storage: Storage) -> None:
        def refused(files: list[Any], options: str = "{}", name: str = "t") -> Answer:
            response = client.post("/traces", data={"name": name, "options": options}, files=files)
            assert 400 <= response.status_code < 500, response.text
            error: Answer = response.json()["error"]
            return error

        good = ("files", ("a.jsonl", recording()))
        assert refused([good], options='{"top_k": 0}')["param"] == "options.top_k"
        assert refused([good], options='{"surprise": 1}')["param"] == "options.surprise"
        assert refused([good], options="[")["param"] == "options"
        assert refused([good], name="")["param"] == "name"
        assert refused([good, ("files", ("b.jsonl", b""))])["param"] == "files"
        assert refused([("files", ("a.bin", bytes(4 * 1024**2 + 1)))])["code"] == "payload_too_large"
        assert client.get("/traces").json()["data"] == []
        assert client.get("/files").json()["data"] == []
        assert list(storage.uploads.iterdir()) == []

    def test_a_repeated_request_finds_its_first_trace(self, client: httpx.Client) -> None:
        form: Answer = {"data": {"name": "t"}, "headers": {"idempotency-key": "once"}}
        answers = [client.post("/traces", files=[("files", ("a.jsonl", recording()))], **form).json() for _ in range(2)]

        assert answers[0]["trace"]["id"] == answers[1]["trace"]["id"]
        assert len(client.get("/files").json()["data"]) == 1

    def test_a_deleted_trace_takes_its_recordings_along(self, imported: Import, client: httpx.Client) -> None:
        trace = imported({"moe_routes.jsonl": recording()})
        assert len(client.get("/files", params={"purpose": "trace"}).json()["data"]) == 1

        assert client.delete(f"/traces/{trace['id']}").json()["deleted"] is True
        assert client.get(f"/traces/{trace['id']}").status_code == 404
        assert client.get("/files").json()["data"] == []
        waiting = client.post("/traces", data={"name": "t"}, files=[("files", ("a.jsonl", recording()))]).json()
        response = client.delete(f"/traces/{waiting['trace']['id']}")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "trace_importing")

    def test_lists_come_in_pages(self, client: httpx.Client) -> None:
        ids = [
            client.post("/traces", data={"name": "t"}, files=[("files", ("a.jsonl", recording(1, 1)))]).json()["trace"][
                "id"
            ]
            for _ in range(3)
        ]

        first = client.get("/traces", params={"limit": 2}).json()
        rest = client.get("/traces", params={"limit": 2, "after": first["data"][-1]["id"]}).json()
        assert [each["id"] for each in first["data"] + rest["data"]] == ids[::-1]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert client.get("/traces", params={"status": "ready"}).json()["data"] == []


def log_request(
    session: Session, number: int, *, domain: str | None, gates: list[dict[str, float]], **fields: Any
) -> None:
    log = TokenLog(1, tuple(range(1, len(gates) + 1)), tuple(gates))
    row = {
        "id": f"r{number}",
        "at": NOON + timedelta(minutes=number),
        "endpoint": "/generate",
        "release": "release-1",
        "plan": {"mode": "routed"},
        "parameters": {},
        "num_prompt_tokens": 1,
        "num_generated_tokens": len(gates) - 1,
        "attribution": [],
        "timings": {},
        "domain": domain,
        "token_log": encode_token_log(log),
    }
    session.add(RequestRow(**(row | fields)))


class TestLiveAnalysis:
    def test_the_routing_log_is_one_layer(
        self, three_experts: str, client: httpx.Client, sessions: sessionmaker[Session]
    ) -> None:
        with sessions.begin() as session:
            for number in range(6):
                expert = ("code", "math")[number % 2]
                domain = expert if number < 4 else None
                log_request(session, number, domain=domain, gates=[{expert: 0.75, "base": 0.25}] * 5)
            log_request(session, 6, domain="code", gates=[{"story": 1.0}], plan={"mode": "fixed"})
            log_request(session, 7, domain="code", gates=[{"story": 1.0}], token_log=None)
            log_request(session, 8, domain="code", gates=[{"story": 1.0}], at=NOON - timedelta(days=9))

        answer = client.get("/analysis", params={"since": NOON.isoformat()}).json()
        description = answer["overview"]["description"]
        assert (answer["num_requests"], answer["is_whole"], answer["releases"]) == (6, True, {"release-1": 6})
        assert set(description["experts"][:3]) == {"math", "code", "story"}
        assert description["experts"][3:] == ["base"]
        assert description["domains"] == ["code", "math", "unclassified"]
        shares = answer["layer"]["parts"]["all"]["frequency"]["token_share"][0]
        assert dict(zip(description["experts"], shares, strict=True)) == {"code": 1, "base": 1, "math": 0, "story": 0}

    def test_an_empty_log_has_no_layer(self, client: httpx.Client) -> None:
        answer = client.get("/analysis").json()

        assert (answer["num_requests"], answer["layer"]) == (0, None)
        assert datetime.fromisoformat(answer["since"]) < datetime.now(UTC)
