"""Get the bytes of the book from the package, the cache or the network, and those of any file, whole and bounded.

The book is part of the package (public domain).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import threading
import time
import zlib
from pathlib import Path

from harness.data.corpus import BOOK, digest
from harness.files import write
from variants.registry import unknown

URL = "https://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt"
PACKAGED = Path(__file__).with_name("timemachine.txt.gz")
SIZE = 178_979
SHA256 = "8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516"
READ_SECONDS, WHOLE_SECONDS = 10.0, 20.0  # of a download: silence, and all of it
REDIRECTS = 5


def time_machine(
    cache: Path | None = None, url: str = URL, allow_http: bool = False, seconds: float = WHOLE_SECONDS
) -> tuple[bytes, str]:
    """The book's bytes and a note ('' or one line): the package's own, else from the folder `cache`, else downloaded.

    What is in the package and is not the book is passed over. A cached file with other bytes is not used and is
    replaced. A cache that cannot be written costs a download each time and the note says so. ValueError where there is
    none of the three.
    """
    with contextlib.suppress(OSError, EOFError, zlib.error):  # deleted, or damaged
        data = gzip.decompress(PACKAGED.read_bytes())
        if digest(data) == SHA256:
            return data, ""
    if cache is None:
        try:
            import platformdirs
        except ModuleNotFoundError:  # a machine's own python, used as it is
            raise ValueError(f"{BOOK} is kept in a folder that the package platformdirs names: install it") from None

        cache = Path(platformdirs.user_cache_dir("recurrent-harness", appauthor=False))
    kept = cache / "timemachine.txt"
    try:
        data = read_file(kept, SIZE)
    except ValueError:
        data = b""  # not there, or not it: either way the download below answers, or says why it cannot
    if digest(data) == SHA256:
        return data, ""
    try:
        data = download(url, allow_http, seconds)
    except ValueError as error:
        raise ValueError(f"{BOOK} is neither in the package nor in the cache nor to be downloaded ({error})") from None
    try:
        write(kept, data)
    except OSError as error:
        return data, f"{BOOK} was downloaded but could not be kept ({error.strerror})"
    return data, ""


def download(url: str = URL, allow_http: bool = False, seconds: float = WHOLE_SECONDS) -> bytes:
    """The book's bytes from `url`, size and SHA-256 checked, within `seconds` whatever the other side does.

    https only, redirects included; `allow_http` is for a local server in tests. ValueError says what failed.
    """
    came: list[bytes | Exception] = []

    def work() -> None:
        try:
            came.append(_get(url, ("https", "http") if allow_http else ("https",), seconds))
        except Exception as error:  # recorded: raised again below, in the caller's thread
            came.append(error)

    # A thread, because no timeout of a socket bounds a name look-up or headers sent a byte at a time.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        raise ValueError(f"{url}: took more than {seconds:g} s")
    data = came[0]
    if isinstance(data, Exception):
        raise ValueError(f"{url}: {' '.join(str(data).split()) or type(data).__name__}") from data
    if len(data) > SIZE:
        raise ValueError(f"{url}: more than the {SIZE:,} bytes of the book")
    if len(data) < SIZE:
        raise ValueError(f"{url}: {len(data):,} bytes of {SIZE:,}")
    if digest(data) != SHA256:
        raise ValueError(f"{url}: other bytes than the book's (SHA-256 {digest(data)[:16]}..., not {SHA256[:16]}...)")
    return data


def _get(url: str, schemes: tuple[str, ...], seconds: float) -> bytes:
    """At most SIZE + 1 bytes of that address, or of where it redirects to."""
    import urllib.request
    from urllib.error import HTTPError
    from urllib.parse import urljoin, urlsplit

    class Stay(urllib.request.HTTPRedirectHandler):
        # urllib would read the whole of a redirecting page, however long, and go on to http or ftp
        def redirect_request(self, *_: object) -> None:
            return None

    opener = urllib.request.build_opener(Stay)
    end = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        if urlsplit(url).scheme not in schemes:
            raise ValueError(f"refused {url}: not https")
        try:
            reply = opener.open(url, timeout=min(READ_SECONDS, seconds))
        except HTTPError as error:
            error.close()
            if error.code not in (301, 302, 303, 307, 308) or not error.headers["Location"]:
                raise
            url = urljoin(url, error.headers["Location"])
            continue
        data = bytearray()
        with reply:
            while len(data) <= SIZE and time.monotonic() < end:
                part = reply.read1(SIZE + 1 - len(data))  # read() would wait for all of it, past the end
                if not part:
                    return bytes(data)
                data += part
        if len(data) > SIZE:
            return bytes(data)
        raise ValueError(f"took more than {seconds:g} s")
    raise ValueError(f"more than {REDIRECTS} redirects")


def read_file(path: Path, largest: int) -> bytes:
    """The bytes of a regular file of at most `largest` bytes. ValueError, one line, for anything else."""
    name = repr(str(path))

    def check(status: os.stat_result) -> os.stat_result:
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{name} is a folder, not a text")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a regular file (a device, a pipe or a socket)")
        if status.st_size > largest:
            raise ValueError(f"{name} has {status.st_size:,} bytes, the most is {largest:,}: cut it")
        return status

    try:
        check(os.stat(path))  # before opening: opening a FIFO waits for a writer, a device may act
        # O_NONBLOCK: it may have become a FIFO since, hence the second check
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            before = check(os.fstat(file.fileno()))
            data = file.read(largest + 1)
            after = os.fstat(file.fileno())
    except FileNotFoundError:
        raise ValueError(f"{unknown('text', str(path), (BOOK,))}, or the path of a UTF-8 file") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != after.st_size:
        raise ValueError(f"{name} changed while it was read: try again when nothing writes to it")
    return data
