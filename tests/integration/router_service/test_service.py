"""The service as a whole: probes, metrics, docs, key, and every route under random input."""

import os
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from pydantic import SecretStr

from services.router_service.main import build_app
from services.shared.config import Settings
from tests.integration.router_service.running import served

pytestmark = pytest.mark.integration


class TestHealth:
    def test_ready_says_what_is_served(self, three_experts: str, client: httpx.Client) -> None:
        response = client.get("/ready")

        assert response.status_code == 200
        assert response.json() == {"status": "ready", "release": three_experts, "replicas_up": 1, "trouble": None}
        assert client.get("/live").json() == {"status": "live"}

    def test_metrics_count_requests_and_tokens_by_expert(self, three_experts: str, client: httpx.Client) -> None:
        client.post("/generate", json={"inputs": "12 + 5 = 17", "parameters": {"max_new_tokens": 4}})

        metrics = client.get("/metrics").text

        assert 'amoe_requests_total{endpoint="/generate",outcome="length"} 1.0' in metrics
        assert 'amoe_expert_tokens_total{expert="math"} 3.0' in metrics
        assert 'amoe_expert_tokens_total{expert="base"} 1.0' in metrics
        assert 'amoe_tokens_total{kind="generated"} 4.0' in metrics
        assert "amoe_active_release 1.0" in metrics
        assert 'amoe_replica_up{replica="replica-1"} 1.0' in metrics


class TestDocs:
    def test_need_no_outside_asset(self, client: httpx.Client) -> None:
        page = client.get("/docs").text

        assert "https://" not in page
        for asset in ("/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
            assert asset.lstrip("/") in page
            assert client.get(asset).status_code == 200

    def test_every_json_body_has_an_example(self, client: httpx.Client) -> None:
        schema = client.get("/openapi.json").json()
        without = []
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                if content and not _has_example(content, schema):
                    without.append(f"{method} {path}")

        assert without == []


def _has_example(content: dict[str, Any], schema: dict[str, Any]) -> bool:
    if "examples" in content or "example" in content:
        return True
    parts = [content["schema"], *content["schema"].get("anyOf", [])]
    names = [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]
    return any(schema["components"]["schemas"][name].get("examples") for name in names)


class TestApiKey:
    def test_every_route_but_the_probes_wants_it(self, app_settings: Settings, sessions: object) -> None:
        own = app_settings.router_service.model_copy(update={"api_key": SecretStr("key")})
        app = build_app(app_settings.model_copy(update={"router_service": own}))
        with served(app) as url, httpx.Client(base_url=url) as client:
            for path, operations in app.openapi()["paths"].items():
                for method in operations:
                    status = client.request(method, path.replace("{", "").replace("}", "")).status_code
                    assert (status == 401) is (path not in ("/live", "/ready")), f"{method} {path}: {status}"
            allowed = client.get("/experts", headers={"authorization": "Bearer key"})

        assert allowed.status_code == 200


EXAMPLES = int(os.environ.get("AMOE_TEST_FUZZ_EXAMPLES", "10"))
"""Per operation and mode; more of them in a run of its own."""

ENDLESS = ["/jobs/{job_id}/events"]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_random_input_never_makes_a_5xx(
    three_experts: str, client: httpx.Client, router_url: str, mode: schemathesis.GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json()).exclude(path=ENDLESS)
    failures: list[str] = []
    for result in schema.get_all_operations():
        probe(result.ok(), mode, router_url, failures)

    assert failures == []


def probe(operation: Any, mode: schemathesis.GenerationMode, url: str, failures: list[str]) -> None:
    @hypothesis_settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        response = case.call(base_url=url)
        if response.status_code >= 500:
            failures.append(f"{response.status_code} {case.as_curl_command()[:600]} {response.text[:200]}")

    # An operation without input cannot be given a wrong one.
    with suppress(Unsatisfiable):
        call()
