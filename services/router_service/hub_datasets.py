"""Files of public datasets on a Hugging Face hub, fetched once and kept as uploads: what is trained on never changes.

The hub is the operator's choice. No token is sent, so only what everybody may read is read, and a file is one that the
hub lists, never a path or an address of the caller's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its HTTP client's
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from services.router_service.uploads import Source
from services.shared.errors import AmoeError, InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from services.shared.training_records import SUFFIXES

_TIMEOUT_S: Final = 30.0
_DOWNLOAD_S: Final = 1800.0
_RETRY_AFTER_S: Final = 10.0
_SHOWN: Final = 8


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset at one commit."""

    dataset: str
    path: str
    commit: str

    @property
    def name(self) -> str:
        """Its last part, whose ending says how it is read."""
        return PurePosixPath(self.path).name


class HubDatasets:
    """Finds and fetches them; blocking, so call it in threads."""

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint and endpoint.rstrip("/")

    def find(self, dataset: str, *, path: str | None, revision: str, max_bytes: int) -> HubFile:
        """The file, or the only one that can be trained on if none is named.

        Raises NotFound, InvalidRequest when there are several or no hub is named, PayloadTooLarge, and Unavailable when
        the hub does not answer.
        """
        if self._endpoint is None:
            raise InvalidRequest(
                "No hub may be asked here: upload the file instead, or have router_service.dataset_hub_url set.",
                param="dataset",
                code="hub_not_set",
            )
        with _in_our_words(dataset, revision):
            info = HfApi(endpoint=self._endpoint, token=False).dataset_info(
                dataset, revision=revision, files_metadata=True, timeout=_TIMEOUT_S
            )
        sizes = {file.rfilename: file.size for file in info.siblings or ()}
        chosen = _choose(dataset, list(sizes), path)
        if (sizes[chosen] or 0) > max_bytes:
            raise PayloadTooLarge(f"{chosen} is larger than the {max_bytes:,} bytes accepted.", param="path")
        return HubFile(dataset, chosen, info.sha or revision)

    @contextmanager
    def open(self, file: HubFile) -> Iterator[Source]:
        """Its bytes as they come. The same errors."""
        url = hf_hub_url(file.dataset, file.path, repo_type="dataset", revision=file.commit, endpoint=self._endpoint)
        with (
            _in_our_words(file.dataset, file.commit),
            get_session().stream("GET", url, timeout=_TIMEOUT_S, follow_redirects=True) as response,
        ):
            response.raise_for_status()
            yield _Download(response.iter_bytes(), until=time.monotonic() + _DOWNLOAD_S)


class _Download:
    """Chunks of a response, read like a file."""

    def __init__(self, chunks: Iterator[bytes], *, until: float) -> None:
        self._chunks = chunks
        self._until = until
        self._left = b""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        while not self._left:
            if time.monotonic() > self._until:
                raise _unreachable("too slow")
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._left = chunk
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _choose(dataset: str, paths: list[str], path: str | None) -> str:
    usable = sorted(name for name in paths if PurePosixPath(name).suffix.lower() in SUFFIXES)
    shown = ", ".join(usable[:_SHOWN]) + (" and others" if len(usable) > _SHOWN else "")
    if path is not None:
        if path not in paths:
            raise NotFound(
                f"{dataset} has no file {path[:200]!r}; it has {shown or 'none to train on'}.",
                param="path",
                code="dataset_file_not_found",
            )
        return path
    if len(usable) != 1:
        raise InvalidRequest(
            f"{dataset} has {len(usable)} files to train on: name one of them as `path`. They are {shown}."
            if usable
            else f"{dataset} has no file of {', '.join(sorted(SUFFIXES))}.",
            param="path",
        )
    return usable[0]


@contextmanager
def _in_our_words(dataset: str, revision: str) -> Iterator[None]:
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotFound(
            f"The hub has no public dataset {dataset[:100]!r}.", param="dataset", code="dataset_not_found"
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(
            f"{dataset} has no revision {revision[:100]!r}.", param="revision", code="dataset_not_found"
        ) from error
    except OfflineModeIsEnabled as error:
        raise InvalidRequest("HF_HUB_OFFLINE is set here: upload the file instead.", param="dataset") from error
    except (HfHubHTTPError, HTTPError) as error:
        raise _unreachable(type(error).__name__) from error


def _unreachable(reason: str) -> AmoeError:
    return Unavailable(
        f"The hub does not answer as it should ({reason}): try again, or upload the file instead.",
        code="hub_unavailable",
        retry_after_s=_RETRY_AFTER_S,
    )
