"""The web page: `/`, and its files below `/page`."""

from typing import Annotated, Final

from fastapi import FastAPI, Header, Response

from services.router_service.page_files import PageFile, PageFiles
from services.shared.errors import NotFound

_PLOT_STYLES: Final = ("+TfQir1nvDucAdvE6XUQBt4ayUjpAWkbw2kCdSfekHM=",)
"""Observable Plot puts these style sheets into its figures; no other inline style sheet is taken."""

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        " ".join(("style-src 'self'", *(f"'sha256-{digest}'" for digest in _PLOT_STYLES))),
        "connect-src 'self'",
        "img-src 'self' blob: data:",  # figures become pictures in the browser
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_ASK_AGAIN: Final = "no-cache"
_FOR_GOOD: Final = "public, max-age=31536000, immutable"

IfNoneMatch = Annotated[str | None, Header()]


def install_page(app: FastAPI) -> None:
    """Add the page. `POST /` stays what it is: Hugging Face's way to generate."""
    page = PageFiles()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(if_none_match: IfNoneMatch = None) -> Response:
        return _answer(page.index, if_none_match, caching=_ASK_AGAIN)

    @app.api_route("/page/{version}/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(version: str, path: str, if_none_match: IfNoneMatch = None) -> Response:
        found = page.files.get(path)
        if found is None:
            raise NotFound(f"The page has no file {path[:80]!r}.", code="route_not_found")
        # While versions change over, a browser may ask this one for another's files.
        return _answer(found, if_none_match, caching=_FOR_GOOD if version == page.version else _ASK_AGAIN)


def _answer(file: PageFile, if_none_match: str | None, *, caching: str) -> Response:
    headers = {**_HEADERS, "etag": file.etag, "cache-control": caching}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
