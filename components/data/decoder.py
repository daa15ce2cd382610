"""Decodes images in a process of its own, whose memory and time are bounded: a bomb ends there."""

from __future__ import annotations

import contextlib
import io
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from typing import IO

FORMATS = ("PNG", "JPEG", "WEBP")
_HEAD = struct.Struct("<BI")
_GOOD, _BAD = 0, 1
_MEMORY_MB = 512
"""Address space of the process beside what its pixels take: the interpreter and the codecs."""
_BYTES_A_PIXEL = 24
"""Decoded, turned, converted and encoded again, with room to spare."""


class DecodeError(ValueError):
    """Why an image was refused."""


class Decoder:
    """Makes plain RGB PNGs of images: engine and trainer then see the same pixels, whichever decoder they use.

    Metadata, transparency and what lies behind the image are gone; an EXIF orientation is applied.
    max_pixels: by header, looked at before anything is decoded. timeout_s: for one image.
    """

    def __init__(self, max_pixels: int, timeout_s: float) -> None:
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def png(self, image: bytes) -> bytes:
        """The image as PNG.

        Raises DecodeError.
        """
        check_header(image, self._max_pixels)
        with self._lock:
            process = self._process = self._process or self._start()
            try:
                kind, answer = self._ask(process, image)
            except (OSError, EOFError, TimeoutError) as error:
                self._end()
                reason = "took too long" if isinstance(error, TimeoutError) else "needs more memory than it may have"
                raise DecodeError(f"decoding it {reason}") from error
        if kind != _GOOD:
            raise DecodeError(answer.decode(errors="replace"))
        return answer

    def close(self) -> None:
        """End the process; the next image starts another."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        limit_mb = _MEMORY_MB + self._max_pixels * _BYTES_A_PIXEL // 2**20
        # by its path, so that nothing else of this package is imported there
        command = [sys.executable, "-I", __file__, str(limit_mb), str(self._max_pixels)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def _ask(self, process: subprocess.Popen[bytes], image: bytes) -> tuple[int, bytes]:
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + self._timeout_s
        process.stdin.write(_HEAD.pack(_GOOD, len(image)) + image)
        process.stdin.flush()
        kind, size = _HEAD.unpack(_read(process.stdout, _HEAD.size, deadline))
        return kind, _read(process.stdout, size, deadline)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end()


def check_header(image: bytes, max_pixels: int) -> None:
    """Format, size and number of frames, from the header alone.

    Raises DecodeError.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DecodeError(f"is none of {', '.join(FORMATS)} by its header") from error
    except Image.DecompressionBombError as error:
        raise DecodeError(str(error)) from error
    except Exception as error:  # Pillow's parsers raise all kinds of errors on broken headers
        raise DecodeError(f"has a broken header ({type(error).__name__}: {error})") from error
    width, height = opened.size
    if width * height > max_pixels:
        raise DecodeError(f"has {width} x {height} pixels; media.max_pixels is {max_pixels}")
    if opened.format != "MPO" and getattr(opened, "n_frames", 1) != 1:  # MPO: a phone's JPEG with a preview behind
        raise DecodeError(f"has {opened.n_frames} frames; one is taken")


def _read(stream: IO[bytes], size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes; raises TimeoutError, or EOFError when the other side is gone."""
    answers = select.poll()  # select() takes no descriptor above 1023, which a rollout of many sockets may have
    answers.register(stream, select.POLLIN)
    found = bytearray()
    while len(found) < size:
        if not answers.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = stream.read1(size - len(found))  # type: ignore[attr-defined]
        if not chunk:
            raise EOFError
        found += chunk
    return bytes(found)


def _serve(limit_mb: int, max_pixels: int) -> None:
    """The process: images in, answers out, until stdin ends."""
    from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401  before the limit

    Image.MAX_IMAGE_PIXELS = max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (limit_mb * 2**20, limit_mb * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while head := stdin.read(_HEAD.size):
        image = stdin.read(_HEAD.unpack(head)[1])
        try:
            opened = Image.open(io.BytesIO(image), formats=FORMATS)
            turned = ImageOps.exif_transpose(opened).convert("RGB")
            turned.info.clear()
            out = io.BytesIO()
            turned.save(out, format="PNG", compress_level=1)
            kind, answer = _GOOD, out.getvalue()
        except Exception as error:
            kind, answer = _BAD, f"cannot be decoded ({type(error).__name__}: {error})".encode()
        stdout.write(_HEAD.pack(kind, len(answer)) + answer)
        stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
