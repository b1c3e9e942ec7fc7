"""A script: `up` with Postgres and Valkey alone, so that crashes of `up` itself can be tried in seconds."""

import os
import sys
from pathlib import Path

from services.local_stack.ports import PortClaims, free_port
from services.local_stack.postgres import open_postgres
from services.local_stack.stack import Stack
from services.local_stack.state_folder import Endpoints, StateFolder
from services.local_stack.up import supervise
from services.local_stack.valkey import open_valkey


def main(root: Path) -> None:
    """Run the two stores in `root` until a signal comes."""
    state = StateFolder(root)

    def plan() -> Stack:
        postgres = open_postgres(state.postgres, port=free_port(), disposable=True)
        valkey = open_valkey(state.valkey, port=free_port(), disposable=True)
        addresses = {"database_url": postgres.url(), "redis_url": valkey.url()}
        endpoints = Endpoints(
            os.getpid(), "http://none", ("http://none",), storage="none", logs=str(state.logs), **addresses
        )
        return Stack((postgres.program(), valkey.program()), endpoints, notes=(), claims=PortClaims())

    supervise(state, plan=plan)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
