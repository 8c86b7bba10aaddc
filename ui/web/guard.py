"""A guard in front of Gradio's own routes: whose an upload, an event or a stream is, which routes exist at all, and
how much one visitor may ask for.

In: an ASGI request. Out: a run's file when its link is signed, a refusal for everything that would hand one person's
work to another, the rest passed on with strict headers.

Gradio knows no owners: whoever names another page's `session_hash` reads its event stream, and whoever names the path
of an upload may submit it as their own. Here Gradio never sees the name that a page gave itself: it gets one made of
that name and of the browser (`ui.web.visitors`), so a stranger who knows a name only reaches a page of their own. An
upload (`ui.web.uploads`) may be named by the browser that sent it and by nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import logging
import mimetypes
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.page.errors import CHECK, CONFUSED, DISK_FULL, NOT_DONE
from ui.web.limits import Limits, Refused
from ui.web.media import PREFIX, Media
from ui.web.pages import PATHS, Pages
from ui.web.uploads import SLOW, Incoming, Uploads, forget_progress, patient, require
from ui.web.visitors import NAMED, NO_COOKIE, Door, Strange, Visitor, newcomer, same_origin

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
FIELDS = ("data", "event_data", "fn_index", "trigger_id", "session_hash", "event_id")  # of an event of a page's
BODY_LIMIT = 4 << 20  # bytes of one event: numbers and words; photos come through /upload
DEPTH_LIMIT = 40  # of an event's data; a page's own is not a tenth as deep
DIGITS_LIMIT = 18  # of a whole number: seeds have 10
ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of a page, an upload or an event; the ones we know have 11, 32 and 36
FULL_CODES = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NEW_PAGE = 50  # requests' worth: writing the page for another address takes 25 to 50 ms
PROGRESS_KEPT_S = 3600.0  # how far an upload is
SETTLE_S = 0.5  # how often ended events are looked for while any is awaited
FOREIGN = "Requests from other sites are refused."
NOT_YOURS = "This belongs to another page."
NOT_SERVED = "Not served."

# Gradio's own scripts are inline and its plots (Vega) compile expressions, hence the two `unsafe-`.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co"
)
STRICT = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Exchange:
    """One request and its answer, which gets strict headers and loses Gradio's leave for other sites to read it."""

    def __init__(self, scope: Scope, send: Send, visitor: Visitor) -> None:
        self.scope, self._send, self.visitor = scope, send, visitor
        self.local = unquote(scope["path"]).removeprefix(scope.get("root_path", "") or "") or "/"
        self.route = self.local.removeprefix(API).rstrip("/") if self.local.startswith(API) else ""
        self.started = False
        self.cookie = ""  # for a browser that has none
        self.incoming: Incoming | None = None
        self.on_body: Callable[[Message], None] = lambda _: None  # sees the answer's pieces as they go
        self._held: Message | None = None  # the start of an answer that may have to be put into words first

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            kept = [each for each in message.get("headers", []) if not each[0].lower().startswith(b"access-control-")]
            message["headers"] = [*kept, *STRICT]
            if self.cookie:
                message["headers"].append((b"set-cookie", self.cookie.encode()))
            problem = self.incoming.refused if self.incoming is not None else None
            if problem is not None:
                message["status"] = problem.status  # Gradio calls all broken forms 400
                message["headers"].append((b"retry-after", str(problem.seconds).encode()))
            if self.route == "run/predict" and message["status"] == 500:
                self._held = message
                return
        elif self._held is not None:
            message = worded(self._held, message)
            await self._send(self._held)
            self._held = None
        else:
            self.on_body(message)
        await self._send(message)

    async def refuse(self, receive: Receive, why: str, status: int = 403, *, seconds: int = 0) -> None:
        extra = {"retry-after": str(seconds)} if seconds else None
        if self.route in EVENTS:  # the page shows `error` of an event that does not wait, `detail` of one that does
            answer: Any = JSONResponse({"error": why, "detail": why}, status_code=status, headers=extra)
        else:
            answer = PlainTextResponse(why, status_code=status, headers=extra)
        await answer(self.scope, receive, self.send)


