"""One attempt at one job: claim, run, publish and finish in one transaction, or say why not."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy.orm import Session, sessionmaker

from services.shared.config import Settings
from services.shared.database.rows import JobRow
from services.shared.errors import Conflict
from services.shared.job_lease import begin_work, claim_job, claim_next_job, finish_job, hand_back_job, hold_job
from services.shared.storage import Storage
from services.shared.telemetry import bound, get_logger
from services.shared.vocabulary import JobKind, JobStatus
from services.trainer_worker.attempt_cost import AttemptCost
from services.trainer_worker.failure_reasons import failure_reason
from services.trainer_worker.job_context import JobContext, JobFolder, JobLog
from services.trainer_worker.job_validation import Validate, validate_job
from services.trainer_worker.kinds import Handler, Publish, handler_of
from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.pulse import DATABASE_AWAY, Pulse, with_patience

log = get_logger(__name__)

_PATIENCE_S: Final = 600.0
"""How long an ended job waits for a database that is away before it leaves the rest to the next attempt."""

_PUBLISH_ATTEMPTS: Final = 20


Claim = Callable[..., JobRow | None]
"""`claim_job` or `claim_next_job`, but for who claims."""


class LeaseLost(Exception):
    """The job is another worker's now: nothing may be written."""


@dataclass(frozen=True)
class JobRunner:
    """Runs jobs as `owner`. `handlers` names the code per kind, `validate` what is asked before it; tests hand
    in their own."""

    settings: Settings
    sessions: sessionmaker[Session]
    storage: Storage
    owner: str
    shutting_down: Callable[[], bool]
    handlers: Callable[[JobKind], Handler] = handler_of
    validate: Validate = validate_job

    def run(self, job_id: str) -> None:
        """Run `job_id` to its end, if it is to be had."""
        self._run(partial(claim_job, job_id=job_id))

    def run_next(self, queue: str) -> None:
        """Run the job of `queue` whose turn it is, if there is one."""
        self._run(partial(claim_next_job, queue=queue))

    def _run(self, claim: Claim) -> None:
        row = self._claim(claim)
        if row is None:
            log.info("no job is to be had")
            return
        folder = JobFolder(self.storage, row.id)
        pulse = Pulse(row.id, owner=self.owner, sessions=self.sessions, settings=self.settings.trainer)
        with bound(job=row.id), _logging_to(folder), pulse:
            log.info("job started", kind=row.kind, attempt=row.attempt)
            self._attempt(self._context(row, folder, pulse), pulse)

    def _attempt(self, context: JobContext, pulse: Pulse) -> None:
        try:
            self.validate(context)
            self._with_patience(partial(self._begin, context, pulse), pulse)
            kind = JobKind(self._kind_of(context))
            cost = AttemptCost(context.folder)
            publish = self.handlers(kind)(context)
            context.enter("publishing")
            self._with_patience(partial(self._publish_and_finish, publish, context, pulse, cost), pulse)
        except TrainingStopped:
            self._stopped(context, pulse)
        except LeaseLost:
            log.warning("the job is another worker's now")
        except DATABASE_AWAY:
            # No fault of the job's: its lease runs out, and the next attempt goes on from what is on disk.
            log.warning("the database went away under the job; it is run again", exc_info=True)
        except Exception as error:
            log.exception("job failed")
            self._failed(context, pulse, error)

    def _begin(self, context: JobContext, pulse: Pulse) -> None:
        """From validating to running. After a flush: a phase of the validation must not be written over the next."""
        pulse.flush()
        with self.sessions.begin() as session:
            if not begin_work(session, context.job_id, owner=self.owner):
                raise LeaseLost

    def _publish_and_finish(self, publish: Publish, context: JobContext, pulse: Pulse, cost: AttemptCost) -> None:
        """Publish and finish together, or neither. Again when another change of the releases came in between."""
        pulse.flush()
        for attempt in range(_PUBLISH_ATTEMPTS):
            try:
                with self.sessions.begin() as session:
                    if hold_job(session, context.job_id, owner=self.owner) is None:
                        raise LeaseLost
                    result = publish(session) | cost.told()
                    finish_job(session, context.job_id, owner=self.owner, status=JobStatus.SUCCEEDED, result=result)
            except Conflict:
                if attempt + 1 == _PUBLISH_ATTEMPTS:
                    raise
            else:
                log.info("job succeeded")
                context.folder.clear_work()
                return

    def _stopped(self, context: JobContext, pulse: Pulse) -> None:
        if pulse.lost:
            log.warning("the job is another worker's now")
        elif pulse.cancel_requested:
            self._with_patience(partial(self._finish, context, pulse, JobStatus.CANCELLED), pulse)
            context.folder.clear_work()
            log.info("job cancelled")
        else:
            self._with_patience(partial(self._hand_back, context, pulse), pulse)
            log.info("job let go of, to go on from its last checkpoint")

    def _failed(self, context: JobContext, pulse: Pulse, error: Exception) -> None:
        # First, because it makes room on a full disk.
        checkpoint = context.folder.keep_last_checkpoint()
        reason = failure_reason(error, job_id=context.job_id, checkpoint=checkpoint)
        self._with_patience(partial(self._finish, context, pulse, JobStatus.FAILED, reason), pulse)

    def _finish(
        self, context: JobContext, pulse: Pulse, status: JobStatus, error: dict[str, Any] | None = None
    ) -> None:
        pulse.flush()
        with self.sessions.begin() as session:
            finish_job(session, context.job_id, owner=self.owner, status=status, error=error)

    def _hand_back(self, context: JobContext, pulse: Pulse) -> None:
        pulse.flush()
        with self.sessions.begin() as session:
            hand_back_job(session, context.job_id, owner=self.owner)

    def _claim(self, claim: Claim) -> JobRow | None:
        claimed: list[JobRow | None] = []
        trainer = self.settings.trainer

        def try_to() -> None:
            with self.sessions.begin() as session:
                claimed.append(
                    claim(session, owner=self.owner, lease_s=trainer.lease_s, max_attempts=trainer.max_attempts)
                )

        with_patience(try_to, patience_s=_PATIENCE_S, is_over=self.shutting_down)
        return claimed[-1] if claimed else None

    def _context(self, row: JobRow, folder: JobFolder, pulse: Pulse) -> JobContext:
        def should_stop() -> bool:
            return pulse.lost or pulse.cancel_requested or pulse.orphaned or should_keep_state()

        def should_keep_state() -> bool:
            # Of a lost job nothing may be written: its successor may be at work in the same folder.
            unwanted = pulse.lost or pulse.cancel_requested or pulse.orphaned
            return not unwanted and (pulse.pause_requested or self.shutting_down())

        return JobContext(
            job_id=row.id,
            spec=row.spec,
            attempt=row.attempt,
            base_fingerprint=row.base_fingerprint,
            settings=self.settings,
            storage=self.storage,
            sessions=self.sessions,
            folder=folder,
            report=pulse.report,
            note=pulse.note,
            keep_checkpoints=pulse.keep_checkpoints,
            should_stop=should_stop,
            should_keep_state=should_keep_state,
        )

    def _with_patience(self, action: Callable[[], None], pulse: Pulse) -> None:
        """Outlast a database that is away. What could not be written then is left to the next attempt."""
        is_over = partial(_is_over, self, pulse)
        if not with_patience(action, patience_s=_PATIENCE_S, is_over=is_over):
            log.error("the database stayed away; the job's lease will expire and it will be run again")

    @staticmethod
    def _kind_of(context: JobContext) -> str:
        return str(context.spec["kind"])


def _is_over(runner: JobRunner, pulse: Pulse) -> bool:
    return runner.shutting_down() or pulse.orphaned


@contextmanager
def _logging_to(folder: JobFolder) -> Iterator[None]:
    """Everything that this process logs inside the block, in the job's own log too."""
    handler = JobLog(folder.log_file)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
