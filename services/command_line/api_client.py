"""The router service's API over HTTP: JSON in and out, and its errors as they are told."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import httpx

from services.command_line.errors import Refused, Unreachable

_CONNECT_S: Final = 5.0
_ANSWER_S: Final = 600.0
"""Generous: an import of many adapters, or a long answer, is one request."""

Files = list[tuple[str, tuple[str, Any]]]
"""Parts of a form: field, and name and content of a file."""


class ApiClient:
    """Speaks to one router service. Every method raises Refused or Unreachable."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """The answer of a GET; parameters that are None are left out."""
        return self._json("GET", path, params={name: value for name, value in parameters.items() if value is not None})

    def post(self, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Any:
        """The answer of a POST with a JSON body, or with none."""
        return self._json("POST", path, json=body, headers=headers)

    def delete(self, path: str) -> Any:
        """The answer of a DELETE."""
        return self._json("DELETE", path)

    def send_form(self, path: str, *, fields: Mapping[str, str], files: Files) -> Any:
        """The answer of a POST with files, which are read as they are sent."""
        return self._json("POST", path, data=fields, files=files)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        silence_s: float | None = None,
    ) -> Iterator[httpx.Response]:
        """An answer that is read as it comes; Unreachable also when it breaks off, or is silent for `silence_s`."""
        timeout = httpx.Timeout(silence_s or _ANSWER_S, connect=_CONNECT_S)
        try:
            with self._http.stream(method, path, json=body, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _json(self, method: str, path: str, **content: Any) -> Any:
        try:
            response = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _refusal(response)
        try:
            return response.json()
        except ValueError as error:
            raise Refused(f"{self.url} answers, but not as a router service does.", status=0) from error

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Unreachable(
                f"Nothing answers at {self.url}: start a stack with `adaptive-moe up`, or say where one is with --url."
            )
        return Unreachable(f"{self.url} broke off or did not answer in time ({type(error).__name__}).")


def _refusal(response: httpx.Response) -> Refused:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{response.url} answers {response.status_code} {response.reason_phrase}."
    return Refused(message, status=response.status_code)
