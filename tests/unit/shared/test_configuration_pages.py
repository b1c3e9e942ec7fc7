"""The pages about settings follow from the settings."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from services.shared.config import Settings

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", name="writer")
def load_writer() -> ModuleType:
    specification = importlib.util.spec_from_file_location("writer", PROJECT / "scripts" / "write_configuration.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class TestPages:
    def test_are_current(self, writer: ModuleType) -> None:
        advice = "run scripts/write_configuration.py"

        assert writer.PAGE.read_text() == writer.page(), advice
        assert writer.EXAMPLE.read_text() == writer.example(), advice

    def test_every_key_is_described(self, writer: ModuleType) -> None:
        settings = [setting for _, _, section in writer.sections() for setting in section]

        assert [setting.key for setting in settings if not setting.description] == []

    def test_the_example_is_valid_and_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: ModuleType
    ) -> None:
        monkeypatch.setenv("AMOE_CONFIG", str(tmp_path / "none.yaml"))
        defaults = Settings()
        monkeypatch.setenv("AMOE_CONFIG", str(writer.EXAMPLE))

        assert Settings() == defaults

    def test_the_example_has_every_key(self, writer: ModuleType) -> None:
        example = yaml.safe_load(writer.EXAMPLE.read_text())
        dumped = Settings().model_dump()

        assert set(example) == set(dumped)
        for name, section in dumped.items():
            if isinstance(section, dict):
                assert set(example[name]) == set(section)

    def test_every_variable_that_is_named_works(self, monkeypatch: pytest.MonkeyPatch, writer: ModuleType) -> None:
        monkeypatch.setenv("AMOE_ROUTER__MAX_EXPERTS_PER_TOKEN", "2")
        monkeypatch.setenv("AMOE_ROUTER_SERVICE__EXPERT_URLS", '["http://a:1", "http://b:2"]')

        settings = Settings()

        assert settings.router.max_experts_per_token == 2
        assert settings.router_service.expert_urls == ("http://a:1", "http://b:2")
