"""Images of a data set, wherever a row says they are; bounded and made plain before anything else sees them."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from components.data.decoder import Decoder
from components.data.fetch import Fetcher

_LONGEST_SHOWN = 120


class MediaError(ValueError):
    """Why an image could not be had; names it."""


class Media:
    """Reads images by path, bytes, data URI or http(s) URL, and Pillow's own. Also slime_launch.interfaces.Images.

    roots: folders that files may lie in; empty: the data file's own. max_bytes: of an encoded image. max_pixels: width
    x height by header. timeout_s: to fetch, and to decode, one. hosts, networks, tries: see ``components.data.fetch``.
    """

    def __init__(
        self,
        roots: Sequence[str] = (),
        hosts: Sequence[str] = (),
        networks: Sequence[str] = (),
        max_bytes: int = 20 * 2**20,
        max_pixels: int = 2**24,
        timeout_s: float = 20.0,
        tries: int = 3,
    ) -> None:
        self._roots, self._max_bytes = [Path(root).resolve() for root in roots], max_bytes
        self._fetcher = Fetcher(hosts, networks, max_bytes, timeout_s, tries)
        self._decoder = Decoder(max_pixels, timeout_s)

    def load(self, ref: Any, folder: Path | None = None) -> bytes:
        """A plain RGB PNG of the image; paths count from ``folder``, without one from the first of ``roots``.

        Raises MediaError.
        """
        try:
            return self._decoder.png(self._bytes(ref, folder))
        except (ValueError, OSError) as error:  # MediaError, FetchError, DecodeError, and names that can be none
            raise MediaError(f"image {_shown(ref)}: {error}") from error

    def _bytes(self, ref: Any, folder: Path | None) -> bytes:
        if isinstance(ref, Mapping):  # how datasets and parquet files hold an image
            ref = ref.get("bytes") or ref.get("path")
        if isinstance(ref, bytes | bytearray):
            return self._bounded(bytes(ref))
        if isinstance(ref, Image.Image):
            return self._bounded(_encoded(ref))
        if not isinstance(ref, str):
            raise MediaError(f"{type(ref).__name__} is neither bytes, a path, a data URI nor a URL")
        scheme = ref.partition(":")[0].lower()
        if scheme == "data":
            return self._bounded(_data_uri(ref, self._max_bytes))
        if scheme in ("http", "https"):
            return self._fetcher.fetch(ref)
        if "://" in ref:
            raise MediaError("only http and https are fetched")
        return self._file(ref, folder)

    def _file(self, ref: str, folder: Path | None) -> bytes:
        """A regular file below the roots, links followed first."""
        roots = self._roots or ([folder.resolve()] if folder else [])
        if not roots:
            raise MediaError("is a path, and no folder is open to it; name its folder in media.roots")
        real = Path(os.path.realpath((folder or roots[0]) / ref, strict=True))  # Path.resolve: RuntimeError for a loop
        if not any(real.is_relative_to(root) for root in roots):
            raise MediaError(f"lies outside of {', '.join(map(str, roots))}; name its folder in media.roots")
        handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise MediaError("is not a regular file")
            return self._bounded(file.read(self._max_bytes + 1))

    def _bounded(self, image: bytes) -> bytes:
        if not image:
            raise MediaError("is empty")
        if len(image) > self._max_bytes:
            raise MediaError(f"is larger than media.max_bytes, {self._max_bytes}")
        return image


def _encoded(image: Image.Image) -> bytes:
    """The pixels as they are, whatever file they came from."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()


def _data_uri(uri: str, max_bytes: int) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise MediaError("is not data:<type>;base64,<bytes>")
    if len(body) > 4 * (max_bytes // 3 + 2):
        raise MediaError(f"is larger than media.max_bytes, {max_bytes}")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise MediaError(f"is not base64 ({error})") from error


def _shown(ref: Any) -> str:
    if isinstance(ref, Mapping) and not isinstance(ref.get("bytes"), bytes):
        ref = ref.get("path")
    if not isinstance(ref, str):
        return "bytes"
    return ref if len(ref) <= _LONGEST_SHOWN else ref[:_LONGEST_SHOWN] + "..."
