"""The web page's files over HTTP: types, caching, and what a browser is allowed to do with them."""

import re

import httpx
import pytest
from pydantic import SecretStr

from services.router_service.main import build_app
from services.router_service.page_files import PageFiles
from services.shared import palette
from services.shared.config import Settings
from tests.integration.router_service.running import served

PAGE = PageFiles()


def test_the_page_names_its_files_by_their_version_and_says_what_it_will_import(client: httpx.Client) -> None:
    response = client.get("/")

    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    linked = re.findall(r'(?:href|src)="(page/[^"]+)"', response.text)
    assert len(linked) > 5
    assert {client.get(f"/{path}").status_code for path in linked} == {200}
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|style=", response.text)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("app.js", "text/javascript; charset=utf-8"),
        ("vendor/preact.mjs", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_a_file_of_a_version_is_kept_for_good(client: httpx.Client, path: str, media_type: str) -> None:
    response = client.get(f"/page/{PAGE.version}/{path}")

    assert response.headers["content-type"] == media_type
    assert "immutable" in response.headers["cache-control"]
    assert client.head(f"/page/{PAGE.version}/{path}").headers["etag"] == response.headers["etag"]


def test_what_a_browser_has_is_not_sent_again(client: httpx.Client) -> None:
    etag = client.get("/").headers["etag"]

    again = client.get("/", headers={"if-none-match": f'"other", W/{etag}'})

    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_another_versions_file_is_the_present_one_and_not_kept(client: httpx.Client) -> None:
    assert client.get("/page/0123456789abcdef/app.js").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["nothing.js", "%2e%2e/page_files.py", "vendor/VERSIONS", "vendor/swagger-ui.css", "..%2fmain.py"]
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(f"/page/{PAGE.version}/{path}").status_code == 404


def test_scripts_come_from_here_alone(client: httpx.Client) -> None:
    policy = client.get("/").headers["content-security-policy"]

    directives = {part.split()[0]: part.split()[1:] for part in policy.split("; ")}
    assert directives["default-src"] == ["'none'"]
    assert directives["script-src"] == directives["connect-src"] == ["'self'"]
    assert "unsafe" not in policy


def test_the_palette_is_the_reports_own(client: httpx.Client) -> None:
    module = client.get(f"/page/{PAGE.version}/palette.js").text

    assert all(f'"{colour}"' in module for colour in (*palette.CATEGORICAL, palette.NEUTRAL, palette.DIVERGING))


def test_the_files_are_open_and_the_api_is_not(app_settings: Settings, sessions: object) -> None:
    own = app_settings.router_service.model_copy(update={"api_key": SecretStr("key")})
    app = build_app(app_settings.model_copy(update={"router_service": own}))
    with served(app) as url, httpx.Client(base_url=url) as client:
        open_ones = [client.get("/"), client.head("/"), client.get(f"/page/{PAGE.version}/app.js")]
        closed = [client.post("/", json={"inputs": "a"}), client.get("/pages"), client.get("/openapi.json")]

    assert {response.status_code for response in open_ones} == {200}
    assert {response.status_code for response in closed} == {401}


def test_generation_at_the_same_address_is_as_it_was(three_experts: str, client: httpx.Client) -> None:
    answer = client.post("/", json={"inputs": "12 + 5 = 17", "parameters": {"max_new_tokens": 2}})

    assert answer.status_code == 200
    assert answer.json()[0]["generated_text"]
