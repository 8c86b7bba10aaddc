"""The first screen's picture as a file of its own: the page's configuration stays small, and browsers keep it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from ui.front.example import HERO
from ui.front.html import HERO_ADDRESS


def _answer(request: Request) -> Response:
    if not HERO.is_file():
        return Response(status_code=404)
    return FileResponse(HERO, headers={"cache-control": "public, max-age=3600"})


ROUTE = Route(f"/{HERO_ADDRESS}", _answer)
