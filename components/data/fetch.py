"""Files from http(s) URLs that a data set names, fetched so that a URL cannot reach into our own network.

One parser reads the URL; the name is resolved once and the connection goes to the address that was checked, so that
neither a second parser nor a second look-up can lead elsewhere. Redirects and proxies are not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import SplitResult, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PORTS = {"http": 80, "https": 443}
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_CHUNK = 2**16


class FetchError(ValueError):
    """Why a URL was not fetched. ``passing``: it may work a moment later."""

    def __init__(self, reason: str, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True)
class Fetcher:
    """What may be fetched.

    hosts: names, ``*.example.org`` or ``*``; empty fetches nothing. networks: addresses that are allowed although they
    are not public, e.g. ``10.1.0.0/16``. max_bytes: of the body. timeout_s: for all of it. tries: for what may pass.
    """

    hosts: Sequence[str] = ()
    networks: Sequence[str] = ()
    max_bytes: int = 20 * 2**20
    timeout_s: float = 20.0
    tries: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError for a network that is none."""
        list(map(ipaddress.ip_network, self.networks))

    def fetch(self, url: str) -> bytes:
        """The body.

        Raises FetchError.
        """
        parts, host, port = self._parse(url)
        for attempt in range(1, self.tries + 1):
            try:
                return self._get(parts, host, port)
            except FetchError as error:
                if attempt == self.tries or not error.passing:
                    raise
                time.sleep(0.2 * 2**attempt)
        raise FetchError("tries is below 1")

    def _parse(self, url: str) -> tuple[SplitResult, str, int]:
        if not url.isascii() or not url.isprintable() or any(sign in url for sign in ' \\"<>'):
            raise FetchError("has signs that a URL may not have")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as error:
            raise FetchError(f"is not a URL ({error})") from error
        if parts.scheme not in _PORTS or not host:
            raise FetchError("is not an http or https URL")
        if "@" in parts.netloc:
            raise FetchError("names a user")
        if not any(fnmatchcase(host, pattern.lower()) for pattern in self.hosts):
            raise FetchError(f"host {host} is not allowed; name it in media.hosts")
        return parts, host, port or _PORTS[parts.scheme]

    def _address(self, host: str, port: int) -> Address:
        """The address to connect to; every one that the name has must be allowed."""
        try:
            found = _resolve(host, port, self.timeout_s)
        except TimeoutError:
            raise FetchError(f"host {host} is not resolved within {self.timeout_s} s", passing=True) from None
        except OSError as error:
            raise FetchError(f"host {host} cannot be resolved ({error})", passing=True) from error
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        allowed = list(map(ipaddress.ip_network, self.networks))
        for address in addresses:
            inner = _embedded(address)
            if not any(inner in network for network in allowed) and not _public(inner):
                raise FetchError(f"host {host} is at {address}, which is not public; allow it in media.networks")
        return addresses[0]

    def _get(self, parts: SplitResult, host: str, port: int) -> bytes:
        began = time.monotonic()
        connection = _Pinned(str(self._address(host, port)), host, port, self.timeout_s, parts.scheme == "https")
        # a server that drips bytes resets every time-out but this one
        clock = threading.Timer(self.timeout_s, connection.cut)
        clock.start()
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
            body = self._body(connection.getresponse())
            if connection.was_cut:  # a body without a length just ends then
                raise TimeoutError
            return body
        except (OSError, http.client.HTTPException, AttributeError) as error:
            late = connection.was_cut or time.monotonic() - began >= self.timeout_s
            reason = f"no answer within {self.timeout_s} s" if late else f"{type(error).__name__}: {error}"
            raise FetchError(reason, passing=True) from error
        finally:
            clock.cancel()
            connection.close()

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            said = "; redirects are not followed" if 300 <= response.status < 400 else ""
            raise FetchError(f"answered {response.status}{said}", passing=response.status >= 500)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError("answered with a compressed body, which was not asked for")
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > self.max_bytes:
                raise FetchError(f"is larger than {self.max_bytes} bytes")
        if response.length:
            raise FetchError(f"ended {response.length} bytes early", passing=True)
        return bytes(body)


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever its host's name resolves to by now."""

    def __init__(self, address: str, host: str, port: int, timeout_s: float, tls: bool) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._address, self._tls = address, tls
        self._held: socket.socket | None = None
        self.was_cut = False

    def connect(self) -> None:
        """Connect to the address; the certificate must be the host's."""
        self.sock = self._held = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls:
            secure = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock = self._held = secure
            secure.do_handshake()

    def cut(self) -> None:
        """End whatever waits for it."""
        self.was_cut = True
        if self._held is not None:  # the base class forgets its socket once the answer has begun
            with contextlib.suppress(OSError):  # it may have ended by itself
                self._held.shutdown(socket.SHUT_RDWR)


def _resolve(host: str, port: int, timeout_s: float) -> list[Any]:
    """What ``getaddrinfo`` gives; it knows no time-out, so that it gets a thread, which is left behind when it is late.

    Raises TimeoutError, or its OSError.
    """
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # UnicodeError too, for names that can be none
            answer.set_exception(error)

    threading.Thread(target=ask, name=f"resolve {host:.40}", daemon=True).start()
    return answer.result(timeout_s)


def _public(address: Address) -> bool:
    """Whether it is one of the internet; of IPv6 only unicast ones, e.g. no site-local and no IPv4-compatible one."""
    if address.version == 6 and address not in _UNICAST:
        return False
    return address.is_global and not address.is_multicast


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one, where there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address
