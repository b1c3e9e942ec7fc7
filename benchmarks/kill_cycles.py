"""Kills a worker, Valkey or Postgres with SIGKILL in every state of a job, cycle after cycle, while jobs are trained.

Every cycle submits a job, waits for a state of it (queued, validating, just running, at a random step, asked to pause,
paused, publishing) and kills. Worker, Valkey and Postgres (durable, as `adaptive-moe up` starts them) come back as a
supervisor would bring them. At the end every job must have succeeded with exactly one published version, its attempts
must be those that its events tell, and its weights must be, byte for byte, those of a training that nothing
interrupted: jobs of one seed are one training.

    python -m benchmarks.kill_cycles --cycles 50
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select

from benchmarks.kill_arena import NUM_STEPS, PROJECT, Arena, open_arena
from benchmarks.results_file import machine, write_results
from services.shared.database.rows import ExpertVersionRow, JobEventRow, JobRow
from services.shared.job_events import list_events
from services.shared.jobs import find_job
from services.shared.storage import Storage
from services.shared.vocabulary import JobStatus

MOMENTS: Final = ("queued", "validating", "starting", "training", "pausing", "paused", "publishing", "at random")
VICTIMS: Final = ("worker", "worker", "valkey", "postgres")
"""A worker's death is the hardest case: half of all."""


@dataclass(frozen=True)
class Kill:
    """What was killed, when, and in which state of the cycle's job."""

    cycle: int
    victim: str
    moment: str
    status: str
    phase: str
    step: int
    seconds_to_run: float | None
    """From the kill until the job was running, for a worker killed while running; else None."""


def main() -> None:
    """Run the cycles, check, write the result."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="amoe-kills-", dir="/var/tmp"))
    folder.chmod(0o755)
    where = machine()
    started_at = time.monotonic()
    try:
        with ExitStack() as stack:
            arena = open_arena(folder, options.base_model, stack)
            kills, jobs = run_cycles(arena, options, until=started_at + 60 * options.minutes)
            faults = check(arena, jobs)
            attempts = Counter(arena.row(job_id).attempt for job_id in jobs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(kills, faults, attempts, seconds=time.monotonic() - started_at, where=where, options=vars(options))
    sys.exit(bool(faults))


def run_cycles(arena: Arena, options: argparse.Namespace, *, until: float) -> tuple[list[Kill], list[str]]:
    """The kills, and the jobs, all ended; the first job was left alone."""
    chance = random.Random(options.seed)
    plan = kinds_of_kills(chance)
    jobs = [arena.submit(0)]
    arena.wait(jobs[0], lambda _: False)
    kills: list[Kill] = []
    while len(kills) < options.cycles and time.monotonic() < until:
        cycle = len(kills) + 1
        jobs.append(arena.submit(cycle))
        victim, moment = next(plan)
        kills.append(one_kill(arena, cycle, jobs[-1], victim, moment, chance))
        print(kills[-1], flush=True)
    for job_id in jobs:
        arena.wait(job_id, lambda _: False)
    return kills, jobs


def kinds_of_kills(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Every victim at every moment, in an order left to chance, again and again."""
    while True:
        kinds = [(victim, moment) for victim in VICTIMS for moment in MOMENTS]
        chance.shuffle(kinds)
        yield from kinds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop earlier, with the cycle that exceeds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-model", default=str(PROJECT / "demo" / "base"))
    return parser.parse_args()


def one_kill(arena: Arena, cycle: int, job_id: str, victim: str, moment: str, chance: random.Random) -> Kill:
    """Wait for the moment of the job and kill."""
    at_step = chance.randrange(1, NUM_STEPS)
    conditions: dict[str, Callable[[JobRow], bool]] = {
        "queued": lambda _: True,
        "validating": lambda row: JobStatus(row.status).is_held,
        "starting": lambda row: row.status == JobStatus.RUNNING,
        "publishing": lambda row: row.phase == "publishing",
        "at random": lambda row: JobStatus(row.status).is_held,
    }
    arena.wait(job_id, conditions.get(moment, lambda row: row.step >= at_step))
    if moment == "at random":
        time.sleep(chance.uniform(0.0, 8.0))
    if is_pause := moment in {"pausing", "paused"}:
        arena.pause(job_id)
    if moment == "paused":
        arena.wait(job_id, is_paused)
    row = arena.row(job_id)
    killed_at = time.monotonic()
    arena.servers[victim].kill()
    seconds = None
    if is_pause:
        arena.wait(job_id, is_paused)
        arena.resume(job_id)
    elif victim == "worker" and JobStatus(row.status).is_held:
        attempt = row.attempt
        if arena.wait(job_id, lambda now: now.attempt > attempt).attempt > attempt:
            seconds = round(time.monotonic() - killed_at, 2)
    return Kill(cycle, victim, moment, row.status, row.phase, row.step, seconds)


