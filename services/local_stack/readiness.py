"""When a service may be used: HTTP services say so themselves, the worker answers Celery's ping."""

import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus


def answers_http(url: str) -> Callable[[], bool]:
    """A readiness check: does a GET of `url` answer 200?"""

    def check() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except (urllib.error.URLError, OSError, ValueError):
            return False

    return check


def worker_listens(redis_url: str) -> Callable[[], bool]:
    """A readiness check: does some worker take messages from this broker?

    Workers take no remote commands, so it is the broker that is asked: a client of his whose last command is BRPOP is
    one. Where a server does not let us list its clients, a worker that runs is taken to be ready.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    once = Retry(NoBackoff(), retries=0)

    def check() -> bool:
        client = redis.Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=2, retry=once)
        try:
            return any(entry["cmd"].lower() == "brpop" for entry in client.client_list())
        except redis.ResponseError:
            return True
        except redis.RedisError:
            return False
        finally:
            client.close()

    return check
