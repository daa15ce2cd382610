"""Images by path, bytes, data URI and URL, bounded; nothing outside the roots or inside our network is reached."""

import base64
import io
import os
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from components.data.decoder import DecodeError, Decoder
from components.data.fetch import Fetcher, FetchError
from components.data.media import Media, MediaError


def encoded(kind="PNG", size=(8, 6), mode="RGB", **save) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, (200, 30, 90, 128)[: len(mode)]).save(out, format=kind, **save)
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int, body: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def media() -> Media:
    return Media(max_bytes=2**16, max_pixels=10_000, timeout_s=5.0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_format_becomes_a_plain_png(media, tmp_path, kind):
    given = encoded(kind)
    (tmp_path / "x").write_bytes(given)
    uri = "data:image/x;base64," + base64.b64encode(given).decode()
    made = {media.load(ref, tmp_path) for ref in ("x", str(tmp_path / "x"), given, {"bytes": given, "path": None}, uri)}
    image = Image.open(io.BytesIO(made.pop()))
    assert not made and (image.format, image.mode, image.size) == ("PNG", "RGB", (8, 6))
    assert image.tobytes() == Image.open(io.BytesIO(given)).convert("RGB").tobytes()


def test_orientation_is_applied_and_metadata_gone(media, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"
    image = Image.open(io.BytesIO(media.load(encoded("JPEG", exif=exif), tmp_path)))
    assert image.size == (6, 8) and not image.getexif() and not image.info


def test_files_stay_inside_their_roots(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "x.png").write_bytes(encoded())
    (inside / "link.png").symlink_to(outside / "x.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    os.mkfifo(inside / "pipe.png")
    media = Media()
    assert media.load("x.png", inside)
    for ref, says in {"../out/x.png": "lies outside", "link.png": "lies outside", str(outside / "x.png"): "outside",
                      "pipe.png": "not a regular file", "none.png": "No such file", "file:///etc/passwd": "only http",
                      ".": "directory|not a regular", "loop.png": "symbolic links", "\0": "null byte",
                      "data:x;base64,é": "ASCII"}.items():  # fmt: skip
        with pytest.raises(MediaError, match=f"image {ref}: .*({says})"):
            media.load(ref, inside)
    assert Media(roots=[str(inside), str(outside)]).load("link.png", inside)


def bombs():
    wide = png_claiming(50_000, 50_000, b"")
    animated = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (80 * n, 0, 0)) for n in range(3)]
    frames[0].save(animated, format="WEBP", save_all=True, append_images=frames[1:])
    return {
        "pixels": (wide, "50000 x 50000 pixels|decompression bomb"),
        "frames": (animated.getvalue(), "3 frames"),
        "tiff": (encoded("TIFF"), "is none of PNG, JPEG, WEBP"),
        "text": (b"<svg/>", "is none of"),
        "cut": (png_claiming(90, 90, zlib.compress(b"\0" * 9000)), "cannot be decoded"),
        "large": (b"\x89PNG" * 2**15, "larger than media.max_bytes"),
        "empty": (b"", "is empty"),
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_bombs_and_wrecks_are_refused(media, tmp_path, name):
    image, says = bombs()[name]
    with pytest.raises(MediaError, match=f"image bytes: .*({says})"):
        media.load(image, tmp_path)


def test_what_lies_behind_the_pixels_is_gone(media, tmp_path):
    lying = png_claiming(90, 90, zlib.compress(b"\0" * 2**22)) + b"PK\3\4 another file"  # 4 MB for 24 kB of pixels
    assert b"another file" not in media.load(lying, tmp_path) and len(media.load(lying, tmp_path)) < 1000


def test_a_decoder_that_dies_or_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr("components.data.decoder._BYTES_A_PIXEL", 0)
    monkeypatch.setattr("components.data.decoder._MEMORY_MB", 150)  # too little for what the header admits
    decoder = Decoder(max_pixels=10**8, timeout_s=20.0)
    with pytest.raises(DecodeError, match=r"MemoryError|more memory"):
        decoder.png(png_claiming(9000, 9000, zlib.compress(b"\0" * 27_001 * 1000)))
    assert decoder.png(encoded())
    decoder.close()
    hasty = Decoder(max_pixels=10**8, timeout_s=0.0)
    with pytest.raises(DecodeError, match="took too long"):
        hasty.png(encoded())


class _Server(BaseHTTPRequestHandler):
    tries = 0

    def do_GET(self):
        body = encoded()
        _Server.tries += 1
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest")
            self.end_headers()
        elif self.path == "/flaky" and _Server.tries < 2:
            self.send_error(503)
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str({"/short": 10**9, "/large": 10**6}.get(self.path, len(body))))
            self.end_headers()
            self.wfile.write(b"x" * 10**6 if self.path == "/large" else body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as httpd:
        httpd.daemon_threads, httpd.block_on_close = True, False
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://localhost:{httpd.server_port}"
        httpd.shutdown()


LOCAL = {"hosts": ["localhost"], "networks": ["127.0.0.0/8", "::1/128"]}


def test_what_yaml_allows_is_fetched(server, tmp_path):
    media = Media(**LOCAL)
    assert media.load(f"{server}/x.png", tmp_path) == media.load(encoded(), tmp_path)
    _Server.tries = 0
    assert media.load(f"{server}/flaky", tmp_path) and _Server.tries == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [("/redirect", "answered 302; redirects are not followed"), ("/large", "larger than 100000|IncompleteRead"),
     ("/drip", "no answer within"), ("/short", "IncompleteRead|early")],
)  # fmt: skip
def test_answers_are_bounded(server, path, says):
    with pytest.raises(FetchError, match=says):
        Fetcher(**LOCAL, max_bytes=100_000 if path != "/drip" else 2**20, timeout_s=0.4, tries=1).fetch(server + path)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost:1/", r"localhost is at .*not public"),
        ("http://127.0.0.1:1/", "not public"),
        ("http://169.254.169.254/latest", "not public"),
        ("http://10.0.0.1/", "not public"),
        ("http://[::ffff:127.0.0.1]/", "not public"),
        ("http://[64:ff9b::7f00:1]/", "not public"),
        ("http://[fe80::1]/", "not public"),
        ("http://[fec0::1]/", "not public"),
        ("http://[::127.0.0.1]/", "not public"),
        ("http://[64:ff9b:1::7f00:1]/", "not public"),
        ("http://[2002:7f00:1::]/", "not public"),
        ("http://2130706433/", "not public|cannot be resolved"),
        ("http://0/", "not public|cannot be resolved"),
        ("ftp://example.org/", "not an http"),
        ("http://user@example.org/", "names a user"),
        ("http://example.org\\@127.0.0.1/", "signs"),
        ("http://example.org/\r\nHost: x", "signs"),
        ("http://exämple.org/", "signs"),
        ("http://example.org:99999/", "not a URL"),
        ("http:///x", "not an http"),
    ],
)
def test_what_leads_into_our_network_is_refused(url, says):
    with pytest.raises(FetchError, match=says):
        Fetcher(hosts=["*"], tries=1).fetch(url)


def test_only_named_hosts_are_asked():
    for hosts in ((), ("*.example.org",)):
        with pytest.raises(FetchError, match=r"host example\.com is not allowed; name it in media\.hosts"):
            Fetcher(hosts=hosts).fetch("https://example.com/x.png")


def test_a_name_with_one_bad_address_is_refused(monkeypatch):
    both = [(0, 0, 0, "", ("93.184.216.34", 80)), (0, 0, 0, "", ("192.168.0.1", 80))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: both)
    with pytest.raises(FetchError, match=r"at 192\.168\.0\.1, which is not public"):
        Fetcher(hosts=["*"]).fetch("http://example.org/")


def test_a_name_server_that_does_not_answer_is_waited_for_so_long(monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: asked.wait(20) and [])
    with pytest.raises(FetchError, match=r"host example\.org is not resolved within 0\.05 s") as raised:
        Fetcher(hosts=["*"], timeout_s=0.05, tries=1).fetch("http://example.org/")
    assert raised.value.passing
    asked.set()
