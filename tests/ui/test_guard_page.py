"""The page is written once for everybody who comes by one address, and for nobody else."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from ui.web.guard import Guard
from ui.web.limits import Allowance, Limits
from ui.web.pages import KEPT
from ui.web.visitors import Door


@pytest.fixture
def written():
    """(the guard in front of an app that names its address and counts, addresses it wrote a page for)."""
    addresses: list[str] = []
    seen: list[set[str]] = []

    async def app(scope, receive, send):
        request = Request(scope)
        addresses.append(str(request.url))
        seen.append(set(request.headers))
        await asyncio.sleep(0.01)
        status = 500 if request.headers["host"].startswith("broken") else 200
        page = PlainTextResponse(f"{request.url} {len(addresses)} " + "words " * 500, status)
        await page(scope, receive, send)

    guard = Guard(app, media=SimpleNamespace())
    guard.seen = seen  # names of the headers it wrote a page from
    return guard, addresses


def get(guard: Guard, path: str = "/", **options) -> httpx.Response:
    return together(guard, [(path, options)])[0]


def together(guard: Guard, asked: list[tuple[str, dict]]) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await asyncio.gather(*(client.get(path, **options) for path, options in asked))

    return asyncio.run(ask())


def test_thirty_visitors_cost_one_page_and_have_a_cookie_each(written):
    guard, addresses = written
    pages = together(guard, [("/", {})] * 30)
    assert len(addresses) == 1 and {page.text for page in pages} == {pages[0].text}
    assert len({page.headers["set-cookie"] for page in pages}) == 30
    assert all("content-security-policy" in page.headers for page in pages)


def test_who_comes_by_another_address_gets_its_page(written):
    guard, addresses = written
    guard.door = Door(proxies="127.0.0.1")
    by = [{}, {"host": "there"}, {"x-forwarded-host": "elsewhere"}, {"x-forwarded-proto": "https"}]
    pages = [get(guard, headers=headers) for headers in by * 2]
    assert len(addresses) == 4
    assert [page.text for page in pages[:4]] == [page.text for page in pages[4:]]


def test_a_page_is_written_from_what_names_it_and_nothing_else(written):
    guard, addresses = written
    for headers in ({"x-gradio-server": "http://evil.example"}, {"x-forwarded-host": "evil.example"},
                    {"forwarded": "host=evil.example"}, {"x-forwarded-proto": "ftp"}, {"cookie": "a=b"}):  # fmt: skip
        assert get(guard, headers=headers).text == get(guard).text
    assert addresses == ["http://here/"] and guard.seen == [{"host"}]
    doubled = get(guard, headers=[("host", "here"), ("host", "evil.example")])
    assert doubled.status_code == 400 and "twice" in doubled.text and len(addresses) == 1


def test_a_question_is_no_other_page_and_an_error_is_not_kept(written):
    guard, addresses = written
    for number in range(5):
        assert get(guard, f"/?x={number}").status_code == 200
    assert addresses == ["http://here/"]
    for _ in range(2):
        assert get(guard, headers={"host": "broken"}).status_code == 500
    assert len(addresses) == 3


def test_a_browser_that_can_unpack_gets_less_to_load(written):
    guard, _ = written
    packed, plain = (get(guard, headers={"accept-encoding": kind}) for kind in ("gzip", "identity"))
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 5
    assert packed.text.split()[2:] == plain.text.split()[2:]


def test_made_up_addresses_are_dear_and_nobody_waits_for_them(written, monkeypatch):
    guard, addresses = written
    monkeypatch.setattr("ui.web.limits.time", SimpleNamespace(monotonic=lambda: 0.0))  # nothing comes back meanwhile
    get(guard)
    guard.limits = Limits(Allowance(requests_per_minute=100))
    flood = [("/", {"headers": {"host": f"h{number}"}}) for number in range(60)]
    pages = together(guard, [*flood, ("/", {})])
    assert sum(page.status_code == 429 for page in pages[:60]) == 60 - 14, "800 for the address: 60 and 14 new ones"
    assert pages[60].status_code == 200 and len(addresses) == 15


def test_made_up_addresses_do_not_fill_the_memory(written):
    guard, _ = written
    together(guard, [("/", {"headers": {"host": f"h{number}"}}) for number in range(3 * KEPT)])
    assert len(guard.pages) == KEPT
