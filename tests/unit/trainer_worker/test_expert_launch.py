"""Training an expert on several processes: the same weights, and nothing stays behind. On CPUs, over gloo."""

import errno
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from services.shared.errors import AmoeError, InvalidRequest, JobFailed
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.progress import TrainingProgress, TrainingStopped
from services.trainer_worker.training.carried_error import carry_error, raise_carried_error
from services.trainer_worker.training.expert import ExpertTraining, train_expert
from services.trainer_worker.training.expert_launch import launch_expert_training
from services.trainer_worker.training.training_inputs import TrainingInputs
from tests.waiting import wait_until

# peft 0.21 asks transformers 5.23 for an attribute that has a new name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# Of unequal lengths and not packed, so that a mean of the processes' means would differ from that over all tokens.
EXAMPLES = [Example(f"{number} makes {'much ' * (number % 7)}{number + 1}.", None) for number in range(46)]
PLAN = ExpertHyperparameters(
    rank=2, batch_size=4, max_steps=8, eval_steps=6, max_length=64, learning_rate=5e-3, dropout=0.0, packing=False
)
KEPT_STEP = 4

# A job's process that is to keep the training's state after KEPT_STEP, and then is held up by its checkpoint.
JOB = """
import sys
import time
from dataclasses import fields
from pathlib import Path
from services.trainer_worker.training.expert_launch import launch_expert_training
from services.trainer_worker.training.training_inputs import TrainingInputs

inputs = TrainingInputs.read(Path(sys.argv[1]))
steps = [0]
launch_expert_training(
    **{field.name: getattr(inputs, field.name) for field in fields(inputs)},
    output_dir=Path(sys.argv[2]), num_processes=2, note=lambda _: None,
    on_progress=lambda progress: steps.append(progress.step),
    should_stop=lambda: steps[-1] == int(sys.argv[3]) - 1, should_keep_state=lambda: steps[-1] == int(sys.argv[3]) - 1,
    on_checkpoint=lambda: time.sleep(600),
)
"""


@pytest.fixture
def arguments(tiny_base: Path) -> dict[str, Any]:
    """Of a training on the tiny base that nothing stops."""
    return {
        "base_model": str(tiny_base),
        "train": EXAMPLES[:40],
        "validation": EXAMPLES[40:],
        "hyperparameters": PLAN,
        "should_stop": lambda: False,
        "should_keep_state": lambda: False,
        "on_checkpoint": lambda: None,
        "num_threads": 1,
    }


