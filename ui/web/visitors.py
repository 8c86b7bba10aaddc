"""Who sends a request: which host it is for, which address it comes from, which browser it is.

In: an ASGI scope as the server made it. Out: a scope in which every header that counts has one value, and a `Visitor`.

A browser is told apart by a random cookie that no address, page or log shows. What a proxy says about the request it
passes on (`X-Forwarded-...`) is believed only of the addresses in $LIKENESS_PROXIES: anybody else can write such a
header too.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

log = logging.getLogger("likeness.ui")
# On HTTPS with the prefix __Host-: no other host and no plain HTTP can set that one. On plain HTTP with the port: a
# browser sends a host's cookies to all of its ports.
COOKIE = "likeness-browser"
PROXIES_ENV = "LIKENESS_PROXIES"
HOSTS_ENV = "LIKENESS_HOSTS"  # by which names the app is reached; $GRADIO_SERVER_NAME is one of them
PRIVATE = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,::1,fc00::/7"
NAMED = b"x-likeness-browser"  # tells the handlers which browser it is; one that comes from outside is dropped
GRADIO_SERVER = b"x-gradio-server"  # Gradio would take it for its own address
ONCE = (b"host", b"origin", b"cookie", b"content-length", b"content-type")
ELSEWHERE = (
    "This app does not know the name that you called it by. Use its address, or put the name into LIKENESS_HOSTS. "
    "Behind a proxy set LIKENESS_PROXIES. See docs/deploy.md."
)
NO_COOKIE = (
    "This page needs its cookie. Allow cookies for this site, then reload the page. A program gets the cookie from "
    "/config and sends it with every request."
)


class Strange(Exception):
    """A request that no browser sends to this app; `str()` says why."""


@dataclass(frozen=True)
class Visitor:
    browser: str  # its random name; "" = it has none, and nothing can belong to it
    address: str  # that counts as one: see `network`
    key: str = COOKIE  # what its cookie is called

    @property
    def cookie(self) -> str:
        """A `Set-Cookie` for this visit that scripts can't read. A Space is shown inside another site's frame, which
        wants `None` and `Partitioned`; both need HTTPS."""
        where = "SameSite=None; Secure; Partitioned" if self.key.startswith("__Host-") else "SameSite=Lax"
        return f"{self.key}={self.browser}; Path=/; HttpOnly; {where}"


class Door:
    """Reads requests. `proxies` are the addresses and networks, separated by commas, of the proxies in front."""

    def __init__(self, proxies: str | None = None) -> None:
        self._hosted = bool(os.environ.get("SPACE_ID"))  # a hosted Space is reached through the host's proxy only
        if proxies is None:
            proxies = os.environ.get(PROXIES_ENV, PRIVATE if self._hosted else "")
        named = f"{os.environ.get(HOSTS_ENV, '')},{os.environ.get('GRADIO_SERVER_NAME', '')}"
        self._hosts = {name.strip().lower() for name in named.split(",")}
        self._secret = secrets.token_bytes(32)
        self._proxies = ProxyHeadersMiddleware(_nothing, trusted_hosts=proxies)  # type: ignore[arg-type]
        self._told = False

    async def read(self, scope: Scope) -> Scope:
        """A copy of `scope` with one value per header that counts. Raises Strange for what can't be a browser's."""
        peer = scope["client"][0] if scope.get("client") else ""
        believed = peer in self._proxies.trusted_hosts
        scope = {**scope, "headers": self._headers(scope, believed=believed)}
        if believed:
            await self._proxies(scope, _nothing, _nothing)  # type: ignore[arg-type]
        told = headers_of(scope)
        if told.get("x-forwarded-proto") == "https":  # of anybody: it changes this visitor's own answer only
            scope["scheme"] = "https"
        name = host_of(told.get("host", ""))[0]
        here = _loopback(str((scope.get("server") or ("",))[0]))
        if not (believed or self._hosted or name in self._hosts or _ours(name, here=here)):
            raise Strange(ELSEWHERE)  # another site's name that leads to this machine
        return scope

    def _headers(self, scope: Scope, *, believed: bool) -> list[tuple[bytes, bytes]]:
        kept: list[tuple[bytes, bytes]] = []
        last: dict[bytes, bytes] = {}
        for key, value in scope["headers"]:
            name = key.lower()
            if name in ONCE and any(name == there for there, _ in kept):
                raise Strange(f"The header {name.decode()} came twice. Send it once.")
            if name in (b"x-forwarded-host", b"x-forwarded-proto"):
                last[name] = value.rpartition(b",")[2].strip()  # what the nearest proxy said
            elif name.startswith(b"x-forwarded-") or name in (b"forwarded", GRADIO_SERVER, NAMED):
                if believed and name == b"x-forwarded-for":
                    kept.append((name, value))
                elif name == b"x-forwarded-for" and not self._told:
                    self._told = True
                    log.warning("A proxy seems to be in front. Name its address in %s.", PROXIES_ENV)
            else:
                kept.append((name, value))
        if last.get(b"x-forwarded-proto") not in (b"http", b"https"):
            last.pop(b"x-forwarded-proto", None)
        if not believed:
            last.pop(b"x-forwarded-host", None)
        return [*kept, *last.items()]

    def visitor(self, scope: Scope) -> Visitor:
        """Who sent what `read` returned."""
        address = network(scope["client"][0] if scope.get("client") else "")
        headers = headers_of(scope)
        port = host_of(headers.get("x-forwarded-host") or headers.get("host", ""))[1]
        key = f"__Host-{COOKIE}" if scope.get("scheme") == "https" else f"{COOKIE}-{port}"
        browser = cookie(headers, key)
        if not browser and self._hosted:  # a frame of another site, in a browser that keeps cookies from frames
            seen = f"{address} {headers.get('user-agent', '')}"
            browser = "-" + hmac.new(self._secret, seen.encode(), "sha256").hexdigest()
        return Visitor(browser, address, key)


def newcomer(visitor: Visitor) -> Visitor | None:
    """`visitor` with a name to be kept as a cookie; None where it has one."""
    if visitor.browser and not visitor.browser.startswith("-"):
        return None
    return replace(visitor, browser=secrets.token_urlsafe(32))


def headers_of(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}


def cookie(headers: dict[str, str], key: str) -> str:
    """The browser's own random name, "" where it sends none."""
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == key and re.fullmatch(r"[A-Za-z0-9_-]{43}", value):
            return value
    return ""


def browser_of(request: Any) -> str:
    """The browser behind a handler's `gr.Request`, as the guard named it."""
    return str(dict(request.headers).get(NAMED.decode(), ""))


def same_origin(scope: Scope) -> bool:
    """Whether a write comes from our own page. Clients that are no browser send no Origin; those may."""
    headers = headers_of(scope)
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
    host = headers.get("x-forwarded-host") or headers.get("host") or ""
    return bool(host) and origin.partition("://")[2].lower() == host.lower()


def network(address: str) -> str:
    """What counts as one address: an IPv4 address, or the 64 bits of an IPv6 address that a provider hands out."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


def _loopback(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


def host_of(host: str) -> tuple[str, int]:
    """The name, in small letters, and the port (80 where there is none) of a Host header; (".", 0) for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port or 80
    except ValueError:
        return ".", 0


def _ours(name: str, *, here: bool) -> bool:
    """Whether no site of the internet can be called `name`: it names this machine, or where the app is reached from
    other machines (not `here`) any address, a name of one part or one of the local network."""
    if not name or name == "localhost" or name.endswith(".localhost") or _loopback(name):
        return True
    if here:
        return False
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return "." not in name or name.endswith(".local")


async def _nothing(*_: object) -> None:
    return None
