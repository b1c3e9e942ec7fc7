"""Garbage that workers remove without being asked."""

import os
import time

import pytest
from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.storage import Storage
from services.trainer_worker.garbage_collection import GarbageCollection
from services.trainer_worker.reaper import run_reaper

pytestmark = pytest.mark.integration


def leave_garbage(settings: Settings, content: bytes) -> str:
    """The digest of an old artifact that nothing refers to."""
    storage = Storage(settings.storage.root)
    with storage.stage() as staged:
        (staged / "weights.safetensors").write_bytes(content)
        digest = storage.publish(staged)
    then = time.time() - 2 * settings.storage.garbage_grace_s
    os.utime(storage.artifact(digest), (then, then))
    return digest


def test_the_reaper_removes_garbage_beside_its_own_work(settings: Settings, sessions: sessionmaker[Session]) -> None:
    digest = leave_garbage(settings, b"12345")
    rounds = iter([False, True])

    run_reaper(settings, should_stop=lambda _: next(rounds))

    assert not (Storage(settings.storage.root).artifacts / digest).exists()


def test_it_collects_at_the_start_and_then_as_often_as_the_settings_say(
    settings: Settings, sessions: sessionmaker[Session]
) -> None:
    now = [0.0]
    collection = GarbageCollection(settings.storage, sessions, clock=lambda: now[0])
    removed = []
    for seconds in (0.0, 1.0, settings.storage.collect_every_s):
        leave_garbage(settings, b"12345")
        now[0] = seconds
        removed.append(collection.run_if_due())

    assert removed == [5, 0, 5]


def test_it_can_be_turned_off(settings: Settings, sessions: sessionmaker[Session]) -> None:
    leave_garbage(settings, b"12345")
    off = settings.storage.model_copy(update={"collect_every_s": 0.0})

    assert GarbageCollection(off, sessions).run_if_due() == 0
