"""The migrations make exactly the tables that rows.py describes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect

from services.shared.database.rows import Row
from services.shared.database.session import database_url as with_driver
from services.shared.database.session import downgrade, migrate

pytestmark = pytest.mark.integration


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(with_driver(database_url))
    yield engine
    engine.dispose()


class TestMigrations:
    def test_autogenerate_finds_nothing_left_to_change(self, database_url: str, engine: Engine) -> None:
        migrate(database_url)

        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            differences = compare_metadata(context, Row.metadata)

        assert differences == []

    def test_downgrade_removes_everything_and_upgrade_brings_it_back(self, database_url: str, engine: Engine) -> None:
        migrate(database_url)

        downgrade(database_url, "base")
        assert set(inspect(engine).get_table_names()) == {"alembic_version"}

        migrate(database_url)
        assert set(Row.metadata.tables) <= set(inspect(engine).get_table_names())

    def test_processes_that_migrate_at_once_do_not_collide(self, database_url: str, engine: Engine) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(migrate, database_url) for _ in range(4)]:
                done.result()

        assert set(Row.metadata.tables) <= set(inspect(engine).get_table_names())

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
    def test_every_spelling_of_a_postgres_url_gets_our_driver(self, scheme: str) -> None:
        assert with_driver(f"{scheme}://a:b@h:1/d").drivername == "postgresql+psycopg"

    def test_another_database_is_refused_with_the_form_that_works(self) -> None:
        with pytest.raises(ValueError, match="postgresql://user:password@host"):
            with_driver("sqlite:///x.db")
