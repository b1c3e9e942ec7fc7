"""What a database's errors tell."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError

from services.shared.config import DatabaseSettings
from services.shared.database.session import open_engine

pytestmark = pytest.mark.integration


def test_errors_tell_nothing_of_the_text_that_was_to_be_kept(database_url: str) -> None:
    engine = open_engine(DatabaseSettings(url=database_url))
    try:
        with engine.connect() as connection, pytest.raises(DataError) as failed:
            connection.execute(text("SELECT 1 / 0 WHERE :prompt <> ''"), {"prompt": "My secret is out"})
    finally:
        engine.dispose()

    assert "division by zero" in str(failed.value)
    assert "secret" not in str(failed.value)