class Guard:
    """ASGI middleware: closes routes, keeps browsers apart, answers `/media/`, sets headers.

    `working_on` tells the ids of the events that Gradio has not done yet.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        media: Media,
        uploads: Uploads | None = None,
        working_on: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self.app = app
        self.media = media
        self.uploads = uploads or Uploads()
        self.working_on = working_on
        self.door = Door()
        self.limits = Limits()
        self.pages = Pages(app)
        self._secret = secrets.token_bytes(32)
        self._settling: asyncio.Task[None] | None = None
        self._unqueued: set[str] = set()  # events under way that are not in Gradio's queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            scope = await self.door.read(scope)
        except Strange as problem:
            await Exchange(scope, send, Visitor("", "")).refuse(receive, str(problem), 400)
            return
        visitor = self.door.visitor(scope)
        scope["headers"].append((NAMED, visitor.browser.encode()))
        exchange = Exchange(scope, send, visitor)
        if exchange.local.rstrip("/") in ("", "/config") and (new := newcomer(visitor)) is not None:
            exchange.cookie = new.cookie
        try:
            self._let_in(exchange)
            await self._answer(exchange, receive)
        except Refused as problem:
            if not exchange.started:
                await exchange.refuse(receive, str(problem), problem.status, seconds=problem.seconds)
        except ClientDisconnect:  # gone, or given up by `patient`
            if not exchange.started:
                await exchange.refuse(receive, SLOW, 408)
        except Exception as error:
            await self._failed(exchange, receive, error)

    def _let_in(self, exchange: Exchange) -> None:
        """Raise Refused for what is not served, or not to this visitor."""
        local, scope = exchange.local, exchange.scope
        if not addressable(local):
            raise Refused(NOT_SERVED, status=404)
        if local.startswith(CLOSED) or (local.startswith(API) and not OPEN.fullmatch(exchange.route)):
            raise Refused(NOT_SERVED)
        if scope["method"] == "OPTIONS":  # only another site's page asks first
            raise Refused(FOREIGN)
        if scope["method"] not in ("GET", "HEAD") and not same_origin(scope):
            raise Refused(FOREIGN)
        owned = exchange.route in (*EVENTS, "upload") or STREAMS.fullmatch(exchange.route)
        if (owned or local.startswith(PREFIX)) and not exchange.visitor.browser:
            raise Refused(NO_COOKIE)

    async def _answer(self, exchange: Exchange, receive: Receive) -> None:
        method, visitor = exchange.scope["method"], exchange.visitor
        if exchange.route == "upload" and method == "POST":
            with self.limits.hold("uploads", visitor):
                await self._upload(exchange, receive)
        elif method not in ("GET", "HEAD"):
            with self.limits.hold("in_flight", visitor):
                await self._event(exchange, receive)
        elif STREAMS.fullmatch(exchange.route):
            self.limits.spend_request(visitor)
            with self.limits.hold("streams", visitor):
                await self._stream(exchange, receive)
        else:
            self.limits.spend_request(visitor)
            with self.limits.hold("reads", visitor):
                await self._read(exchange, receive)

    async def _upload(self, exchange: Exchange, receive: Receive) -> None:
        visitor, scope = exchange.visitor, exchange.scope
        self.limits.spend_request(visitor)
        self.uploads.require_room(visitor, self.limits)
        require(self.limits, visitor, header(scope, b"content-length"))
        asked = parse_qs(scope["query_string"].decode("latin-1"))
        if "upload_id" in asked:
            self._rename(scope, "upload_id", visitor)
        else:
            scope["query_string"] = b""
        exchange.incoming = Incoming(receive, self.limits, visitor)
        told: list[bytes] = []

        def collect(message: Message) -> None:
            told.append(message.get("body", b""))
            if not message.get("more_body"):
                self.uploads.add(strings(parsed(b"".join(told))), visitor)

        exchange.on_body = collect
        await self.app(scope, exchange.incoming, exchange.send)

    async def _event(self, exchange: Exchange, receive: Receive) -> None:
        """A write that is no upload: an event of a page, or a form of ours, which its own page reads."""
        visitor, route = exchange.visitor, exchange.route
        if route != "queue/join":  # those have a limit of their own
            self.limits.spend_request(visitor)
        body = await read(patient(receive))
        if not exchange.local.startswith(API):
            await self.app(exchange.scope, replay(body, receive), exchange.send)
            return
        event = parsed(body)
        if not readable(event):
            raise Refused(CONFUSED, status=400)
        assert isinstance(event, dict)
        files = tuple(files_in(event))
        if not all(self.uploads.owned(file, visitor.browser) for file in files):
            raise Refused(NOT_YOURS)
        event = {name: event[name] for name in FIELDS if name in event}
        if isinstance(event.get("session_hash"), str):
            event["session_hash"] = self._own("session_hash", event["session_hash"], visitor)
        if route == "cancel" and not self.limits.waits(visitor, str(event.get("event_id"))):
            nothing = JSONResponse({"success": True})  # what Gradio says to an event that has ended
            await nothing(exchange.scope, receive, exchange.send)
            return
        with contextlib.ExitStack() as stack:
            if route == "queue/join":
                page = str(event.get("session_hash") or "")
                ticket = self.limits.spend_event(visitor, page)
                stack.callback(self.limits.answered, visitor, event=ticket)  # unless it became an event

                def let_in(message: Message) -> None:
                    answer = parsed(message.get("body", b""))
                    if isinstance(answer, dict) and isinstance(answer.get("event_id"), str):
                        self.limits.asked(visitor, ticket, answer["event_id"], page)
                        self._await(answer["event_id"], visitor, files)

                exchange.on_body = let_in
            elif files:
                lasting = secrets.token_hex(8)
                self._unqueued.add(lasting)
                stack.callback(self._unqueued.discard, lasting)
                self._await(lasting, visitor, files)
            body = json.dumps(event).encode()
            await self.app(resized(exchange.scope, body), replay(body, receive), exchange.send)

    async def _stream(self, exchange: Exchange, receive: Receive) -> None:
        visitor, scope, route = exchange.visitor, exchange.scope, exchange.route
        if route.startswith("heartbeat/"):
            name = self._own("session_hash", route.removeprefix("heartbeat/"), visitor)
            path = f"{scope.get('root_path') or ''}{API}heartbeat/{name}"
            scope.update(path=path, raw_path=path.encode(), query_string=b"")
        if route == "upload_progress":
            self._rename(scope, "upload_id", visitor)
        if route != "queue/data":
            await self.app(scope, receive, exchange.send)
            return
        page = self._rename(scope, "session_hash", visitor)

        def ended(message: Message) -> None:
            if event := ended_event(message.get("body", b"")):
                self.limits.answered(visitor, event=event)

        exchange.on_body = ended
        try:
            await self.app(scope, receive, exchange.send)
        finally:
            self.limits.answered(visitor, page=page)  # Gradio drops what this page still waits for

    async def _read(self, exchange: Exchange, receive: Receive) -> None:
        local = exchange.local.rstrip("/") or "/"
        if local.startswith(PREFIX):
            await self._serve(exchange, receive)
        elif local in PATHS:
            visitor = exchange.visitor
            await self.pages(
                local, exchange.scope, receive, exchange.send,
                on_new=lambda: self.limits.spend_request(visitor, NEW_PAGE),
            )  # fmt: skip
        else:
            await self.app({**exchange.scope, "query_string": b""}, receive, exchange.send)

    async def _failed(self, exchange: Exchange, receive: Receive, error: Exception) -> None:
        """Say in words what Gradio could not take. Raises `error` again where it is no request's fault."""
        if exchange.started and STREAMS.fullmatch(exchange.route):  # Gradio finds out late that there is no such page
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if exchange.started or exchange.route not in (*EVENTS, "upload"):
            raise error
        log.error("Gradio could not take a request: %s", type(error).__name__)
        full = isinstance(error, OSError) and error.errno in FULL_CODES
        await exchange.refuse(receive, DISK_FULL if full else CONFUSED, 507 if full else 400)

    # ------------------------------------------------------------------ whose what is

    def _own(self, kind: str, name: str, visitor: Visitor) -> str:
        """What Gradio calls the page or upload that this browser calls `name`. Raises Refused for what is no name."""
        if not ID.fullmatch(name):
            raise Refused(CONFUSED, status=400)
        text = f"{kind} {visitor.browser} {name}".encode()
        return hmac.new(self._secret, text, "sha256").hexdigest()[:40]

    def _rename(self, scope: Scope, key: str, visitor: Visitor) -> str:
        """Put the name of `_own` into the query, alone. Raises Refused where the visitor gave none or several."""
        given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get(key, [])
        if len(given) != 1:
            raise Refused(CONFUSED, status=400)
        name = self._own(key, given[0], visitor)
        scope["query_string"] = f"{key}={name}".encode()
        if key == "upload_id":
            asyncio.get_running_loop().call_later(PROGRESS_KEPT_S, forget_progress, name)
        return name

    def _await(self, event: str, visitor: Visitor, files: tuple[str, ...]) -> None:
        """Delete these files as soon as the event is done or dropped."""
        self.uploads.name(event, visitor.browser, files)
        if self.uploads.awaited and (self._settling is None or self._settling.done()):
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        while self.uploads.awaited:
            await asyncio.sleep(SETTLE_S)
            self.uploads.settle({*self.working_on(), *self._unqueued})

    async def _serve(self, exchange: Exchange, receive: Receive) -> None:
        path = self.media.resolve(exchange.local.removeprefix(PREFIX))
        if path is None or not self.media.admits(path, exchange.visitor.browser):
            raise Refused("This link is not valid any more. Reload the page.")
        query = exchange.scope["query_string"].decode("latin-1")
        wanted = dict(pair.partition("=")[::2] for pair in query.split("&")).get("name")
        download = unquote(wanted) if wanted else (path.name if path.suffix.lower() not in INLINE else None)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        file = FileResponse(path, media_type=kind, filename=download, headers={"cache-control": "private, no-store"})
        await file(exchange.scope, receive, exchange.send)


def addressable(path: str) -> bool:
    """Whether a file system could have a file of this name: the question alone is an error otherwise."""
    return "\0" not in path and len(path) < 2000 and all(len(os.fsencode(part)) < 256 for part in path.split("/"))


def header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def resized(scope: Scope, body: bytes) -> Scope:
    """`scope` with the length of `body`."""
    told = [each for each in scope["headers"] if each[0] not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*told, (b"content-length", str(len(body)).encode())]}


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
    for name in ("fn_index", "trigger_id"):
        if isinstance(event.get(name), bool) or not isinstance(event.get(name), int | None):
            return False
    for name in ("session_hash", "event_id"):
        value = event.get(name)
        if value is not None and not (isinstance(value, str) and ID.fullmatch(value)):
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
    """A request's body. Raises Refused when it is longer than `BODY_LIMIT`, ClientDisconnect when it does not end."""
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > BODY_LIMIT:
            raise Refused("That is too much for one request.", status=413)
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