def is_paused(row: JobRow) -> bool:
    """It rests until it is resumed."""
    return row.status == JobStatus.PAUSED


def check(arena: Arena, jobs: list[str]) -> list[str]:
    """Everything that is not as it must be, in words."""
    faults = []
    storage = Storage(arena.settings.storage.root)
    with arena.sessions() as session:
        reference = weights(storage, find_job(session, jobs[0]))
        for job_id in jobs:
            row = find_job(session, job_id)
            if row.status != JobStatus.SUCCEEDED:
                faults.append(f"{job_id} {row.status}: {row.error}")
                continue
            versions = session.scalars(select(ExpertVersionRow).where(ExpertVersionRow.job_id == job_id)).all()
            if [version.digest for version in versions] != [row.result["digest"]]:
                faults.append(f"{job_id} published {len(versions)} versions")
            events = [event for event in list_events(session, job_id) if event.type == "status"]
            names = [event.data["status"] for event in events]
            if names.count("succeeded") != 1 or attempts_told(events) != row.attempt:
                faults.append(f"{job_id} has {row.attempt} attempts, but its events are {names}")
            if weights(storage, row) != reference:
                faults.append(f"{job_id} has other weights than an uninterrupted training")
    return faults


def attempts_told(events: list[JobEventRow]) -> int:
    """Attempts that count: those that were started and not handed back, as a pause does."""
    names = [event.data["status"] for event in events]
    handed_back = [
        event.level == "info" and JobStatus(before).is_held and now in {"paused", "queued"}
        for before, now, event in zip(names, names[1:], events[1:], strict=False)
    ]
    return names.count("validating") - sum(handed_back)


def weights(storage: Storage, row: JobRow) -> bytes:
    """The published adapter, byte for byte; nothing of a job that has published none."""
    if not row.result:
        return b""
    return (storage.artifact(row.result["digest"]) / "adapter_model.safetensors").read_bytes()


def report(
    kills: list[Kill],
    faults: list[str],
    attempts: Counter[int],
    *,
    seconds: float,
    where: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Write the dated result."""
    lines = ["| killed | " + " | ".join(MOMENTS) + " |", "|---|" + "---:|" * len(MOMENTS)]
    for victim in dict.fromkeys(VICTIMS):
        counts = Counter(kill.moment for kill in kills if kill.victim == victim)
        lines.append(f"| {victim} | " + " | ".join(str(counts[moment]) for moment in MOMENTS) + " |")
    back = sorted(kill.seconds_to_run for kill in kills if kill.seconds_to_run is not None)
    lines += ["", f"{len(kills)} kills in {seconds / 60:.1f} minutes; {sum(attempts.values())} jobs."]
    lines.append("Attempts: " + ", ".join(f"{count} jobs took {n}" for n, count in sorted(attempts.items())) + ".")
    if back:
        lines.append(
            f"From `kill -9` of a running job's worker until it ran again: median {back[len(back) // 2]:.1f} s, "
            f"longest {back[-1]:.1f} s (lease 5 s)."
        )
    lines.append("Faults: " + ("; ".join(faults) if faults else "none") + ".")
    figures = {
        "options": options | {"base_model": Path(options["base_model"]).name},
        "kills": [vars(kill) for kill in kills],
        "attempts": dict(sorted(attempts.items())),
        "faults": faults,
        "seconds": round(seconds, 1),
    }
    write_results(
        PROJECT / "benchmarks" / "results" / "kill_cycles",
        title="Jobs under kill -9",
        about="Every job must succeed once, published once, with the weights of an uninterrupted training.",
        machine=where,
        table="\n".join(lines),
        figures=figures,
    )


if __name__ == "__main__":
    main()
