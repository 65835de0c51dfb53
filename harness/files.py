"""Write files whole or not at all, read them as they were written, and allow one writer a folder.

Rule: it knows neither what is in a file nor what it is called. No torch, no pandas.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

LOCK, PART = ".lock", ".part"
SEAL = re.compile(r',\n "sha256": "([0-9a-f]{64})"\n}$')
_held: dict[Path, int] = {}  # folders that this process is the writer of, and their open locks


def write(path: Path, whole: str | bytes) -> None:
    """A text or bytes as a file, whole or not at all, whatever happens at any instant: a part beside it, fsync, rename.

    OSError names the file; also where the folder that is being written was taken away meanwhile.
    """
    for folder, lock in _held.items():
        if folder in path.parents and not _is(folder / LOCK, lock):
            raise OSError(errno.ENOENT, "taken away, or replaced by another, while it was being written", str(folder))
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(whole.encode() if isinstance(whole, str) else whole)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # a full disk names no file of its own accord
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the folder's one writer. ValueError says who is; a lock falls with the process that held it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(lock, 300).decode(errors="replace").strip() or "another process"
            raise ValueError(f"{folder} is being written by {who}: wait for it, or give --results") from None
        with contextlib.suppress(OSError):  # on a full disk nobody is named
            os.truncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {platform.node()}, since {now()}".encode(), 0)
        for part in folder.rglob(f".*{PART}"):  # of a writer that was killed
            part.unlink(missing_ok=True)
        _held[folder] = lock
        yield
    finally:
        if _held.pop(folder, None) is not None:
            with contextlib.suppress(OSError):
                os.truncate(lock, 0)
        os.close(lock)


def writes(folder: Path) -> bool:
    """Whether this process is the writer of a folder."""
    return folder in _held


def sealed(text: str) -> str:
    """A JSON object as `json.dumps(..., indent=1)` spells it, and in its last line the digest of all before."""
    return text.removesuffix("\n}") + f',\n "sha256": "{digest(text)}"\n}}'


def unsealed(path: Path) -> tuple[str, bool]:
    """The text of such a file, and whether it had a digest, which is checked. ValueError where it was changed since."""
    return unseal(path.read_text(encoding="utf-8"), path)  # line ends as they were: git may have made them its own


def unseal(text: str, path: Path) -> tuple[str, bool]:
    """The same of a text that was read from `path`."""
    seal = SEAL.search(text, max(0, len(text) - 100))  # at its very end: a file is long
    if seal is None:
        return text, False
    whole = text[: seal.start()] + "\n}"
    if digest(whole) != seal[1]:
        raise ValueError(
            f"{path} was changed after it was written: put it back, or delete it and run again what it held"
        )
    return whole, True


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is(path: Path, handle: int) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def now() -> str:
    """This instant in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
