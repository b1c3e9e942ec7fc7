"""A container's health check: `python -m services.local_stack.health URL` or `… worker`; exit code 0 is well."""

import os
import sys

from services.local_stack.readiness import answers_http, worker_listens


def main(what: str) -> int:
    """0 when the service at the address, or some worker on the broker of AMOE_REDIS_URL, can serve; 1 otherwise."""
    check = worker_listens(os.environ["AMOE_REDIS_URL"]) if what == "worker" else answers_http(what)
    return 0 if check() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
