"""What ends a command, in one line and with an exit code of its own.

CommandError            1  what was asked for did not happen
├── Refused             1  the API said no; its message says why
├── JobUnsuccessful     1  the job that was watched failed or was cancelled
├── BadInput            2  an argument or a file is wrong (click's own code for that)
└── Unreachable         3  nothing answers at the address
"""

from typing import ClassVar


class CommandError(Exception):
    """Base of all errors that are shown without a traceback."""

    exit_code: ClassVar[int] = 1


class Refused(CommandError):
    """The API answered with an error."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class JobUnsuccessful(CommandError):
    """A job that was watched has ended, and not well."""


class BadInput(CommandError):
    """An argument or a file cannot be used."""

    exit_code = 2


class Unreachable(CommandError):
    """Nothing answers, or not in time."""

    exit_code = 3
