"""The fixtures that the other tests stand on."""

import psycopg
import redis


def _address(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def test_a_module_gets_an_empty_migrated_database(database_url: str) -> None:
    with psycopg.connect(_address(database_url)) as connection:
        row = connection.execute("SELECT count(*) FROM jobs").fetchone()

    assert row == (0,)


def test_a_module_gets_an_empty_valkey(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
