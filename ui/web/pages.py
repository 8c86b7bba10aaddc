"""The page and its configuration, written once per address and kept.

The page is the same for everybody who calls it by the same address: what is theirs comes with its load event. Gradio
writes its 400 kB anew for each visitor, and thirty at once keep the event loop from the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import OrderedDict
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.web.visitors import headers_of

PATHS = ("/", "/config")
KEPT = 16
ADDRESSED = ("host", "x-forwarded-host", "x-forwarded-proto")


class Pages:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._kept: OrderedDict[tuple[str, ...], Response] = OrderedDict()
        self._writing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    async def __call__(
        self, local: str, scope: Scope, receive: Receive, send: Send, *, on_new: Callable[[], None] = lambda: None
    ) -> None:
        """The page as it was written for the first visitor who came by this address.

        It is written from a scope that holds the key and nothing else a visitor sent: no question, no other header.
        `on_new` is called before one is written, and may raise. One that is kept waits for none that is written.
        """
        headers = headers_of(scope)
        small = "gzip" in headers.get("accept-encoding", "")
        address = [(name, headers[name]) for name in ADDRESSED if headers.get(name)]
        root = str(scope.get("root_path") or "")
        key = (local, root, str(scope.get("scheme")), str(small), repr(address))
        asked = {
            **scope,
            "path": root + local,
            "raw_path": (root + local).encode("latin-1", "replace"),
            "query_string": b"",
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in address],
            "method": "GET",
        }
        page = self._kept.get(key)
        if page is None:
            async with self._writing:
                page = self._kept.get(key)  # somebody else's may have been written meanwhile
                if page is None:
                    on_new()
                    page = await self._written(asked, receive, small=small)
        if page.status_code == 200:
            self._kept[key] = page
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
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
