"""Structured logs: readable on a terminal, JSON lines elsewhere and in the rotated file; never a secret.

What is bound with `bound(request_id=...)` is on every line written inside, by any library.
"""

import logging
import logging.config
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor

from services.shared.config import TelemetrySettings

Logger = structlog.stdlib.BoundLogger

_SECRET_KEY: Final = re.compile(
    r"authorization|api_?key|password|passwd|secret|cookie|bearer|auth_token|access_token", re.I
)
_URL_PASSWORD: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://[^\s:/@]{0,200}):[^\s/@]{1,200}@", re.I)
_BEARER: Final = re.compile(r"\b(Bearer)\s+[A-Za-z0-9._~+/=-]{4,}", re.I)
_HIDDEN: Final = "[hidden]"
_CHATTY: Final = ("httpx", "httpcore", "alembic.runtime", "asyncio", "python_multipart")
"""Libraries whose INFO says nothing to an operator."""


def configure_logging(settings: TelemetrySettings, *, service: str) -> None:
    """Send everything this process logs, uvicorn's lines included, through one chain; call once, in `main`."""
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _named_service(service),
        hide_secrets,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in _handlers(settings, before):
        root.addHandler(handler)
    root.setLevel(settings.level)
    _quieten(settings.level)


def get_logger(name: str) -> Logger:
    """A logger whose calls are `log.info("what happened", key=value)`; unconfigured, only warnings show."""
    logger: Logger = structlog.wrap_logger(logging.getLogger(name), wrapper_class=structlog.stdlib.BoundLogger)
    return logger


@contextmanager
def bound(**values: str) -> Iterator[None]:
    """Put `values` on every log line written inside the block."""
    with structlog.contextvars.bound_contextvars(**values):
        yield


def hide_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace what looks like a credential: by the key's name, and in texts passwords of URLs and bearer tokens."""
    return {key: _HIDDEN if _SECRET_KEY.search(key) else _cleaned(value) for key, value in event.items()}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _BEARER.sub(rf"\1 {_HIDDEN}", _URL_PASSWORD.sub(rf"\g<scheme>:{_HIDDEN}@", value))
    if isinstance(value, dict):
        return {key: _HIDDEN if _SECRET_KEY.search(str(key)) else _cleaned(item) for key, item in value.items()}
    return value


def _named_service(service: str) -> Processor:
    def add_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("service", service)
        return event

    return add_service


def _handlers(settings: TelemetrySettings, before: list[Processor]) -> list[logging.Handler]:
    human = settings.format == "human" or (settings.format == "auto" and sys.stderr.isatty())
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_formatter(before, human=human))
    if settings.file is None:
        return [stream]
    settings.file.parent.mkdir(parents=True, exist_ok=True)
    file = RotatingFileHandler(
        settings.file, maxBytes=settings.max_bytes, backupCount=settings.backups, encoding="utf-8", delay=True
    )
    file.setFormatter(_formatter(before, human=False))
    return [stream, file]


def _formatter(before: list[Processor], *, human: bool) -> logging.Formatter:
    if human:
        last: list[Processor] = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        last = [structlog.processors.format_exc_info, hide_secrets, structlog.processors.JSONRenderer()]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )


def _quieten(level: str) -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # The request-id middleware writes one line per request with its id; uvicorn's own would be a second without it.
    logging.getLogger("uvicorn.access").disabled = True
    if level != "DEBUG":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
