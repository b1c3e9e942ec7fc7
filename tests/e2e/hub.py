"""A Hugging Face hub on loopback, as far as its real client asks: public models and datasets at one commit.

Hub API: huggingface.co/docs/hub/api; headers as `huggingface_hub.file_download.get_hf_file_metadata` reads them.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from tests.integration.router_service.running import served

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Where it listens, and the files that were fetched whole."""

    url: str = ""
    fetched: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Repository:
    """A model or dataset by its name on the hub, and the folder that holds its files."""

    name: str
    folder: Path
    kind: Literal["models", "datasets"] = "models"


@contextmanager
def hub_with(*repositories: Repository) -> Iterator[Hub]:
    """Serve the files of these; of others the hub says that they are not there."""
    hub = Hub()
    names = tuple(repository.name for repository in repositories)

    async def not_found(request: Request, _error: Exception) -> Response:
        is_known = any(name in request.url.path for name in names)
        return JSONResponse(
            {}, status_code=404, headers={"x-error-code": "EntryNotFound" if is_known else "RepoNotFound"}
        )

    app = FastAPI(openapi_url=None, exception_handlers={404: not_found})
    for repository in repositories:
        _serve(app, hub, repository)
    with served(app) as hub.url:
        yield hub


def _serve(app: FastAPI, hub: Hub, repository: Repository) -> None:
    folder, kind, name = repository.folder, repository.kind, repository.name
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    below = "" if kind == "models" else f"/{kind}"

    @app.get(f"/api/{kind}/{name}")
    @app.get(f"/api/{kind}/{name}/revision/{{revision}}")
    def info(revision: str = "main") -> Response:
        if revision not in ("main", COMMIT):
            return JSONResponse({}, status_code=404, headers={"x-error-code": "RevisionNotFound"})
        siblings = [{"rfilename": file, "size": path.stat().st_size} for file, path in files.items()]
        return JSONResponse({"id": name, "sha": COMMIT, "siblings": siblings})

    @app.get(f"/api/{kind}/{name}/tree/{{revision}}")
    def tree(revision: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}
            for name, path in files.items()
        ]

    @app.head(f"{below}/{name}/resolve/{{revision}}/{{name:path}}")
    def describe(revision: str, name: str) -> Response:
        if name not in files:
            return _no_entry(name)
        headers = {**_headers(files[name]), "content-length": str(files[name].stat().st_size)}
        return Response(headers=headers)

    @app.get(f"{below}/{name}/resolve/{{revision}}/{{name:path}}")
    def fetch(revision: str, name: str) -> Response:
        if name not in files:
            return _no_entry(name)
        hub.fetched.append(name)
        return FileResponse(files[name], headers=_headers(files[name]))


def _headers(path: Path) -> dict[str, str]:
    return {"etag": f'"{_etag(path)}"', "x-repo-commit": COMMIT}


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _no_entry(name: str) -> Response:
    headers = {"x-error-code": "EntryNotFound", "x-error-message": f"{name} is not there", "x-repo-commit": COMMIT}
    return JSONResponse({"error": "Entry not found"}, status_code=404, headers=headers)
