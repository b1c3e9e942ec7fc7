"""Garbage collection: what nothing refers to goes once it is old, and what anything refers to stays."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared import job_lease, jobs
from services.shared.database.rows import FileRow
from services.shared.garbage import collect_garbage, find_garbage, forget_unused_files, withdraw_artifact
from services.shared.registry import create_release, register_expert
from services.shared.schemas.jobs import ExpertJobSpec, RouterJobSpec
from services.shared.schemas.sequences import AdapterReport
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus

pytestmark = pytest.mark.integration

GRACE_S = 3600.0
NUM_ROUNDS = 40
FINGERPRINT = "f" * 64
REPORT = AdapterReport(
    rank=8, num_parameters=1, num_bytes=4, target_modules=("q_proj",), lowest_layer=0, base_fingerprint=FINGERPRINT
)


def age(path: Path) -> None:
    """Make a file or folder older than the grace period."""
    then = time.time() - 2 * GRACE_S
    os.utime(path, (then, then))


def publish(storage: Storage, content: str) -> str:
    with storage.stage() as staged:
        (staged / "weights.safetensors").write_text(content)
        return storage.publish(staged)


def publish_old(storage: Storage, content: str) -> str:
    digest = publish(storage, content)
    age(storage.artifact(digest))
    return digest


def register(session: Session, digest: str, name: str = "math") -> int:
    return register_expert(
        session,
        name=name,
        domain=None,
        description="",
        digest=digest,
        report=REPORT,
        has_evidence=True,
        source="trained",
    ).id


def upload_old(storage: Storage, sessions: sessionmaker[Session], number: int) -> str:
    """An old file with its record."""
    file_id = f"file-{number:032x}"
    storage.upload(file_id).write_text("text")
    age(storage.upload(file_id))
    with sessions.begin() as session:
        row = FileRow(id=file_id, purpose="fine-tune", filename="x.jsonl", num_bytes=4, sha256="0" * 64)
        session.add(row)
        session.flush()
        row.created_at = row.created_at.replace(year=2020)
    return file_id


def test_what_releases_versions_and_jobs_refer_to_stays_and_the_rest_goes(
    sessions: sessionmaker[Session], storage: Storage
) -> None:
    expert, router, graph, made_by_job, garbage = (publish_old(storage, name) for name in "abcde")
    fresh = publish(storage, "f")
    with sessions.begin() as session:
        create_release(
            session,
            base_model="demo",
            base_fingerprint=FINGERPRINT,
            router_digest=router,
            router_kind="bayes",
            graph_digest=graph,
            version_ids=[register(session, expert)],
            note="",
        )
        job_id = jobs.create_job(session, RouterJobSpec()).id
        job_lease.claim_job(session, job_id, owner="w", lease_s=60, max_attempts=3)
        job_lease.finish_job(session, job_id, owner="w", status=JobStatus.SUCCEEDED, result={"router": made_by_job})

    with sessions.begin() as session:
        found = find_garbage(session, storage, grace_s=GRACE_S, with_unused_files=True)
    there_after_looking = storage.artifact(garbage).is_dir()
    with sessions.begin() as session:
        collected = collect_garbage(session, storage, grace_s=GRACE_S)

    assert there_after_looking
    assert found == collected
    assert [(piece.id, piece.num_bytes) for piece in collected.artifacts] == [(garbage, 1)]
    kept = sorted(path.name for path in storage.artifacts.iterdir())
    assert kept == sorted([expert, router, graph, made_by_job, fresh])


def test_bytes_without_a_record_go_and_files_that_no_job_names_only_when_asked(
    sessions: sessionmaker[Session], storage: Storage
) -> None:
    unused, used = upload_old(storage, sessions, 1), upload_old(storage, sessions, 2)
    orphan, broken_off = storage.upload(f"file-{3:032x}"), storage.uploads / f"file-{4:032x}.part"
    for path in (orphan, broken_off):
        path.write_text("text")
        age(path)
    (storage.uploads / "README").write_text("not ours")
    age(storage.uploads / "README")
    with sessions.begin() as session:
        jobs.create_job(session, ExpertJobSpec(name="math", training_file=used))
        found = find_garbage(session, storage, grace_s=GRACE_S, with_unused_files=True)

    with sessions.begin() as session:
        first = collect_garbage(session, storage, grace_s=GRACE_S)
    with sessions.begin() as session:
        forgotten = forget_unused_files(session, grace_s=GRACE_S)
    with sessions.begin() as session:
        second = collect_garbage(session, storage, grace_s=GRACE_S)

    assert {piece.id for piece in first.uploads} == {orphan.name, broken_off.name}
    assert (forgotten, [piece.id for piece in second.uploads]) == ([unused], [unused])
    assert {piece.id for piece in found.uploads} == {orphan.name, broken_off.name, unused}
    assert sorted(path.name for path in storage.uploads.iterdir()) == ["README", used]


def test_a_file_that_a_job_is_being_made_for_is_not_forgotten(
    sessions: sessionmaker[Session], storage: Storage
) -> None:
    file_id = upload_old(storage, sessions, 1)
    with sessions.begin() as submission:
        submission.get(FileRow, file_id, with_for_update={"read": True})
        with sessions.begin() as session:
            assert forget_unused_files(session, grace_s=GRACE_S) == []
        jobs.create_job(submission, ExpertJobSpec(name="math", training_file=file_id))

    with sessions.begin() as session:
        assert forget_unused_files(session, grace_s=GRACE_S) == []


@pytest.mark.parametrize("referrer", ["nobody", "version", "router", "graph", "calibration", "job"])
def test_what_was_published_in_vain_is_taken_back_unless_something_refers_to_it(
    sessions: sessionmaker[Session], storage: Storage, referrer: str
) -> None:
    with storage.stage() as staged:
        (staged / "weights.safetensors").write_text("x")
        published = storage.put(staged)
    with sessions.begin() as session:
        if referrer == "version":
            register(session, published.digest)
        elif referrer == "job":
            jobs.create_job(session, RouterJobSpec(settings={"note": published.digest}))
        elif referrer != "nobody":
            digests = {"router": "0" * 64, "graph": None, "calibration": None, referrer: published.digest}
            create_release(
                session,
                base_model="demo",
                base_fingerprint=FINGERPRINT,
                router_digest=digests["router"] or "",
                router_kind="bayes",
                graph_digest=digests["graph"],
                calibration_digest=digests["calibration"],
                version_ids=[],
                note="",
            )

    with sessions.begin() as session:
        withdraw_artifact(session, storage, published)

    assert (storage.artifacts / published.digest).exists() is (referrer != "nobody")


def test_what_somebody_else_has_published_too_is_not_taken_back(
    sessions: sessionmaker[Session], storage: Storage
) -> None:
    with storage.stage() as staged:
        (staged / "weights.safetensors").write_text("x")
        first, second = storage.put(staged), storage.put(staged)

    for published in (first, second):
        with sessions.begin() as session:
            withdraw_artifact(session, storage, published)

    assert storage.artifact(first.digest).is_dir()


def test_publishing_again_what_is_old_makes_it_new(sessions: sessionmaker[Session], storage: Storage) -> None:
    digest = publish_old(storage, "a")
    publish(storage, "a")

    with sessions.begin() as session:
        assert collect_garbage(session, storage, grace_s=GRACE_S).artifacts == ()
    assert storage.artifact(digest).is_dir()


def test_jobs_that_publish_while_garbage_is_collected_lose_nothing(
    sessions: sessionmaker[Session], storage: Storage
) -> None:
    # Each content is old garbage when a job publishes it again: whoever comes first, what is registered must be there.
    contents = [f"content {number}" for number in range(NUM_ROUNDS)]
    digests = [publish_old(storage, content) for content in contents]
    nobodys = storage.artifacts / publish_old(storage, "nobody's")
    done = Event()

    def collect() -> None:
        while not done.is_set():
            with sessions.begin() as session:
                collect_garbage(session, storage, grace_s=GRACE_S)

    def work(number: int) -> None:
        digest = publish(storage, contents[number])
        assert storage.artifact(digest).is_dir()
        with sessions.begin() as session:
            register(session, digest, name=f"expert-{number}")
        # From here on the row alone protects it.
        age(storage.artifact(digest))

    with ThreadPoolExecutor(3) as pool:
        collectors = [pool.submit(collect) for _ in range(2)]
        try:
            for number in range(NUM_ROUNDS):
                work(number)
            deadline = time.monotonic() + 60.0
            while nobodys.exists():
                assert time.monotonic() < deadline, "nothing is collected: the race was not run"
                time.sleep(0.01)
        finally:
            done.set()
        for collector in collectors:
            collector.result()

    assert all((storage.artifact(digest) / "weights.safetensors").is_file() for digest in digests)
