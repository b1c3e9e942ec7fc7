"""What the API gives out as files."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

from services.command_line.api_client import ApiClient
from services.command_line.errors import BadInput, Refused, Unreachable
from services.command_line.output import transfer


def download(api: ApiClient, path: str, target: Path, *, quiet: bool) -> int:
    """The bytes of an answer as a file, which is there when all of it is."""
    part = target.with_name(f"{target.name}.part")
    num_bytes = 0
    try:
        with api.stream("GET", path) as response, transfer(quiet=quiet) as progress, part.open("wb") as file:
            expected = int(response.headers["content-length"])
            task = progress.add_task(target.name, total=expected)
            for chunk in response.iter_bytes():
                file.write(chunk)
                num_bytes += len(chunk)
                progress.update(task, completed=num_bytes)
        if num_bytes != expected:
            raise Unreachable(f"{path} broke off after {num_bytes} of {expected} bytes: try again.")
        os.replace(part, target)
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
    return num_bytes


def download_artifacts(api: ApiClient, job_id: str, folder: Path, *, quiet: bool) -> list[Path]:
    """Everything that a job has made, under `folder` by its own path; raises Refused for a path that leads outside."""
    listed: dict[str, Any] = api.get(f"/jobs/{job_id}/artifacts")
    written = []
    for entry in listed["data"]:
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts:
            raise Refused(f"{api.url} offers {str(path)[:100]!r}, which is no path in a folder.", status=0)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        download(api, f"/jobs/{job_id}/artifacts/{path}", target, quiet=quiet)
        written.append(target)
    return written
