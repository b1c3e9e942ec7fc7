"""Train one expert on several processes, one a GPU, started with `accelerate launch`; on the CPU without a GPU.

The processes run `expert_process.py`, which calls `train_expert`; this is the side of the job that they train for.
"""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
import torch

from services.shared.errors import JobFailed
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.progress import TrainingProgress
from services.trainer_worker.training.carried_error import forget_error, raise_carried_error
from services.trainer_worker.training.hardware import refuse_too_many_processes
from services.trainer_worker.training.job_line import JobCalls, JobEnd
from services.trainer_worker.training.training_folder import ExpertTraining, TrainingFolder, fingerprint_of
from services.trainer_worker.training.training_inputs import TrainingInputs

_LAST_LINES: Final = 60
_KILLED: Final = "(SIGKILL)"
"""How torch's launcher puts it; it kills nobody itself before its processes have ignored a SIGTERM."""


def launch_expert_training(  # noqa: PLR0913
    *,
    base_model: str,
    train: Sequence[Example],
    validation: Sequence[Example],
    hyperparameters: ExpertHyperparameters,
    output_dir: Path,
    on_progress: Callable[[TrainingProgress], None],
    should_stop: Callable[[], bool],
    should_keep_state: Callable[[], bool],
    on_checkpoint: Callable[[], object],
    num_threads: int | None,
    num_processes: int,
    note: Callable[[str], None],
) -> ExpertTraining:
    """As `train_expert`, by `num_processes` at once, which share `num_threads`; `note` is told the command.

    Takes the same steps: the same blocks in the same order make up each, and each token weighs the same. What it has
    left in `output_dir` can be gone on from with any number of processes. When it returns or raises, none is left; when
    this process is killed, they end within a moment.
    """
    refuse_too_many_processes(num_processes)
    folder = TrainingFolder(output_dir)
    folder.open(fingerprint_of(base_model, train, validation, hyperparameters), resume=True)
    if (finished := folder.result()) is not None:
        return finished
    forget_error(output_dir)
    threads_each = max(1, (num_threads or torch.get_num_threads()) // num_processes)
    inputs = TrainingInputs(base_model, tuple(train), tuple(validation), hyperparameters, threads_each)
    calls = JobCalls(on_progress, should_stop, should_keep_state, on_checkpoint)
    arguments = _arguments(output_dir, num_processes=num_processes, num_threads=threads_each)
    note(f"Started: accelerate launch {shlex.join(arguments)}")
    log = output_dir / "launch.log"
    job = JobEnd(calls)
    with inputs.written(output_dir), _launched(arguments, job, log) as launcher:
        job.serve(lambda: launcher.poll() is not None)
        status = launcher.wait()
    if (result := folder.result()) is not None:
        return result
    raise_carried_error(output_dir)
    raise _ended_without_reason(status, log.read_text(encoding="utf-8", errors="replace"))


def _arguments(folder: Path, *, num_processes: int, num_threads: int) -> list[str]:
    """Of `accelerate launch`, as far as defaults of the machine could say otherwise.

    `--multi_gpu` is what starts several processes on one machine: they find out by themselves that there is no GPU and
    speak gloo. With `--cpu` it would start one.
    """
    return [
        *("--multi_gpu", "--num_machines", "1", "--num_processes", str(num_processes), "--main_process_port", "0"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(num_threads)),
        *("--module", "services.trainer_worker.training.expert_process", str(folder)),
    ]


@contextmanager
def _launched(arguments: Sequence[str], job: JobEnd, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Inside the block the launcher runs, in a session of its own: a Ctrl-C is for the job to take. After it, neither
    it nor what it has started does."""
    with log.open("wb") as lines:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *arguments],
            stdin=job.theirs.fileno(),
            stdout=lines,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield launcher
    finally:
        if launcher.poll() is None:
            _kill(psutil.Process(launcher.pid))
            launcher.wait()
        job.close()


def _kill(launcher: psutil.Process) -> None:
    started = launcher.children(recursive=True)
    for process in (launcher, *started):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started)


def _ended_without_reason(status: int, log: str) -> JobFailed:
    """Of a launcher that ended with `status` after writing `log`, whose last lines go into the job's log."""
    if _KILLED in log:
        error = JobFailed(
            "A process of the training was killed from outside, most likely because the machine's memory ran out: try "
            "a smaller batch_size, a smaller max_length, or fewer processes (the setting trainer.num_processes).",
            code="training_process_killed",
        )
    else:
        error = JobFailed(
            f"The processes of the training ended with status {status} and no reason of their own. What they wrote "
            "last is in the job's log.",
            code="training_processes_failed",
        )
    error.add_note("The launcher's last lines:\n" + "\n".join(log.splitlines()[-_LAST_LINES:]))
    return error
