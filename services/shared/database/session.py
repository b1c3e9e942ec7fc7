"""Connections to Postgres: engines, sessions, and the migrations that make its tables.

Nothing connects before its first use, so a service starts while Postgres is still down.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, func, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import DatabaseSettings

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_MIGRATION_LOCK: Final = 4_142_017
"""Any number: processes that migrate at the same moment wait for each other under it."""

_POOL_WAIT_S: Final = 10.0
_POSTGRES_SCHEMES: Final = ("postgres", "postgresql", "postgresql+psycopg")


def database_url(url: str) -> URL:
    """`url` with our driver: `postgres://` and `postgresql://` are accepted as people write them."""
    parsed = make_url(url)
    if parsed.drivername not in _POSTGRES_SCHEMES:
        raise ValueError(f"The database must be postgresql://user:password@host:port/name, not {parsed.drivername}://…")
    return parsed.set(drivername="postgresql+psycopg")


def open_engine(settings: DatabaseSettings, *, application_name: str = "adaptive-moe") -> Engine:
    """A pooled engine whose connections are tested before use. Open it after a fork, never before."""
    return create_engine(database_url(settings.url.get_secret_value()), **_pool_options(settings, application_name))


def session_factory(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)


def migrate(url: str, revision: str = "head") -> None:
    """Bring the tables of `url` to `revision`; idempotent, in one transaction, safe from many processes at once."""
    _run_alembic(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take migrations back down to `revision` (`base` drops everything)."""
    _run_alembic(url, lambda config: command.downgrade(config, revision))


def migration_config() -> Config:
    """alembic's configuration, independent of the working directory."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _run_alembic(url: str, action: Callable[[Config], None]) -> None:
    engine = create_engine(database_url(url), poolclass=NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config = migration_config()
            config.attributes["connection"] = connection
            action(config)
    finally:
        engine.dispose()


def _pool_options(settings: DatabaseSettings, application_name: str) -> dict[str, Any]:
    return {
        "pool_size": settings.pool_size,
        "pool_pre_ping": True,
        "pool_timeout": _POOL_WAIT_S,
        # Prompts and answers are parameters, and errors end up in logs.
        "hide_parameters": True,
        "connect_args": {
            "connect_timeout": settings.connect_timeout_s,
            "application_name": application_name,
        },
    }
