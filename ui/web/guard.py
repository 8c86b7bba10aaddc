"""A guard in front of Gradio's own routes: whose an upload, an event or a stream is, which routes exist at all, and
how much one visitor may ask for.

In: an ASGI request. Out: a run's file when its link is signed, a refusal for everything that would hand one person's
work to another, the rest passed on with strict headers.

Gradio knows no owners: whoever names another page's `session_hash` reads its event stream, and whoever names the path
of an upload may submit it as their own. Here every id belongs to the browser that used it first. The browser is told
apart by a random cookie that no address, page or log shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import hmac
import json
import logging
import mimetypes
import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.page.errors import CHECK, CONFUSED, DISK_FULL, NOT_DONE
from ui.web.limits import Limits, TooMuch
from ui.web.media import PREFIX, Media

log = logging.getLogger("likeness.ui")
API = "/gradio_api/"
# What a page of this app needs of Gradio. Whatever else this or a later Gradio offers below /gradio_api/ is closed:
# files by path, deep links, run history, the proxy, API calls.
OPEN = re.compile(
    r"queue/(join|data)|run/predict|reset|cancel|upload(_progress)?|heartbeat/[^/]+|startup-events|app_id|theme\.css"
    r"|info"
)
CLOSED = ("/file=", "/file/", "/proxy=", "/monitoring", "/login", "/custom_component")
INLINE = {".png", ".jpg", ".jpeg", ".webp"}
STREAMS = re.compile(r"queue/data|upload_progress|heartbeat/[^/]+")
EVENTS = ("queue/join", "run/predict", "cancel", "reset")
BODY_LIMIT = 4 << 20  # bytes of one event: numbers and words; photos come through /upload
DEPTH_LIMIT = 40  # of an event's data; a page's own is not a tenth as deep
DIGITS_LIMIT = 18  # of a whole number: seeds have 10
SILENCE_S = 20.0  # a body whose next piece takes longer is given up ...
PACE_BYTES_S, PACE_FROM_S = 8_000, 30.0  # ... and one that is slower than this for longer than that
FREE_BYTES = 50_000_000  # an upload leaves at least this much of the disk free
SLOW = "The upload came in too slowly and was given up. Check the connection, then send the photos again."
NO_LENGTH = "An upload has to say how long it is. Use the page, or send a Content-Length."
NAME_LIMIT = 200  # of a page's or an event's id; the ones we know have 11 and 32
COOKIE = "likeness-browser"
# The page is the same for everybody who calls it by the same address: what is theirs comes with its load event. Gradio
# writes its 400 kB anew for each visitor, and thirty at once keep the event loop from the interpreter's lock.
PAGES = ("/", "/config")
PAGES_KEPT = 16
ADDRESSED = ("host", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "x-direct-url", "forwarded")
FULL_CODES = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}

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
        self.limits = Limits()
        self._pages: OrderedDict[tuple[str, ...], Response] = OrderedDict()
        self._writing = asyncio.Lock()

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
        route = local.removeprefix(API).rstrip("/") if local.startswith(API) else ""
        visitor = (browser, scope["client"][0] if scope.get("client") else "")
        page = (parse_qs(scope["query_string"].decode("latin-1")).get("session_hash") or [""])[0]
        started, ticket = False, ""
        held: Message | None = None  # the start of an answer that may have to be put into words first

        async def strict(message: Message) -> None:
            nonlocal started, held
            if message["type"] == "http.response.start":
                started = True
                extra = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if fresh:
                    extra.append((b"set-cookie", set_cookie(fresh, scope, headers).encode()))
                message["headers"] = [*message.get("headers", []), *extra]
                if route == "run/predict" and message["status"] == 500:
                    held = message
                    return
            elif held is not None:
                message = worded(held, message)
                await send(held)
                held = None
            elif uploading:
                uploaded.append(message.get("body", b""))
                if not message.get("more_body"):
                    for file in strings(parsed(b"".join(uploaded))):
                        self.owners.claim(owned_file(file, browser), browser)
            elif route == "queue/data":
                if event := ended_event(message.get("body", b"")):
                    self.limits.answered(visitor, event=event)
            elif route == "queue/join":
                answer = parsed(message.get("body", b""))
                if isinstance(answer, dict) and isinstance(answer.get("event_id"), str):
                    self.limits.asked(visitor, ticket, answer["event_id"], page)
            await send(message)

        async def refuse(why: str, status: int = 403, *, seconds: int | None = None) -> None:
            extra = {"retry-after": str(seconds)} if seconds else None
            if route in EVENTS:  # the page shows `error` of an event that does not wait, `detail` of one that does
                answer: Any = JSONResponse({"error": why, "detail": why}, status_code=status, headers=extra)
            else:
                answer = PlainTextResponse(why, status_code=status, headers=extra)
            await answer(scope, receive, strict)

        if not addressable(local):
            await refuse("Not served.", 404)
        elif local.startswith(CLOSED) or (local.startswith(API) and not OPEN.fullmatch(route)):
            await refuse("Not served.")
        elif scope["method"] not in ("GET", "HEAD", "OPTIONS") and not same_origin(headers):
            await refuse("Requests from other sites are refused.")
        elif local.startswith(PREFIX):
            await self._serve(local.removeprefix(PREFIX), browser, scope, receive, strict)
        elif not all(self.owners.claim(name, browser) for name in ids_in(local, scope)):
            await refuse("This belongs to another page.")
        else:
            try:
                with contextlib.ExitStack() as stack:
                    if uploading:
                        size = headers.get("content-length", "")
                        if not (size.isascii() and size.isdigit() and len(size) < 16):
                            raise TooMuch(NO_LENGTH, seconds=0, status=411)
                        stack.enter_context(self.limits.hold("uploads", visitor))
                        self.limits.spend_upload(visitor, int(size))
                        require_room_for(int(size))
                        await self.app(scope, patient(receive), strict)
                    elif scope["method"] == "POST":
                        stack.enter_context(self.limits.hold("in_flight", visitor))
                        body = await read(patient(receive))
                        if local.startswith(API):  # elsewhere a form of ours, which its own page reads
                            event = parsed(body)
                            if not readable(event):
                                raise TooMuch(CONFUSED, seconds=0, status=400)
                            assert isinstance(event, dict)
                            page = str(event.get("session_hash") or "")
                            if not self._may_send(event, browser):
                                await refuse("This belongs to another page.")
                                return
                            if route == "queue/join":
                                ticket = self.limits.spend_event(visitor, page)
                                stack.callback(self.limits.answered, visitor, event=ticket)  # unless it became an event
                        await self.app(scope, replay(body, receive), strict)
                    elif STREAMS.fullmatch(route):
                        stack.enter_context(self.limits.hold("streams", visitor))
                        try:
                            await self.app(scope, receive, strict)
                        finally:
                            if route == "queue/data":  # Gradio drops what this page still waits for
                                self.limits.answered(visitor, page=page)
                    elif local in PAGES and scope["method"] == "GET" and not scope["query_string"]:
                        await self._page(local, headers, scope, receive, strict)
                    else:
                        await self.app(scope, receive, strict)
            except TooMuch as problem:
                await refuse(str(problem), problem.status, seconds=problem.seconds)
            except ClientDisconnect:  # gone, or given up by `patient`
                if not started:
                    await refuse(SLOW, 408)
            except Exception as error:
                if started and STREAMS.fullmatch(route):  # Gradio knows no such page, and finds out too late to say so
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                if started or not (uploading or route in EVENTS):
                    raise
                log.error("Gradio could not take a request: %s", type(error).__name__)
                full = isinstance(error, OSError) and error.errno in FULL_CODES
                await refuse(DISK_FULL if full else CONFUSED, 507 if full else 400)

    def _may_send(self, body: dict[str, Any], browser: str) -> bool:
        """Whether the page and every uploaded file that an event names are this browser's."""
        page = body.get("session_hash")
        if page is not None and not self.owners.claim(f"session {page}", browser):
            return False
        return all(self.owners.knows(owned_file(file, browser)) for file in files_in(body))

    async def _page(self, local: str, headers: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """The page as it was written for the first visitor who came by this address."""
        small = "gzip" in headers.get("accept-encoding", "")
        address = tuple(headers.get(name, "") for name in ADDRESSED)
        key = (local, str(scope.get("root_path")), str(scope.get("scheme")), str(small), *address)
        async with self._writing:
            page = self._pages.get(key) or await self._written(scope, receive, small=small)
            if page.status_code == 200:
                self._pages[key] = page
                self._pages.move_to_end(key)
                while len(self._pages) > PAGES_KEPT:
                    self._pages.popitem(last=False)
        await page(scope, receive, send)

    async def _written(self, scope: Scope, receive: Receive, *, small: bool) -> Response:
        """What Gradio answers, packed where the browser can unpack it."""
        pieces: list[Message] = []

        async def keep(message: Message) -> None:
            pieces.append(message)

        await self.app(scope, receive, keep)
        start, body = pieces[0], b"".join(piece.get("body", b"") for piece in pieces[1:])
        told = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]}
        told = {name: value for name, value in told.items() if name != "content-length"}
        if small and "content-encoding" not in told:
            body = await asyncio.to_thread(gzip.compress, body, 6)
            told |= {"content-encoding": "gzip"}
        return Response(body, start["status"], told | {"vary": "accept-encoding"})

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


