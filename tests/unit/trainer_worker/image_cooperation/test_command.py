"""The experiment as a plain command."""

import subprocess
import sys
from pathlib import Path


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`python -m services.trainer_worker.image_cooperation ...`."""
    command = [sys.executable, "-m", "services.trainer_worker.image_cooperation", *arguments, "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_command_trains_and_writes_the_report(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out"), "--num-epochs", "1", "--hyperparameter", "warmup_epochs=0")

    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stderr
    assert (tmp_path / "out" / "report.md").exists()
    assert (tmp_path / "out" / "adjacency_matrix_epoch_1.png").exists()


def test_a_wrong_option_is_told_without_a_traceback(tmp_path: Path) -> None:
    for arguments, told in (
        (("--top-k", "9"), "top_k 9 is more than num_experts 8"),
        (("--setting", "weak"), "setting"),
        (("--data", str(tmp_path)), "No pictures in"),
    ):
        done = run("--out", str(tmp_path / "out"), *arguments)

        assert done.returncode in {1, 2}
        assert told in done.stderr
        assert "Traceback" not in done.stderr
