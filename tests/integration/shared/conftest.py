"""Sessions on empty tables."""

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from services.shared.database.rows import Row
from services.shared.database.session import session_factory


@pytest.fixture
def sessions(database_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on the module's database, emptied for this test."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(Row.metadata.tables)} RESTART IDENTITY CASCADE"))
    yield session_factory(engine)
    engine.dispose()