def addressable(path: str) -> bool:
    """Whether a file system could have a file of this name: the question alone is an error otherwise."""
    return "\0" not in path and len(path) < 2000 and all(len(os.fsencode(part)) < 256 for part in path.split("/"))


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
        return json.loads(body, parse_constant=_no_number, parse_int=_number)
    except (ValueError, RecursionError):
        return None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _number(digits: str) -> int:
    if len(digits) > DIGITS_LIMIT:
        raise ValueError("a number that no page sends")
    return int(digits)


def readable(event: object) -> bool:
    """Whether an event looks like one of a page's, so that Gradio can read it."""
    if not isinstance(event, dict) or not isinstance(event.get("data", []), list):
        return False
    if isinstance(event.get("fn_index"), bool) or not isinstance(event.get("fn_index"), int | None):
        return False
    for name in ("session_hash", "event_id"):
        value = event.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= NAME_LIMIT):
            return False
    level: list[dict | list] = [event]
    depth = 0
    while level:
        depth += 1
        if depth > DEPTH_LIMIT:
            return False
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
    return True


def worded(start: Message, message: Message) -> Message:
    """The body of an event that failed, in words, and `start` with the status it deserves.

    Gradio answers 500 whatever went wrong. A person's mistake is 422; data that Gradio itself could not read has no
    text at all and is 400; a fault of ours stays 500 and has its sentence.
    """
    said = parsed(message.get("body", b""))
    said = said if isinstance(said, dict) else {}
    if not said.get("error"):
        said, start["status"] = {"error": CONFUSED, "title": CHECK, "visible": True}, 400
    elif said.get("title") != NOT_DONE:
        start["status"] = 422
    body = json.dumps(said).encode()
    start["headers"] = [
        (key, str(len(body)).encode() if key.lower() == b"content-length" else value) for key, value in start["headers"]
    ]
    return {**message, "body": body}


