#!/usr/bin/env python3
"""Writes docs/CONFIGURATION.md and config.example.yaml from the settings' own defaults and descriptions.

`python scripts/write_configuration.py` after a change to services/shared/config.py; a test finds them out of date.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from pydantic import BaseModel, SecretStr  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from services.shared.config import Settings  # noqa: E402

PAGE = PROJECT / "docs" / "CONFIGURATION.md"
EXAMPLE = PROJECT / "config.example.yaml"

_HEAD = """\
# Configuration

Made by `scripts/write_configuration.py` from `services/shared/config.py`: change it there.

Every process reads the same settings once, at its start. What is given later in this list wins: the defaults below, the
YAML file (`config.yaml` in the working directory, or the one that `AMOE_CONFIG` names; see `config.example.yaml`), and
environment variables. A key or a value that makes no sense stops the process with a message.

Variables start with `AMOE_`, and `__` parts the levels: `AMOE_ROUTER__MAX_EXPERTS_PER_TOKEN=2`. Lists are written as
JSON: `AMOE_ROUTER_SERVICE__EXPERT_URLS='["http://a:8001", "http://b:8001"]'`.
"""

_EXAMPLE_HEAD = """\
# Every setting with its default. Copy to config.yaml and keep what you change; docs/CONFIGURATION.md says more.
# Made by scripts/write_configuration.py: change services/shared/config.py.
"""


@dataclass(frozen=True)
class Setting:
    """One key with all that is known of it."""

    key: str
    values: str
    default: Any
    description: str

    @property
    def variable(self) -> str:
        """The environment variable's name."""
        return "AMOE_" + self.key.replace(".", "__").upper()


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """The keys of `model` and of the sections in it."""
    for name, field in model.model_fields.items():
        if section_of(field) is None:
            yield Setting(prefix + name, values_of(field), plain(field.default), field.description or "")


def sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """Name, title and keys of every section, the top level first."""
    yield "", "Base model and addresses", list(settings_of(Settings))
    for name, field in Settings.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield name, (section.__doc__ or "").strip(), list(settings_of(section, f"{name}."))


def named_sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """The same of those that an operator names: there is none by default."""
    for name, field in Settings.model_fields.items():
        if get_origin(field.annotation) is dict:
            section = get_args(field.annotation)[1]
            yield f"{name}.NAME", (section.__doc__ or "").strip(), list(settings_of(section, f"{name}.NAME."))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section behind a field, if it is one."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def plain(value: Any) -> Any:
    """A default as YAML and JSON write it."""
    if value is PydanticUndefined:
        return _REQUIRED
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return value.as_posix()
    return list(value) if isinstance(value, tuple) else value


def values_of(field: FieldInfo) -> str:
    """Which values a key takes, in words."""
    limits = [
        f"{sign} {getattr(limit, name):g}" for limit in field.metadata for name, sign in _SIGNS if hasattr(limit, name)
    ]
    return ", ".join([type_name(field.annotation), *limits])


_REQUIRED = "required"
_SIGNS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
_WORDS = {str: "text", SecretStr: "text", Path: "path", int: "whole number", float: "number", bool: "true or false"}


def type_name(annotation: Any) -> str:
    """A type in words."""
    if get_origin(annotation) is Annotated:
        return type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(type_name(part) if part is not NoneType else "null" for part in get_args(annotation))
    if get_origin(annotation) in (tuple, dict):
        is_list = get_origin(annotation) is tuple
        return f"list of {type_name(get_args(annotation)[0])}" if is_list else "sections by name"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(member.value for member in annotation)
    return _WORDS.get(annotation, str(annotation))


def page() -> str:
    """docs/CONFIGURATION.md."""
    parts = [_HEAD]
    for name, title, settings in (*sections(), *named_sections()):
        parts.append(f"\n## {f'`{name}`: ' if name else ''}{title.rstrip('.')}\n")
        parts.append("\n| key | default | values | meaning |\n|---|---|---|---|\n")
        parts.extend(
            f"| `{setting.key}` | `{json.dumps(setting.default)}` | {setting.values} | {setting.description} |\n"
            for setting in settings
        )
    return "".join(parts)


def example() -> str:
    """config.example.yaml."""
    parts = [_EXAMPLE_HEAD]
    for name, title, settings in sections():
        indent = "  " if name else ""
        parts.append(f"\n{name}:  # {title}\n" if name else "\n")
        for setting in settings:
            parts.append(f"{indent}# {setting.description} ({setting.values})\n")
            parts.append(f"{indent}{setting.key.rpartition('.')[2]}: {json.dumps(setting.default)}\n")
    return "".join(parts)


def main() -> None:
    """Write both."""
    PAGE.write_text(page(), encoding="utf-8")
    EXAMPLE.write_text(example(), encoding="utf-8")


if __name__ == "__main__":
    main()
