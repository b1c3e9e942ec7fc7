"""Parts that fail: what the caller sees, and that nothing hangs or is lost silently."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import pytest

from services.local_stack.ports import free_port
from services.router_service.discovery import Discovery
from services.router_service.main import build_app
from services.router_service.metrics import Metrics
from services.router_service.replicas import Replicas
from services.shared.config import Settings
from services.shared.errors import Overloaded, Unavailable
from tests.integration.router_service.replica_double import ReplicaDouble
from tests.integration.router_service.running import served
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

BODY = {"inputs": "12 + 5", "parameters": {"max_new_tokens": 6}}


def events_of(client: httpx.Client, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    with client.stream("POST", "/generate_stream", json=body or BODY) as response:
        assert response.status_code == 200
        return [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]


def wait_for_log(client: httpx.Client, reason: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for logged in client.get("/requests").json()["data"]:
            if logged["finish_reason"] == reason:
                found: dict[str, Any] = logged
                return found
        time.sleep(0.05)
    raise AssertionError(f"no request with finish reason {reason}")


class TestReplica:
    def test_before_the_first_token_a_request_is_tried_again(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.num_crashes_before_first_token = 1

        assert client.post("/generate", json=BODY).status_code == 200
        assert len(double.requests) == 2

    def test_but_not_for_ever(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.num_crashes_before_first_token = 100

        response = client.post("/generate", json=BODY)

        assert response.status_code == 502
        assert response.json()["error"]["code"] == "expert_service_broke_off"
        assert len(double.requests) <= 4
        assert wait_for_log(client, "error")["error"]["code"] == "expert_service_broke_off"

    def test_in_the_middle_of_a_stream_its_end_is_an_error_event(
        self, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        double.crash_after_tokens = 3

        *tokens, last = events_of(client)

        assert len(tokens) == 3
        assert last["error"]["code"] == "expert_service_broke_off"
        assert last["error_type"] == "incomplete_generation"
        assert len(double.requests) == 1
        logged = wait_for_log(client, "error")
        assert logged["num_generated_tokens"] == 3
        assert logged["generated_text"]

    def test_in_the_middle_of_a_whole_answer_it_is_a_502(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.crash_after_tokens = 3

        assert client.post("/generate", json=BODY).status_code == 502

    def test_its_own_error_event_is_passed_on(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.error_after_tokens = 2

        assert events_of(client)[-1]["error"] == {
            "message": "The replica ran out of memory.",
            "type": "generation",
            "param": None,
            "code": "out_of_memory",
        }

    @pytest.mark.parametrize(
        ("refusal", "status"),
        [(Overloaded("Full.", retry_after_s=3), 429), (Unavailable("Starting.", retry_after_s=3), 503)],
        ids=["full", "starting"],
    )
    def test_its_refusals_keep_their_status_and_retry_after(
        self, client: httpx.Client, double: ReplicaDouble, refusal: Any, status: int
    ) -> None:
        double.refusal = refusal

        response = client.post("/generate_stream", json=BODY)

        assert response.status_code == status
        assert response.headers["retry-after"] == "3"

    def test_for_another_base_model_the_release_is_not_run(
        self, three_experts: str, double: ReplicaDouble, router_url: str
    ) -> None:
        double.fingerprint = "e" * 64
        # The router asks for the base when it finds the replica; it found this one with the right base.
        with httpx.Client(base_url=router_url) as client:
            assert client.post("/generate", json=BODY).status_code == 200


class TestReplicaOfAnotherBase:
    @pytest.fixture
    def double(self, tokenizer: Any, storage: Any) -> ReplicaDouble:
        return ReplicaDouble(tokenizer, storage, fingerprint="e" * 64)

    def test_is_not_given_the_release(self, three_experts: str, client: httpx.Client) -> None:
        response = client.post("/generate", json=BODY)

        assert response.status_code == 503
        assert response.json()["error"]["code"] == "base_model_mismatch"


class TestReplicaDown:
    @pytest.fixture
    def replica_url(self) -> str:
        return f"http://127.0.0.1:{free_port()}"

    def test_is_a_503_that_says_when_to_retry(self, client: httpx.Client) -> None:
        response = client.post("/generate", json=BODY)

        assert response.status_code == 503
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert client.get("/ready").status_code == 503
        assert client.get("/live").status_code == 200
        assert 'amoe_replica_up{replica="' in client.get("/metrics").text

    def test_and_works_as_soon_as_it_is_up(self, client: httpx.Client, replica_url: str, double: ReplicaDouble) -> None:
        port = int(replica_url.rpartition(":")[2])
        with served(double.app(), port=port):
            assert client.post("/generate", json=BODY).status_code == 200


class TwoReplicas:
    @pytest.fixture
    def other(self, tokenizer: Any, storage: Any) -> ReplicaDouble:
        return ReplicaDouble(tokenizer, storage)

    @pytest.fixture
    def router_url(
        self, app_settings: Settings, replica_url: str, other: ReplicaDouble, sessions: object
    ) -> Iterator[str]:
        with served(other.app()) as other_url:
            own = app_settings.router_service.model_copy(update={"expert_urls": (replica_url, other_url)})
            with served(build_app(app_settings.model_copy(update={"router_service": own}))) as url:
                yield url


class TestTwoReplicas(TwoReplicas):
    def test_the_other_takes_what_one_refuses(
        self, client: httpx.Client, double: ReplicaDouble, other: ReplicaDouble
    ) -> None:
        double.refusal = Overloaded("Full.", retry_after_s=3)

        for _ in range(3):
            assert client.post("/generate", json=BODY).status_code == 200
        assert len(other.requests) == 3

    def test_the_one_that_holds_the_experts_is_preferred(
        self, three_experts: str, registry: Any, router_url: str, double: ReplicaDouble, other: ReplicaDouble
    ) -> None:
        with httpx.Client(base_url=router_url) as client:
            release = client.get("/releases").json()["data"][0]
            other.resident = tuple(expert["digest"] for expert in release["experts"])
            time.sleep(1.5)
            for _ in range(3):
                client.post("/generate", json=BODY)

        assert (len(double.requests), len(other.requests)) == (0, 3)

    def test_load_is_spread(self, client: httpx.Client, double: ReplicaDouble, other: ReplicaDouble) -> None:
        double.pause_s = other.pause_s = 0.1
        threads = [threading.Thread(target=client.post, args=("/generate",), kwargs={"json": BODY}) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert (len(double.requests), len(other.requests)) == (2, 2)

    def test_one_that_is_drained_gets_nothing_until_it_is_undrained(
        self, client: httpx.Client, double: ReplicaDouble, other: ReplicaDouble
    ) -> None:
        first, second = client.get("/replicas").json()["data"]
        assert (first["id"], first["state"], second["state"]) == ("replica-1", "up", "up")
        assert "http" not in json.dumps(first)

        assert client.post("/replicas/replica-1/drain").json()["state"] == "draining"
        for _ in range(6):
            assert client.post("/generate", json=BODY).status_code == 200
        assert (len(double.requests), len(other.requests)) == (0, 6)
        client.post("/replicas/replica-2/drain")
        nobody = client.post("/generate", json=BODY)
        assert (nobody.status_code, nobody.headers["retry-after"]) == (503, "2")

        assert client.post("/replicas/replica-1/undrain").json()["state"] == "up"
        assert client.post("/generate", json=BODY).status_code == 200
        assert len(double.requests) == 1
        assert client.post("/replicas/replica-9/drain").status_code == 404

    def test_a_drained_one_goes_on_with_what_it_has(
        self, client: httpx.Client, double: ReplicaDouble, other: ReplicaDouble
    ) -> None:
        client.post("/replicas/replica-2/drain")
        double.pause_s = 0.1
        with client.stream("POST", "/generate_stream", json=BODY) as response:
            client.post("/replicas/replica-1/drain")
            lines = [json.loads(line[5:]) for line in response.iter_lines() if line.startswith("data:")]

        assert lines[-1]["details"]["generated_tokens"] == 6

    def test_when_all_are_full_requests_are_shed_and_told_when_to_come_back(
        self, client: httpx.Client, double: ReplicaDouble, other: ReplicaDouble
    ) -> None:
        double.refusal, other.refusal = Overloaded("Full.", retry_after_s=3), Overloaded("Full.", retry_after_s=900)

        response = client.post("/generate", json=BODY)

        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 120
        assert 'amoe_requests_passed_on_total{reason="overloaded"} 2.0' in client.get("/metrics").text

    def test_scores_and_checks_are_asked_of_another_one_too(
        self, app_settings: Settings, replica_url: str, other: ReplicaDouble
    ) -> None:
        """The first address is nobody's: what is not a sequence must find the second."""

        async def ask() -> list[int]:
            nobody = f"http://127.0.0.1:{free_port()}"
            async with httpx.AsyncClient() as http:
                replicas = Replicas(Discovery([nobody, replica_url]), http, Metrics(), draw=Random(0))
                with other.storage.stage() as folder:
                    (folder / "adapter_model.safetensors").write_bytes(b"good")
                    digest = other.storage.publish(folder)
                return [(await replicas.check_adapter(digest)).rank for _ in range(10)]

        assert asyncio.run(ask()) == [8] * 10


