"""Who may import whom (DESIGN section 5), held by import-linter's contracts in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_hold_and_every_package_has_its_place() -> None:
    linter = [Path(sys.executable).parent / "lint-imports", "--no-cache"]

    answer = subprocess.run(linter, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stdout
