"""Who may fetch which file: signed links for a run's pictures, and a guard in front of Gradio's own routes.

In: an ASGI request. Out: a run's file when its link carries our signature and has not expired, a refusal for the routes
that would hand one person's uploads to another, everything else passed on with strict headers.

Gradio's file route knows no owner (anyone with the path gets the photo), so it stays closed: uploads are copied into
the run, their Gradio copies deleted, and pages show pictures through `Media.link` only. The links are signed with a
secret that lives in this process; a page that was reloaded after a restart gets new ones.
"""

from __future__ import annotations

import base64
import hmac
import mimetypes
import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from starlette.responses import FileResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/media/"
LIFETIME_S = 2 * 3600  # a link's expiry is rounded up to this grid, so that polling a page keeps the same address
SERVED = {".png", ".jpg", ".jpeg", ".webp", ".zip", ".json", ".csv", ".html"}
INLINE = {".png", ".jpg", ".jpeg", ".webp"}

# Gradio routes that hand out files or state without knowing whose they are, or that this app has no use for.
CLOSED = (
    "/gradio_api/file=",
    "/gradio_api/file/",
    "/file=",
    "/file/",
    "/gradio_api/deep_link",
    "/gradio_api/runs",
    "/gradio_api/run-history",
    "/gradio_api/proxy=",
    "/proxy=",
    "/gradio_api/process_recording",
    "/gradio_api/vibe",
    "/gradio_api/profiling",
    "/gradio_api/dev",
    "/monitoring",
)

# Gradio's own scripts are inline and its plots (Vega) compile expressions, hence the two `unsafe-`.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self' https://huggingface.co https://*.huggingface.co"
)


class Media:
    """Signs links to files below `root` and answers them. `root` is the folder that holds the runs."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._secret = secrets.token_bytes(32)

    def link(self, path: Path, *, name: str | None = None) -> str:
        """A relative address for one file below `root`; `name` makes the browser save it under that name.

        Raises ValueError for a path outside `root`: such a file is never served.
        """
        relative = path.resolve().relative_to(self.root).as_posix()
        expires = int(time.time() // LIFETIME_S + 2) * LIFETIME_S
        # The modification time makes a replaced preview a new address, so the browser shows the new picture.
        stamp = int(path.stat().st_mtime * 1000) if path.exists() else 0
        query = f"?v={stamp}" + (f"&name={quote(name)}" if name else "")
        return f"{PREFIX.lstrip('/')}{expires}/{self._sign(expires, relative)}/{quote(relative)}{query}"

    def _sign(self, expires: int, relative: str) -> str:
        digest = hmac.new(self._secret, f"{expires}|{relative}".encode(), sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()

    def resolve(self, address: str) -> Path | None:
        """The file behind the part of an address after `/media/`, or None when it is not ours to give."""
        expires, _, rest = address.partition("/")
        signature, _, relative = rest.partition("/")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16) or int(expires) < time.time():
            return None
        if not hmac.compare_digest(signature.encode(), self._sign(int(expires), relative).encode()):
            return None
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root) or path.suffix.lower() not in SERVED or not path.is_file():
            return None
        return path


class Guard:
    """ASGI middleware: closes routes, checks the origin of writes, answers `/media/`, sets headers."""

    def __init__(self, app: ASGIApp, *, media: Media, closed: Iterable[str] = CLOSED) -> None:
        self.app = app
        self.media = media
        self.closed = tuple(closed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path = unquote(scope["path"])
        local = path.removeprefix(scope.get("root_path", "") or "") or "/"

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        if local.startswith(self.closed):
            await PlainTextResponse("Not served.", status_code=403)(scope, receive, strict)
        elif scope["method"] not in ("GET", "HEAD", "OPTIONS") and not same_origin(headers):
            await PlainTextResponse("Requests from other sites are refused.", status_code=403)(scope, receive, strict)
        elif local.startswith(PREFIX):
            await self._serve(local.removeprefix(PREFIX), scope, receive, strict)
        else:
            await self.app(scope, receive, strict)

    async def _serve(self, address: str, scope: Scope, receive: Receive, send: Send) -> None:
        path = self.media.resolve(address)
        if path is None:
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


def same_origin(headers: dict[str, str]) -> bool:
    """Whether a write comes from our own page. Clients that are no browser send no Origin; those may."""
    origin = headers.get("origin")
    if not origin:
        return True
    host = (headers.get("x-forwarded-host") or headers.get("host") or "").split(",")[0].strip()
    return urlsplit(origin).netloc.lower() == host.lower()