class TestSilentReplica(TwoReplicas):
    """A process that is stopped, or a machine that hangs: connections stay open and nothing comes."""

    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"replica_silence_s": 0.5}

    def test_what_it_has_not_begun_is_begun_elsewhere_and_its_streams_end_with_an_error(
        self, client: httpx.Client, double: ReplicaDouble, other: ReplicaDouble
    ) -> None:
        client.post("/replicas/replica-2/drain")
        double.pause_s = 0.2
        outcomes: list[Any] = []

        def stream() -> None:
            outcomes.append(events_of(client)[-1])

        started = threading.Thread(target=stream)
        started.start()
        wait_until(lambda: double.num_open == 1)
        double.is_frozen = True
        waiting = [threading.Thread(target=stream) for _ in range(3)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: len(double.requests) == 4)
        client.post("/replicas/replica-2/undrain")
        for thread in [started, *waiting]:
            thread.join(timeout=30)
        double.is_frozen = False

        assert sorted("error" in outcome for outcome in outcomes) == [False, False, False, True]
        lost = next(outcome for outcome in outcomes if "error" in outcome)
        assert lost["error"]["code"] == "expert_service_broke_off"
        assert len(other.requests) == 3
        wait_until(lambda: client.get("/replicas").json()["data"][0]["state"] == "up")


