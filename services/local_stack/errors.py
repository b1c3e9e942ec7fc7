"""What can go wrong with the local stack, in words for the person at the terminal.

StackError
├── MissingBinary      no Postgres or Valkey program was found
├── ProgramFailed      a program of the stack ended or did not become ready
├── AlreadyRunning     another `up` holds the state folder
└── PortTaken          a port that was asked for is in use
"""


class StackError(Exception):
    """Base of all errors that the command line prints without a traceback."""


class MissingBinary(StackError):
    """No Postgres or Valkey program was found; the message lists where was looked."""


class ProgramFailed(StackError):
    """A program of the stack ended or did not become ready; the message says which and why."""


class AlreadyRunning(StackError):
    """Another `up` holds the state folder; the message names its process id."""


class PortTaken(StackError):
    """A port that was asked for by number is in use by another program."""
