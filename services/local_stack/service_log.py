"""The output of one program: kept in a rotated file, its last lines kept in memory, each line passed on."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

_MAX_BYTES = 20 * 1024**2
_MAX_LINE_BYTES = 64 * 1024
_BACKUPS = 3
_REMEMBERED_LINES = 15


class ServiceLog:
    """Where a program's output goes. `on_line` sees every line as it comes."""

    def __init__(self, file: Path, *, on_line: Callable[[str], None]) -> None:
        self.file = file
        self.last_lines: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self._on_line = on_line
        self._handler = RotatingFileHandler(file, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8")

    async def follow(self, descriptor: int) -> None:
        """Read a pipe until its last writer closes it. Owns and closes `descriptor`."""
        reader = asyncio.StreamReader(limit=_MAX_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        pipe = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        try:
            unfinished = b""
            while chunk := await reader.read(_MAX_LINE_BYTES):
                *lines, unfinished = (unfinished + chunk).split(b"\n")
                for line in lines:
                    self.add(line)
                if len(unfinished) > _MAX_LINE_BYTES:
                    self.add(unfinished)
                    unfinished = b""
            if unfinished:
                self.add(unfinished)
        finally:
            transport.close()
            pipe.close()

    def add(self, line: bytes) -> None:
        """Keep one line."""
        text = line.decode(errors="replace").rstrip()
        self.last_lines.append(text)
        self._handler.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))
        self._on_line(text)

    def close(self) -> None:
        """Close the file."""
        self._handler.close()
