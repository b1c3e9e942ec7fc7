"""docker-compose.yml and Dockerfile, as far as they can be checked without an engine: no image is built here."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from services.router_service.discovery import Discovery
from services.shared.config import Settings

PROJECT_ROOT = Path(__file__).resolve().parents[3]
TOOLS = Path(sys.executable).parent
COMPOSE = PROJECT_ROOT / "docker-compose.yml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = ("router", "migrate", "expert", "expert-gpu", "trainer", "trainer-gpu")


def _is_setting(variable: str) -> bool:
    """True when the environment variable names a key of Settings."""
    model: type[BaseModel] = Settings
    *sections, key = variable.removeprefix("AMOE_").lower().split("__")
    for section in sections:
        annotation = model.model_fields[section].annotation if section in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return False
        model = annotation
    return key in model.model_fields


def _settings_in(text: str) -> set[str]:
    return set(re.findall(r"\bAMOE_[A-Z0-9_]+(?=[=:])", text))


def test_compose_file_fits_the_compose_schema() -> None:
    checker = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]

    answer = subprocess.run(checker, capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_dockerfile_passes_hadolint() -> None:
    answer = subprocess.run(
        [TOOLS / "hadolint", PROJECT_ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile", ".env.example"])
def test_every_setting_that_is_named_exists(name: str) -> None:
    named = _settings_in((PROJECT_ROOT / name).read_text())

    assert named
    assert [variable for variable in named if not _is_setting(variable)] == []


def test_no_password_is_committed() -> None:
    variables = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", COMPOSE.read_text())

    assert {name for name, _ in variables} == {"POSTGRES_PASSWORD", "VALKEY_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in variables)


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_no_privileges(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", OURS)
def test_every_target_is_a_stage_of_the_dockerfile(name: str) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (PROJECT_ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)

    assert SERVICES[name]["build"]["target"] in stages


@pytest.mark.parametrize("name", ["expert", "expert-gpu"])
def test_replicas_can_be_scaled_and_the_router_finds_all_behind_their_name(name: str) -> None:
    service = SERVICES[name]
    urls = json.loads(SERVICES["router"]["environment"]["AMOE_ROUTER_SERVICE__EXPERT_URLS"])
    port = service["environment"]["AMOE_EXPERT_SERVICE__PORT"]

    # A fixed name or a published port can be had once only.
    assert "container_name" not in service
    assert "ports" not in service
    aliases = [f"dns+http://{alias}:{port}" for alias in service["networks"]["inside"]["aliases"]]
    assert urls == aliases
    assert Discovery(urls).urls == [], "the addresses come from the name, not from the settings"


def test_the_images_do_not_run_as_root() -> None:
    assert re.search(r"^USER \d+:\d+$", (PROJECT_ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)


def test_gpu_services_ask_for_a_gpu_and_run_only_in_their_profile() -> None:
    for name in ("expert-gpu", "trainer-gpu"):
        devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices[0]["capabilities"] == ["gpu"]
        assert SERVICES[name]["profiles"] == ["gpu"]