def launch(arguments: dict[str, Any], folder: Path, **changes: Any) -> ExpertTraining:
    """Train on two processes."""
    listening = {"on_progress": lambda _: None, "note": lambda _: None}
    return launch_expert_training(**(arguments | listening | changes), output_dir=folder, num_processes=2)


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie has ended."""
    running = [process for process in processes if process.is_running()]
    return [process for process in running if process.status() != psutil.STATUS_ZOMBIE]


def weights_of(training: ExpertTraining) -> dict[str, torch.Tensor]:
    return load_file(training.adapter_dir / "adapter_model.safetensors")


def kill_job(base_model: str, folder: Path) -> Path:
    """Start a job that trains in `folder` and kill it at its checkpoint, which is returned, when its processes have
    ended too."""
    folder.mkdir()
    checkpoint = folder / "checkpoints" / f"checkpoint-{KEPT_STEP}"
    inputs = TrainingInputs(base_model, tuple(EXAMPLES[:40]), tuple(EXAMPLES[40:]), PLAN, num_threads=2)
    with inputs.written(folder.parent):
        job = subprocess.Popen([sys.executable, "-c", JOB, str(folder.parent), str(folder), str(KEPT_STEP)])
        try:
            wait_until((checkpoint / "complete").exists, seconds=240, what="the checkpoint")
            started = psutil.Process(job.pid).children(recursive=True)
        finally:
            job.kill()
            job.wait()
    assert len(started) == 3, "a launcher and two processes"
    wait_until(lambda: not alive(started), seconds=30, what="the end of the killed job's processes")
    return checkpoint


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/gpu")
def test_two_processes_killed_amid_their_steps_leave_nothing_behind_and_come_to_the_weights_of_one(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    killed_at = kill_job(arguments["base_model"], folder)

    gone_on, notes, reports = tmp_path / "one", list[str](), list[TrainingProgress]()
    shutil.copytree(folder, gone_on)
    two = launch(arguments, folder, on_progress=reports.append, note=notes.append)
    again = launch(arguments, folder, note=notes.append)
    alone, expected = (
        train_expert(**arguments, output_dir=output_dir, on_progress=lambda _: None)
        for output_dir in (gone_on, tmp_path / "whole")
    )

    assert {path.name for path in killed_at.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert [report.step for report in reports if report.phase == "training"] == [5, 6, 7, 8]
    assert len(notes) == 1, "what is finished is not started again"
    assert notes[0].startswith("Started: accelerate launch --multi_gpu --num_machines 1 --num_processes 2 ")
    assert again == two
    assert not (folder / "training.json").exists()
    untrained = torch.zeros(())
    for name, tensor in weights_of(expected).items():
        for other in (two, alone):
            torch.testing.assert_close(weights_of(other)[name], tensor, rtol=1e-4, atol=1e-6)
        untrained = untrained + (tensor.abs().max() if "lora_B" in name else 0.0)
    assert untrained > 1e-2, "it has learned far more than that"
    for name in ("best_eval_loss", "base_eval_loss", "num_train_tokens", "num_steps"):
        assert getattr(two, name) == pytest.approx(getattr(expected, name), rel=1e-6)


class TestLaunch:
    def test_that_is_stopped_before_its_first_step_ends_at_once(
        self, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(TrainingStopped):
            launch(arguments, tmp_path, should_stop=lambda: True, should_keep_state=lambda: True)

        assert not [child for child in psutil.Process().children() if "accelerate.commands.launch" in child.cmdline()]
        assert not (tmp_path / "training.json").exists()

    @pytest.mark.parametrize(
        ("last_line", "code", "advice"),
        [
            ("exitcode  : -9, traceback : Signal 9 (SIGKILL) received by PID 7", "training_process_killed", "smaller"),
            ("ImportError: no such library", "training_processes_failed", "status 3"),
        ],
    )
    def test_that_ends_without_a_reason_says_what_was_written_last(
        self,
        arguments: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        last_line: str,
        code: str,
        advice: str,
    ) -> None:
        broken = tmp_path / "python"
        broken.write_text(f"#!/bin/sh\necho '{last_line}'\nexit 3\n")
        broken.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(broken))

        with pytest.raises(JobFailed, match=advice) as failure:
            launch(arguments, tmp_path)

        assert failure.value.error_code == code
        assert last_line in failure.value.__notes__[0]

    def test_is_refused_where_there_are_fewer_gpus(
        self, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

        with pytest.raises(JobFailed, match=r"asks for 2 processes, one a GPU, and this worker sees 1"):
            launch(arguments, tmp_path)


class TestCarriedError:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (JobFailed("The loss was no number.", code="loss_not_finite"), "loss_not_finite"),
            (InvalidRequest("No such layer.", param="hyperparameters.target_modules"), "invalid_request"),
            (MemoryError(), "out_of_memory"),
            (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_is_raised_as_what_its_owner_can_act_on(self, tmp_path: Path, error: Exception, code: str) -> None:
        carry_error(error, tmp_path)

        with pytest.raises(AmoeError) as raised:
            raise_carried_error(tmp_path)
        assert raised.value.error_code == code
        assert type(error).__name__ in raised.value.__notes__[0]
        if isinstance(error, AmoeError):
            assert type(raised.value) is type(error)
            assert raised.value.body() == error.body()

    def test_is_the_first_one(self, tmp_path: Path) -> None:
        carry_error(RuntimeError("a fault of ours is for the log"), tmp_path)
        carry_error(TrainingStopped(), tmp_path)
        carry_error(JobFailed("The others are gone."), tmp_path)

        with pytest.raises(TrainingStopped):
            raise_carried_error(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["error.json"]
