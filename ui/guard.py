"""A guard in front of Gradio's own routes: whose an upload, an event or a stream is, and which routes exist at all.

In: an ASGI request. Out: a run's file when its link is signed, a refusal for everything that would hand one person's
work to another, the rest passed on with strict headers.

Gradio knows no owners: whoever names another page's `session_hash` reads its event stream, and whoever names the path
of an upload may submit it as their own. Here every id belongs to the browser that used it first. The browser is told
apart by a random cookie that no address, page or log shows.
"""

from __future__ import annotations

import hmac
import json
import mimetypes
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from starlette.responses import FileResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.media import PREFIX, Media

API = "/gradio_api/"
# What a page of this app needs of Gradio. Whatever else this or a later Gradio offers below /gradio_api/ is closed:
# files by path, deep links, run history, the proxy, API calls.
OPEN = re.compile(
    r"queue/(join|data)|run/predict|reset|cancel|upload(_progress)?|heartbeat/[^/]+|startup-events|app_id|theme\.css"
    r"|component_server|info"
)
CLOSED = ("/file=", "/file/", "/proxy=", "/monitoring", "/login", "/custom_component")
INLINE = {".png", ".jpg", ".jpeg", ".webp"}
BODY_LIMIT = 4 << 20  # bytes of one event: numbers and words; photos come through /upload
COOKIE = "likeness-browser"

# Gradio's own scripts are inline and its plots (Vega) compile expressions, hence the two `unsafe-`.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co"
)


class Owners:
    """Which browser an id belongs to. The least recently used of `limit` ids are forgotten."""

    def __init__(self, limit: int = 50_000) -> None:
        self.limit = limit
        self._owner: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def claim(self, name: str, browser: str) -> bool:
        """Whether `name` is this browser's; it is from now on when it was nobody's."""
        with self._lock:
            owner = self._owner.setdefault(name, browser)
            self._owner.move_to_end(name)
            while len(self._owner) > self.limit:
                self._owner.popitem(last=False)
        return hmac.compare_digest(owner, browser)

    def knows(self, name: str) -> bool:
        with self._lock:
            return name in self._owner


class Guard:
    """ASGI middleware: closes routes, binds ids to browsers, answers `/media/`, sets headers."""

    def __init__(self, app: ASGIApp, *, media: Media) -> None:
        self.app = app
        self.media = media
        self.owners = Owners()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path = unquote(scope["path"])
        local = path.removeprefix(scope.get("root_path", "") or "") or "/"
        browser = cookie(headers)
        fresh = "" if browser or local != "/" else secrets.token_urlsafe(32)
        uploading = local.rstrip("/") == API + "upload" and scope["method"] == "POST"
        uploaded: list[bytes] = []

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if fresh:
                    extra.append((b"set-cookie", set_cookie(fresh, scope, headers).encode()))
                message["headers"] = [*message.get("headers", []), *extra]
            elif uploading:
                uploaded.append(message.get("body", b""))
                if not message.get("more_body"):
                    for file in strings(parsed(b"".join(uploaded))):
                        self.owners.claim(owned_file(file, browser), browser)
            await send(message)

        async def refuse(why: str, status: int = 403) -> None:
            await PlainTextResponse(why, status_code=status)(scope, receive, strict)

        if local.startswith(CLOSED) or (
            local.startswith(API) and not OPEN.fullmatch(local.removeprefix(API).rstrip("/"))
        ):
            await refuse("Not served.")
        elif scope["method"] not in ("GET", "HEAD", "OPTIONS") and not same_origin(headers):
            await refuse("Requests from other sites are refused.")
        elif local.startswith(PREFIX):
            await self._serve(local.removeprefix(PREFIX), browser, scope, receive, strict)
        elif not all(self.owners.claim(name, browser) for name in ids_in(local, scope)):
            await refuse("This belongs to another page.")
        elif scope["method"] == "POST" and not uploading:
            body = await read(receive)
            if body is None:
                await refuse("That is too much for one request.", 413)
            elif not self._may_send(parsed(body), browser):
                await refuse("This belongs to another page.")
            else:
                await self.app(scope, replay(body, receive), strict)
        else:
            await self.app(scope, receive, strict)

    def _may_send(self, body: object, browser: str) -> bool:
        """Whether the page and every uploaded file that an event names are this browser's."""
        page = body.get("session_hash") if isinstance(body, dict) else None
        if page is not None and not self.owners.claim(f"session {page}", browser):
            return False
        return all(self.owners.knows(owned_file(file, browser)) for file in files_in(body))

    async def _serve(self, address: str, browser: str, scope: Scope, receive: Receive, send: Send) -> None:
        path = self.media.resolve(address)
        if path is None or not self.media.admits(path, browser):
            response = PlainTextResponse("This link is not valid any more. Reload the page.", status_code=403)
            await response(scope, receive, send)
            return
        wanted = dict(pair.partition("=")[::2] for pair in scope["query_string"].decode("latin-1").split("&")).get(
            "name"
        )
        download = unquote(wanted) if wanted else (path.name if path.suffix.lower() not in INLINE else None)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        file = FileResponse(path, media_type=kind, filename=download, headers={"cache-control": "private, no-store"})
        await file(scope, receive, send)


def cookie(headers: dict[str, str]) -> str:
    """The browser's own random name, "" where it sends none (cookies switched off)."""
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE and re.fullmatch(r"[A-Za-z0-9_-]{43}", value):
            return value
    return ""


def set_cookie(value: str, scope: Scope, headers: dict[str, str]) -> str:
    """For this visit, unreadable to scripts. A Space is shown inside another site's frame, which wants `None` and
    `Partitioned`; both need HTTPS."""
    secure = "https" in (scope.get("scheme"), headers.get("x-forwarded-proto", "").split(",")[0].strip())
    return f"{COOKIE}={value}; Path=/; HttpOnly; " + (
        "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    )


def owned_file(path: str, browser: str) -> str:
    """Two people may upload the same bytes, which Gradio keeps under one path: the owner is part of the name."""
    return f"file {browser} {path}"


def ids_in(local: str, scope: Scope) -> Iterator[str]:
    """The ids in a request's address."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    for kind, key in (("session", "session_hash"), ("upload", "upload_id")):
        for value in query.get(key, ()):
            yield f"{kind} {value}"
    if local.startswith(API + "heartbeat/"):
        yield f"session {local.rstrip('/').rpartition('/')[2]}"


def parsed(body: bytes) -> object:
    """The JSON in a body, or None: what is no JSON, Gradio refuses itself."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def strings(value: object) -> list[str]:
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def files_in(body: object) -> Iterator[str]:
    """Every `path` of a file that an event's data names, however deep."""
    todo = [body]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            todo += value.values()
        elif isinstance(value, list):
            todo += value


async def read(receive: Receive) -> bytes | None:
    """A request's body, or None when it is longer than `BODY_LIMIT`."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` once, then whatever the connection still says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def same_origin(headers: dict[str, str]) -> bool:
    """Whether a write comes from our own page. Clients that are no browser send no Origin; those may."""
    origin = headers.get("origin")
    if not origin:
        return True
    host = (headers.get("x-forwarded-host") or headers.get("host") or "").split(",")[0].strip()
    return urlsplit(origin).netloc.lower() == host.lower()
