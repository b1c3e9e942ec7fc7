"""The web page's files as they are served: read once, named by what they hold, with the palette made a module of."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.shared import palette

FOLDER: Final = Path(__file__).parent / "page"
OPEN_PATHS: Final = re.compile(r"/|/page/.*")
"""Everybody may read the page; what it shows it asks the API for, with the key that its user gives."""

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_OF_DOCS: Final = "swagger-ui"
_IMPORT: Final = re.compile(rb'^(?:import|export)[^;"]*"(\.{1,2}/[^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class PageFile:
    """One file."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """A strong one."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class PageFiles:
    """All files by their path below `/page/<version>/`; the version changes when any of them does.

    A browser may so keep them for good, and never has modules of two versions together.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): PageFile(path.read_bytes(), _TYPES[path.suffix])
            for path in sorted(folder.rglob("*"))
            if path.suffix in _TYPES and not path.name.startswith(_OF_DOCS)
        }
        self.files["palette.js"] = PageFile(_palette_module().encode(), _TYPES[".js"])
        index = self.files.pop("index.html")
        together = hashlib.sha256(index.content)
        for path, file in self.files.items():
            together.update(path.encode() + b"\0" + file.content)
        self.version = together.hexdigest()[:16]
        self.index = PageFile(self._with_links(index.content), index.media_type)

    def _with_links(self, index: bytes) -> bytes:
        """The page itself: where its files are, and which modules it will want, so that they come all at once."""
        links = "".join(f'<link rel="modulepreload" href="page/{self.version}/{path}">' for path in self._first())
        return index.replace(b"<!-- modules -->", links.encode()).replace(b"{version}", self.version.encode())

    def _first(self) -> Iterator[str]:
        """The modules that the first one imports, directly or not; those imported when they are needed are not."""
        found = ["app.js"]
        for path in found:
            yield path
            folder = Path(path).parent
            for match in _IMPORT.finditer(self.files[path].content):
                imported = _resolved(folder / match[1].decode())
                if imported not in found:
                    found.append(imported)


def _resolved(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _palette_module() -> str:
    colours = {name: getattr(palette, name) for name in ("CATEGORICAL", "NEUTRAL", "SEQUENTIAL", "DIVERGING")}
    return "".join(f"export const {name} = {json.dumps(value)};\n" for name, value in colours.items())
