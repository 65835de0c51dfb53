"""Keep the raw files of a results folder in one compressed file, and read them from there.

    results/raw.tar.xz        runs/, networks/, speed/ and grids/ as they were, the long tables, and their SHA256SUMS

The same files give the same bytes. They are compressed as one: what they have in common is there once. A file that lies
beside the pack stands for the one of its name inside.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import lzma
import os
import tarfile
from pathlib import Path

from harness.files import unsealed, write

PACK, SUMS = "raw.tar.xz", "SHA256SUMS"
KINDS = ("runs", "networks", "speed", "grids")  # checkpoints are of trainings that have not ended: they stay
LONG = tuple(
    f"{name}.csv"
    for name in ("anchors", "curves", "gates", "heat", "learning_rates", "lesions", "positions", "probes", "reach")
)


class Pack:
    """A pack that was read: the names in it and the text of each. ValueError names one that is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(fileobj=io.BytesIO(lzma.decompress(path.read_bytes()))) as archive:
                parts = ((entry.name, archive.extractfile(entry)) for entry in archive)
                self.files = {name: part.read() for name, part in parts if part}
            lines = (line.partition("  ") for line in self.files[SUMS].decode().splitlines())
        except (tarfile.TarError, lzma.LZMAError, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): put back a whole one, or delete it and run again") from None
        self.sums = {name: digest for digest, _, name in lines}

    def bytes(self, name: str) -> bytes:
        """A file as it was packed; ValueError where its digest is another."""
        raw = self.files.get(name)
        if raw is None:
            raise ValueError(f"{self.path}: {name} is missing: put back a whole one")
        if hashlib.sha256(raw).hexdigest() != self.sums[name]:
            raise ValueError(f"{self.path}: {name} was changed after it was packed: put back a whole one")
        return raw


def opened(folder: Path) -> Pack | None:
    """The pack of a folder; None where it has none."""
    try:
        found = os.stat(folder / PACK)
    except FileNotFoundError:
        return None
    return _opened(folder / PACK, found.st_mtime_ns, found.st_size, found.st_ino)


@functools.lru_cache(maxsize=4)
def _opened(path: Path, *stamp: int) -> Pack:
    return Pack(path)


def table(folder: Path, name: str) -> bytes | None:
    """A long table as it was packed; None where it was not."""
    held = opened(folder)
    return held.bytes(name) if held and name in held.sums else None


def loose(folder: Path) -> list[str]:
    """The raw files that lie beside the pack, by name below the folder."""
    found = (path for kind in KINDS for path in (folder / kind).rglob("[!.]*.json"))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def pack(folder: Path) -> int:
    """Put the raw files and the long tables of a folder into its pack, beside what it holds. Returns how many it holds.

    Each is checked first. The files are deleted once the pack has been read back: a kill at any instant loses nothing.
    ValueError names a file that is torn.
    """
    raw_files, before = loose(folder), opened(folder)
    beside = [*raw_files, *(name for name in LONG if (folder / name).exists())]
    for name in raw_files:
        try:
            json.loads(unsealed(folder / name)[0])
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{folder / name} cannot be read as JSON: delete it, and run again what it held") from None
    if beside:
        files = {name: before.bytes(name) for name in before.sums} if before else {}
        files |= {name: (folder / name).read_bytes() for name in beside}
        sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in sorted(files.items())}
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w:xz") as archive:
            members = {SUMS: "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()}
            for name, raw in (members | {name: files[name] for name in sums}).items():
                entry = tarfile.TarInfo(name)  # of no date, owner or system
                entry.size = len(raw)
                archive.addfile(entry, io.BytesIO(raw))
        write(folder / PACK, whole.getvalue())
        packed = Pack(folder / PACK)
        for name in files:
            packed.bytes(name)
        for name in beside:
            (folder / name).unlink()
    _sweep(folder)
    held = opened(folder)
    return len(held.sums) if held else 0


def unpack(folder: Path) -> int:
    """Put the files of a pack back where they were, and delete it last. Returns how many it held.

    A file that lies beside the pack is newer, and stays.
    """
    held = opened(folder)
    if held is None:
        return 0
    for name in held.sums:
        if not (folder / name).exists():
            write(folder / name, held.bytes(name))
    (folder / PACK).unlink()
    return len(held.sums)


def _sweep(folder: Path) -> None:
    """Delete the folders of raw files that are empty."""
    for kind in KINDS:
        for path in [*sorted((folder / kind).rglob("*"), reverse=True), folder / kind]:
            with contextlib.suppress(OSError):
                path.rmdir()
