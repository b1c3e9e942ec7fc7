"""Native models that may be traced: folders below the one that the operator has named, and nothing else."""

import json
from pathlib import Path
from typing import Any, Final

from services.shared.errors import InvalidRequest, NotFound

_CONFIG: Final = "config.json"
_INDEX: Final = "model.safetensors.index.json"
_ADAPTER: Final = "adapter_config.json"
_LONGEST_SHOWN: Final = 120


def model_folder(root: Path | None, path: str) -> Path:
    """The folder of the model at `path` below `root`. Links may lead to other places below `root`, no further.

    Raises InvalidRequest where no folder is named, or for paths and files that lead out of it; NotFound where no model
    with safetensors weights is.
    """
    if root is None:
        raise InvalidRequest(
            "Native models are traced from a folder that the operator names, and none is named: set "
            "trainer.traced_models (AMOE_TRAINER__TRACED_MODELS), or leave `model` out to trace our own mixture.",
            param="model",
            code="no_traced_models",
        )
    try:
        own_root = root.resolve(strict=True)
        folder = (own_root / path).resolve(strict=True)
    except (OSError, ValueError) as error:
        raise _not_found(path) from error
    if not folder.is_relative_to(own_root):
        raise _forbidden(path)
    if (folder / _ADAPTER).exists():
        raise InvalidRequest(
            f"{path[:_LONGEST_SHOWN]!r} holds an adapter, which would be loaded with a base model of its own choice: "
            "merge it into the model first.",
            param="model",
        )
    if not (folder / _CONFIG).is_file():
        raise _not_found(path)
    for name in (_CONFIG, *_weight_names(folder, path)):
        _check_file(folder / name, own_root, path)
    return folder


def _check_file(file: Path, own_root: Path, path: str) -> None:
    if not file.resolve().is_relative_to(own_root):
        raise _forbidden(f"{path}/{file.name}")
    if not file.is_file():
        raise _not_found(path)


def _weight_names(folder: Path, path: str) -> list[str]:
    """As the index tells them, if there is one."""
    if not (folder / _INDEX).is_file():
        return ["model.safetensors"]
    try:
        index: dict[str, Any] = json.loads((folder / _INDEX).read_bytes())
        names = {str(name) for name in index["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidRequest(f"{_INDEX} of {path[:_LONGEST_SHOWN]!r} cannot be read.", param="model") from error
    return [_INDEX, *sorted(names)]


def _not_found(path: str) -> NotFound:
    return NotFound(
        f"No model at {path[:_LONGEST_SHOWN]!r} below trainer.traced_models: a folder with {_CONFIG}, tokenizer.json "
        "and safetensors weights is expected there.",
        param="model",
        code="model_not_found",
    )


def _forbidden(path: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path[:_LONGEST_SHOWN]!r} does not stay below trainer.traced_models: give the path of a folder inside it.",
        param="model",
        code="model_path_forbidden",
    )
