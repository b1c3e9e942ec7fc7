"""A Hugging Face hub on loopback, as far as its real client asks: one public model at one commit.

Hub API: huggingface.co/docs/hub/api; headers as `huggingface_hub.file_download.get_hf_file_metadata` reads them.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response

from tests.integration.router_service.running import served

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Where it listens, and the files that were fetched whole."""

    url: str = ""
    fetched: list[str] = field(default_factory=list)


@contextmanager
def hub_with(repository: str, folder: Path) -> Iterator[Hub]:
    """Serve the files of `folder` as the model `repository`."""
    hub = Hub()
    with served(_app(hub, repository, folder)) as hub.url:
        yield hub


def _app(hub: Hub, repository: str, folder: Path) -> FastAPI:
    app = FastAPI(openapi_url=None)
    files = {path.name: path for path in folder.iterdir() if path.is_file()}

    @app.get(f"/api/models/{repository}")
    @app.get(f"/api/models/{repository}/revision/{{revision}}")
    def model_info(revision: str = "main") -> dict[str, Any]:
        return {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    @app.get(f"/api/models/{repository}/tree/{{revision}}")
    def tree(revision: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "oid": _etag(path), "size": path.stat().st_size}
            for name, path in files.items()
        ]

    @app.head(f"/{repository}/resolve/{{revision}}/{{name:path}}")
    def describe(revision: str, name: str) -> Response:
        if name not in files:
            return _no_entry(name)
        headers = {**_headers(files[name]), "content-length": str(files[name].stat().st_size)}
        return Response(headers=headers)

    @app.get(f"/{repository}/resolve/{{revision}}/{{name:path}}")
    def fetch(revision: str, name: str) -> Response:
        if name not in files:
            return _no_entry(name)
        hub.fetched.append(name)
        return FileResponse(files[name], headers=_headers(files[name]))

    return app


def _headers(path: Path) -> dict[str, str]:
    return {"etag": f'"{_etag(path)}"', "x-repo-commit": COMMIT}


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _no_entry(name: str) -> Response:
    headers = {"x-error-code": "EntryNotFound", "x-error-message": f"{name} is not there", "x-repo-commit": COMMIT}
    return JSONResponse({"error": "Entry not found"}, status_code=404, headers=headers)
