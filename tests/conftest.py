"""What every test may ask for: real Postgres and Valkey, a storage folder, the demo, the shared material.

One Postgres and one Valkey run per test session, on free ports, with their data in /dev/shm where that is roomy and in
/var/tmp otherwise (pytest's own folders are private, and Postgres runs as `nobody` when the tests run as root). A test
module gets a database of its own, copied from a migrated template in a fifth of a second.
"""

import gc
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from services.local_stack.ports import free_port
from services.local_stack.postgres import Postgres, open_postgres
from services.local_stack.programs import Program, start, stop
from services.local_stack.valkey import Valkey, open_valkey
from services.shared.config import DatabaseSettings, Settings, StorageSettings
from services.shared.storage import Storage

# Two test processes share two cores, and so do the services they start: threads would only wait for each other.
# Set before torch is imported, and handed down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every client of httpx reads all authorities that it may meet, 40 ms each time; over plain HTTP it meets none.
os.environ.setdefault("SSL_CERT_FILE", str(Path(__file__).with_name("no_authority.pem")))

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_PREFIX = "adaptive-moe-test-"
_MEMORY = Path("/dev/shm")
_ROOMY_BYTES = 2 * 1024**3
_database_numbers = itertools.count()


def pytest_configure() -> None:
    """A run in the background ignores Ctrl-C, and so would the stacks it starts and means to stop with it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported by now stays. The Trainer collects garbage after every training, a third of a second each time
    for as long as torch's modules are looked through as well."""
    gc.freeze()


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder for server data that `nobody` can reach; removed at the end, also those of killed test runs."""
    parent = _public_temporary()
    for old in parent.glob(f"{_PREFIX}*"):
        owner = old.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{_PREFIX}{os.getpid()}-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _public_temporary() -> Path:
    """A folder that everyone may enter: in memory if there is plenty of it, because clusters are thousands of files."""
    if not _MEMORY.is_dir():
        return Path("/var/tmp")
    room = os.statvfs(_MEMORY)
    is_roomy = room.f_bavail * room.f_frsize > _ROOMY_BYTES
    return _MEMORY if is_roomy and not room.f_flag & os.ST_NOEXEC else Path("/var/tmp")


@contextmanager
def running(program: Program, log: Path) -> Iterator[None]:
    """Keep `program` running inside the block."""
    with log.open("ab") as output:
        process = start(program, output=output)
    try:
        yield
    finally:
        stop(program, process)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    """The session's Postgres, in the profile that survives nothing and starts in under a second."""
    server = open_postgres(server_folder / "postgres", port=free_port(), disposable=True)
    with running(server.program(), server_folder / "postgres.log"):
        yield server


@pytest.fixture(scope="session")
def valkey(server_folder: Path) -> Iterator[Valkey]:
    """The session's Valkey, keeping nothing on disk."""
    server = open_valkey(server_folder / "valkey", port=free_port(), disposable=True)
    with running(server.program(), server_folder / "valkey.log"):
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """The name of a migrated, empty database that others are copied from."""
    from services.shared.database.session import migrate

    name = "amoe_template"
    _execute(postgres, f"CREATE DATABASE {name}")
    migrate(postgres.url(name))
    return name


@pytest.fixture(scope="module")
def database_url(postgres: Postgres, template_database: str) -> Iterator[str]:
    """The address of a fresh, migrated database for this test module."""
    name = f"amoe_test_{next(_database_numbers)}"
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template_database}")
    yield postgres.url(name)
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def redis_url(valkey: Valkey) -> str:
    """The address of an empty Valkey database for this test module."""
    import redis

    url = valkey.url(next(_database_numbers) % 16)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty storage folder."""
    return Storage(tmp_path / "storage")


@pytest.fixture
def settings(database_url: str, redis_url: str, storage: Storage) -> Settings:
    """Settings that point at the test's database, Valkey and storage, and at the demo base model."""
    return Settings(
        base_model=str(PROJECT_ROOT / "demo" / "base"),
        database=DatabaseSettings(url=SecretStr(database_url)),
        redis_url=SecretStr(redis_url),
        storage=StorageSettings(root=storage.root),
    )


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The committed demo: base model, experts, router, graph."""
    folder = PROJECT_ROOT / "demo"
    if not (folder / "base" / "config.json").exists():
        pytest.skip("the demo is not built: run `adaptive-moe demo build`")
    return folder


@pytest.fixture(scope="session")
def shared_material() -> Path:
    """Real models, texts and adapters that are not part of the project: AMOE_TEST_SHARED, `../shared` by default."""
    folder = Path(os.environ.get("AMOE_TEST_SHARED", PROJECT_ROOT.parent / "shared")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared material at {folder}: set AMOE_TEST_SHARED to its folder")
    return folder


def _execute(postgres: Postgres, statement: str) -> None:
    import psycopg

    address = postgres.url("postgres").replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]
