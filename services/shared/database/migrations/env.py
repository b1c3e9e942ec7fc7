"""alembic's entry: migrates the connection that it is handed, or the database of the settings."""

from alembic import context
from sqlalchemy import Connection, create_engine

from services.shared.config import Settings
from services.shared.database.rows import Row
from services.shared.database.session import database_url


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=Row.metadata, compare_type=True, compare_server_default=True
    )
    with context.begin_transaction():
        context.run_migrations()


def _run() -> None:
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _migrate(given)
        return
    engine = create_engine(database_url(Settings().database.url.get_secret_value()))
    with engine.connect() as connection:
        _migrate(connection)
    engine.dispose()


_run()
