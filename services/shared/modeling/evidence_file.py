"""Reading and writing the array files that evidence, routers and graphs are kept in (safetensors, numpy only)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from services.shared.errors import InvalidRequest

Arrays = dict[str, np.ndarray[Any, Any]]


class InvalidEvidence(InvalidRequest):
    """400: a file that routing needs is missing, damaged or made for something else; the message says what to do."""

    code = "invalid_evidence"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, Any]) -> None:
    """Write arrays and a small JSON of facts about them; parent folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path, metadata={"facts": json.dumps(facts, sort_keys=True)})
    # safetensors writes for the owner alone, but a stack's services may run as different users.
    path.chmod(0o644)


def read_arrays(path: Path, *, kind: str) -> tuple[Arrays, dict[str, Any]]:
    """Read a file that `write_arrays` wrote with `facts["kind"] == kind`.

    Raises InvalidEvidence, naming the file, when it is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        facts = json.loads(metadata.get("facts", "null"))
    except FileNotFoundError:
        raise InvalidEvidence(f"{path.name} is missing.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidEvidence(f"{path.name} is damaged ({error}): build it again.") from error
    if not isinstance(facts, dict) or facts.get("kind") != kind:
        raise InvalidEvidence(f"{path.name} does not hold {kind}: build it again.")
    return arrays, facts
