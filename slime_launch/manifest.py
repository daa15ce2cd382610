"""A folder's list of files with sizes and SHA-256: written last, so that a torn or altered folder is recognised."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

NAME = "manifest.json"
_SHARED_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file: its size in bytes and the SHA-256 of its content, in hexadecimal."""

    size: int
    sha256: str


Manifest = dict[str, Entry]


class TornError(ValueError):
    """The folder lacks its manifest or a file of it; the message says which."""


class ForeignError(ValueError):
    """Somebody else owns, or may write, what would be read as code; the message says what."""


def measure(folder: Path, names: Iterable[str]) -> Manifest:
    """The entries of these files, read from disk."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = Entry(size=file.tell(), sha256=digest)
    return found


def write(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Make the folder and its files private to us, and write its manifest; all of it is on disk on return."""
    for name in entries:
        (folder / name).chmod(0o600)
    file = folder / NAME
    file.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(entries.items())))) + b"\n")
    file.chmod(0o600)
    folder.chmod(0o700)
    for name in (*entries, NAME, "."):
        to_disk(folder / name)


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all there, of the sizes that it says; their content is not read.

    Raises TornError when they are not, ForeignError when the folder or a file of it is not only ours.
    """
    try:
        _require_ours(folder)
        _require_ours(folder / NAME)
        entries = msgspec.json.decode((folder / NAME).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise TornError(f"{error.filename} is missing") from None
    except msgspec.DecodeError as error:
        raise TornError(f"{folder / NAME} is no manifest ({error})") from None
    for name, entry in entries.items():
        try:
            size = _require_ours(folder / name)
        except FileNotFoundError:
            raise TornError(f"{folder / name} is missing") from None
        if size != entry.size:
            raise TornError(f"{folder / name} has {size} bytes instead of {entry.size}")
    return entries


def altered(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Those of the files whose content is not what the entries say."""
    return [name for name, entry in entries.items() if measure(folder, [name])[name] != entry]


def _require_ours(path: Path) -> int:
    """The size of a file or folder that only this user may write."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise ForeignError(f"{path} is a link")
    if status.st_uid != os.getuid():
        raise ForeignError(f"{path} belongs to user {status.st_uid}, not to this one ({os.getuid()})")
    if status.st_mode & _SHARED_WRITE:
        raise ForeignError(f"{path} may be written by others (mode {stat.S_IMODE(status.st_mode):o})")
    return status.st_size