def ended_event(piece: bytes) -> str | None:
    """The id of the event whose end a piece of an event stream tells."""
    if b'"process_completed"' not in piece[:200]:
        return None
    found = re.search(rb'"event_id":\s*"([0-9a-f]+)"', piece)
    return found[1].decode() if found else None


def require_room_for(size: int) -> None:
    """Raise TooMuch when an upload would fill the disk: a half-written one stays there."""
    folder = os.environ.get("GRADIO_TEMP_DIR", ".")
    with contextlib.suppress(FileNotFoundError):
        if shutil.disk_usage(folder).free < size + FREE_BYTES:
            raise TooMuch(DISK_FULL, seconds=60, status=507)


def patient(receive: Receive) -> Receive:
    """A `receive` that gives a body up which comes in too slowly: to Gradio it looks as if the visitor had left."""
    began, got, complete = time.monotonic(), 0, False

    async def some() -> Message:
        nonlocal got, complete
        if complete:  # what comes now is the end of the connection: that may take as long as the answer
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), SILENCE_S)
        except TimeoutError:
            return {"type": "http.disconnect"}
        got += len(message.get("body", b""))
        complete = not message.get("more_body")
        passed = time.monotonic() - began
        if not complete and passed > PACE_FROM_S and got < PACE_BYTES_S * passed:
            return {"type": "http.disconnect"}
        return message

    return some


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


async def read(receive: Receive) -> bytes:
    """A request's body. Raises TooMuch when it is longer than `BODY_LIMIT`, ClientDisconnect when it does not end."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > BODY_LIMIT:
            raise TooMuch("That is too much for one request.", seconds=0, status=413)
        if not message.get("more_body"):
            return b"".join(pieces)


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