class TestClient:
    @pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
    def test_hanging_up_cancels_the_sequence(
        self, client: httpx.Client, router_url: str, double: ReplicaDouble, path: str
    ) -> None:
        double.pause_s = 0.2

        host, port = router_url.removeprefix("http://").split(":")
        content = json.dumps(BODY).encode()
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: double.num_open == 1)

        wait_until(lambda: double.num_open == 0 and double.num_cancelled == 1)
        assert wait_for_log(client, "cancelled")["generated_text"] is not None
        assert "amoe_requests_in_flight 0.0" in client.get("/metrics").text


class TestLoad:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"max_concurrent_requests": 2}

    def test_over_the_limit_requests_are_told_to_wait(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.pause_s = 0.2
        statuses: list[int] = []
        headers: list[str | None] = []

        def ask() -> None:
            response = client.post("/generate", json=BODY)
            statuses.append(response.status_code)
            headers.append(response.headers.get("retry-after"))

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(statuses) == [200, 200, 429, 429, 429]
        assert {header for header in headers if header} == {"1"}
        assert client.post("/generate", json=BODY).status_code == 200


class TestTimeout:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"request_timeout_s": 0.5}

    def test_an_answer_that_takes_too_long_ends_with_an_error(
        self, client: httpx.Client, double: ReplicaDouble
    ) -> None:
        double.pause_s = 0.2

        assert events_of(client)[-1]["error"]["code"] == "timed_out"


class TestPostgres:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"request_log_queue": 3}

    def test_while_it_is_down_generation_goes_on_and_lost_logs_are_counted(
        self, three_experts: str, client: httpx.Client, broken_database: Any
    ) -> None:
        assert client.post("/generate", json=BODY).json()["routing"]["release"] == three_experts

        with broken_database():
            listed = client.get("/experts")
            answers = [client.post("/generate", json=BODY) for _ in range(8)]
            ready = client.get("/ready")
            metrics = client.get("/metrics").text

        assert listed.status_code == 503
        assert listed.headers["retry-after"]
        assert listed.json()["error"]["code"] == "database_unavailable"
        assert [answer.json()["routing"]["release"] for answer in answers] == [three_experts] * 8
        assert ready.status_code == 200
        assert ready.json()["trouble"]
        dropped = next(line for line in metrics.splitlines() if line.startswith("amoe_request_log_dropped_total{"))
        assert float(dropped.split()[-1]) >= 1
        wait_until(lambda: client.get("/experts").status_code == 200, seconds=15)


class TestShutdown:
    def test_what_is_still_to_be_logged_is_written(
        self, app_settings: Settings, sessions: Any, replica_url: str
    ) -> None:
        with served(build_app(app_settings)) as url, httpx.Client(base_url=url) as client:
            ids = [client.post("/generate", json=BODY).json()["routing"]["request_id"] for _ in range(5)]

        with served(build_app(app_settings)) as url, httpx.Client(base_url=url) as client:
            assert [client.get(f"/requests/{request_id}").status_code for request_id in ids] == [200] * 5
