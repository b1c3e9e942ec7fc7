"""The migrations make exactly the tables that rows.py describes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.orm import Session

from services.shared.database.rows import Row
from services.shared.database.session import database_url as with_driver
from services.shared.database.session import downgrade, migrate
from services.shared.release_activation import rollback_release

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

    def test_releases_that_were_active_before_activations_were_kept_can_be_gone_back_to(
        self, database_url: str, engine: Engine
    ) -> None:
        migrate(database_url)
        downgrade(database_url, "0003")
        insert = (
            "INSERT INTO releases (base_model, base_fingerprint, router_digest, router_kind, status, activated_at) "
            "VALUES ('demo', 'f', 'b', 'bayes', :status, :at)"
        )
        states = [("retired", "2026-01-03"), ("retired", "2026-01-02"), ("active", "2026-01-01"), ("staged", None)]
        with engine.begin() as connection:
            for status, at in states:
                connection.execute(text(insert), {"status": status, "at": at})

        migrate(database_url)

        with Session(engine) as session, session.begin():
            back = [rollback_release(session).number for _ in range(2)]
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE releases RESTART IDENTITY CASCADE"))
        assert back == [1, 2]

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
