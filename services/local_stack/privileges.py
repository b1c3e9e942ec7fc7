"""Postgres refuses to run as root: who it runs as instead, and what that user can reach."""

import hashlib
import os
import pwd
import shutil
import stat
from pathlib import Path

from services.local_stack.errors import StackError
from services.local_stack.programs import Account

_PUBLIC_FOLDER = Path("/var/tmp")


def unprivileged_account() -> Account | None:
    """`nobody` when this process is root, None when it is an ordinary user and can run everything itself."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def is_reachable(path: Path) -> bool:
    """True when any user may enter every folder down to `path`, and read or enter `path` itself."""
    everyone = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    return everyone and bool(path.stat().st_mode & stat.S_IXOTH)


def reachable_folder(wanted: Path) -> Path:
    """`wanted`, or a stand-in under /var/tmp where `nobody` cannot reach `wanted`. Created, owned by us."""
    wanted.mkdir(parents=True, exist_ok=True)
    wanted.chmod(0o711)
    if is_reachable(wanted):
        return wanted
    name = hashlib.sha256(os.fsencode(wanted.resolve())).hexdigest()[:16]
    stand_in = _PUBLIC_FOLDER / f"adaptive-moe-{name}"
    stand_in.mkdir(mode=0o711, exist_ok=True)
    # Anyone may write to /var/tmp: a folder that somebody else put there is not ours to trust.
    if stand_in.is_symlink() or stand_in.stat().st_uid != os.geteuid():
        raise StackError(f"{stand_in} belongs to somebody else. Remove it or move the state folder with --state.")
    stand_in.chmod(0o711)
    (wanted / "MOVED").write_text(f"{stand_in}\n")
    return stand_in


def remove_folder(wanted: Path) -> None:
    """Remove `wanted` and its stand-in, if there is one."""
    note = wanted / "MOVED"
    if note.exists():
        shutil.rmtree(note.read_text().strip(), ignore_errors=True)
    shutil.rmtree(wanted, ignore_errors=True)
