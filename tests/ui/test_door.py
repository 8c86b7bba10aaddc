"""Strangers at the door: what a visitor who writes requests by hand can do to the others. Nothing.

Raw HTTP against `python app.py` in a process of its own. Visitors come from addresses of their own (127.0.0.0/8), so
that what one of them uses up is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException

from benchmarks.visits import API, FILE, App, Visitor, sample_photos
from ui.page.page import WholeFiles
from ui.web.visitors import COOKIE, Door, Strange

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="visitors come from addresses of 127.0.0.0/8")
REQUESTS = 400  # a minute, of one browser
_next = itertools.count(2)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    limits = {"LIKENESS_REQUESTS_PER_MINUTE": str(REQUESTS), "LIKENESS_UPLOAD_MB_PER_HOUR": "50"}
    with App(tmp_path_factory.mktemp("door"), OMP_NUM_THREADS="1", **limits) as served:
        yield served
    log = served.log.read_text()
    assert "Traceback" not in log, log[-3000:]


@pytest.fixture
def come(app):
    """Makes a visitor from an address of their own, or from one that is given."""
    came: list[Visitor] = []

    def one(address: str | None = None) -> Visitor:
        came.append(Visitor(app.address, comes_from=address or f"127.0.1.{next(_next)}").open())
        return came[-1]

    yield one
    for visitor in came:
        visitor.close()


def raw(app: App, text: str, *, comes_from: str = "127.0.0.1", wait_s: float = 5.0) -> str:
    """What is answered to bytes as they stand."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=wait_s, source_address=(comes_from, 0)) as way:
        way.sendall(text.replace("\n", "\r\n").encode())
        return b"".join(iter(lambda: way.recv(65536), b"")).decode("latin-1")


def cookie_of(visitor: Visitor) -> str:
    """What the visitor's browser sends as its `Cookie` header."""
    return "; ".join(f"{name}={value}" for name, value in visitor.client.cookies.items())


def noise(mode: str = "RGB", seed: int = 0) -> bytes:
    """A PNG that nobody else sends, with a text in it as a camera leaves one."""
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("GPS", "48.2 N 16.4 E")
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (300, 300, len(mode)), np.uint8)
    Image.fromarray(pixels, mode).save(out, "PNG", pnginfo=said)
    return out.getvalue()


def upload(visitor: Visitor, *contents: bytes, name: str = "photo.png") -> list[dict]:
    files = [("files", (name, content)) for content in contents]
    sent = visitor.client.post(f"{API}/upload", files=files)
    assert sent.status_code == 200, sent.text
    return [{"path": path, "orig_name": name, "meta": FILE} for path in sent.json()]


def soon(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    """Whether `condition` comes true; the limit is for a machine that is busy with much else."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def gone(files: list[dict]) -> bool:
    """Whether these uploads are deleted soon, with their folders."""
    return soon(lambda: not any(Path(file["path"]).parent.exists() for file in files))


# ------------------------------------------------------------------------------------------------- who opens files

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\ndummy\n%ImageData: 64 64 8 1 0 1 1 \"image\"\n"
    b"(%s) (w) file closefile showpage\n"
)  # fmt: skip


@pytest.mark.parametrize("field", ["#lk-camera", "#lk-drop"])
def test_nothing_but_decode_reads_a_visitors_file(app, come, field, tmp_path):
    visitor = come()
    ran = tmp_path / "ran"
    file = upload(visitor, EPS.replace(b"%s", str(ran).encode()))[0]
    data = visitor.adding(file if field == "#lk-camera" else [file])
    told = visitor.press(field, "input" if field == "#lk-camera" else "upload", data)
    assert told["success"] and "refused:" in json.dumps(told), "photos.decode says what it is"
    assert not ran.exists() and gone([file])


def test_no_component_of_the_page_opens_a_file(monkeypatch, tmp_path):
    """Every component that takes files hands the path on as it came."""
    import builtins

    import app as program

    program.prepare_environment()
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "runs"))
    demo, _ = program.build()
    target = str(tmp_path / "photo.png")
    Path(target).write_bytes(EPS)
    real = builtins.open

    def refuse(file, *args, **options):
        assert str(file) != target, "a component opened it"
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    taken = []
    for block in demo.blocks.values():
        if not hasattr(block, "data_model") or "path" not in json.dumps(block.api_info() if block.data_model else {}):
            continue
        block.GRADIO_CACHE = str(tmp_path)
        block.file_types = None
        payload = {"path": target, "orig_name": "photo.png", "meta": FILE}
        model = block.data_model
        many = getattr(block, "file_count", "") == "multiple"
        value = model.model_validate([payload] if "ListFiles" in str(model) and many else payload)
        found = block.preprocess(value)
        assert ([str(each) for each in found] if many else str(found)) in (target, [target]), block
        taken.append(type(block).__name__)
    assert [file.name for file in tmp_path.rglob("*") if not file.is_relative_to(tmp_path / "runs")] == ["photo.png"]
    assert sorted(taken) == ["Camera", "File", "File", "File", "File", "UploadButton"]


# ------------------------------------------------------------------------------------------------- uploads go


def test_a_camera_photo_goes_when_its_event_ends(come):
    visitor = come()
    shot = upload(visitor, noise("RGBA", 1))
    told = visitor.press("#lk-camera", "input", visitor.adding(shot[0]))
    assert told["success"] and gone(shot)


def test_what_no_handler_saw_goes_too(come):
    """Two files for a field of one, a file of a kind that the field does not take, an event nobody listens to."""
    visitor = come()
    two = upload(visitor, noise(seed=2), noise(seed=3))
    visitor.press("#lk-verify-file", "upload", [two])
    assert gone(two)
    wrong = upload(visitor, b"MZ\x90", name="run.exe")
    assert not visitor.press("#lk-drop", "upload", visitor.adding(wrong))["success"]
    assert gone(wrong)
    alone = upload(visitor, noise(seed=4))
    assert visitor.join(visitor.event("#lk-drop", "upload")["id"], visitor.adding(alone)).status_code == 200
    assert gone(alone)


def test_an_upload_of_a_dropped_event_goes(come):
    """One that is cancelled before its turn, and one whose page is closed before it."""
    crowd = [come() for _ in range(6)]
    for other in crowd:  # the slots are taken
        event = other.event("#lk-drop", "upload")["id"]
        assert other.join(event, other.adding(other.send(sample_photos(8)))).status_code == 200
    visitor, leaver = come(), come()
    sent, left = upload(visitor, noise(seed=5)), upload(leaver, noise(seed=11))
    named = visitor.join(event, visitor.adding(sent)).json()["event_id"]
    body = {"session_hash": visitor.page, "fn_index": event, "event_id": named}
    assert visitor.client.post(f"{API}/cancel", json=body).status_code == 200
    assert gone(sent)
    leaver.join(event, leaver.adding(left))
    with leaver.client.stream("GET", f"{API}/queue/data", params={"session_hash": leaver.page}):
        pass
    assert gone(left)


def test_deleting_my_data_takes_every_upload_and_counts_it(come):
    visitor, other = come(), come()
    mine, theirs = upload(visitor, noise(seed=6), noise(seed=7)), upload(other, noise(seed=7))
    told = visitor.press("#lk-delete-yes", "click", [None])
    assert told["success"] and "Deleted 2 files" in json.dumps(told), "nothing of a run, two uploads"
    assert not Path(mine[0]["path"]).exists()
    assert Path(theirs[0]["path"]).exists(), "somebody else sent the same picture"
    answer = visitor.join(visitor.event("#lk-drop", "upload")["id"], visitor.adding(mine))
    assert answer.status_code == 403
    assert "nothing of yours" in json.dumps(visitor.press("#lk-delete-yes", "click", [None]))
    assert "Deleted 1 files" in json.dumps(other.press("#lk-delete-yes", "click", [None])) and gone(mine + theirs)


def test_an_upload_of_an_event_that_does_not_wait_goes(come):
    visitor = come()
    sent, again = upload(visitor, noise(seed=12)), upload(visitor, noise(seed=13))
    tick = visitor.event("", "tick")["id"]
    assert visitor.call(tick, [None, sent]).status_code < 500 and gone(sent)
    assert visitor.call(10_000, [again]).status_code < 500 and gone(again), "there is no such event"


def test_half_an_upload_leaves_nothing(app, come):
    visitor = come()
    half = b"half a photo" * 10_000  # more than is kept in memory before it is written

    def written() -> bool:
        for file in app.uploads.glob("tmp*"):
            with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
                if opened.read(12) == half[:12]:
                    return True
        return False

    head = (
        f"POST {API}/upload HTTP/1.1\nHost: 127.0.0.1:{app.port}\nCookie: {cookie_of(visitor)}\n"
        "Content-Length: 200000\nContent-Type: multipart/form-data; boundary=x\n\n"
        '--x\nContent-Disposition: form-data; name="files"; filename="a.png"\n\n'
    )
    with socket.create_connection(("127.0.0.1", app.port)) as way:
        way.sendall(head.replace("\n", "\r\n").encode() + half)
        assert soon(written)
    assert soon(lambda: not written()), "it is deleted when the visitor leaves"


@pytest.mark.parametrize("problem", [OSError(28, "no space"), asyncio.CancelledError(), MultiPartException("left")])
def test_whatever_ends_an_upload_its_half_goes(tmp_path, problem):
    async def body():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhalf a photo'
        assert list(tmp_path.iterdir())
        raise problem

    form = Headers({"content-type": "multipart/form-data; boundary=x"})
    parser = WholeFiles(form, body(), upload_dir=tmp_path, max_file_size=1e6)
    with pytest.raises(type(problem)):
        asyncio.run(parser.parse())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parts", [
    [('name="files"', 20)], [('name="files"; filename="a.png"', 5000), ('name="files"', 20)],
    [('name="other"; filename="a.png"', 5000)], [('name="files"; filename="a.png"', 5000), None],
])  # fmt: skip
def test_an_upload_is_whole_files_and_nothing_else(app, come, parts):
    """Other parts would be kept in memory, and the files beside them by nobody."""
    visitor = come()
    before = set(app.uploads.rglob("*"))
    body = b""
    for head, size in filter(None, parts):
        body += f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n{visitor.page * size}\r\n".encode()
    body += b"" if None in parts else b"--x--\r\n"
    form = {"content-type": "multipart/form-data; boundary=x"}
    answer = visitor.client.post(f"{API}/upload", content=body, headers=form)
    assert answer.status_code == 400 and "can't read" in answer.text
    assert set(app.uploads.rglob("*")) == before


# ------------------------------------------------------------------------------------------------- the page


def test_no_visitor_changes_the_page_of_the_others(app):
    for number in range(20):  # more than are kept
        raw(app, f"GET / HTTP/1.1\nHost: 127.0.0.1:{number + 1}\nConnection: close\n\n", comes_from="127.0.2.1")
    for lines in ("X-Gradio-Server: http://evil.example", "X-Forwarded-Host: evil.example",
                  "Forwarded: host=evil.example", "X-Forwarded-Prefix: /evil.example"):  # fmt: skip
        for page in ("/", "/config", "/?x=1", "/config/"):
            host = f"127.0.0.1:{app.port}"
            answer = raw(app, f"GET {page} HTTP/1.1\nHost: {host}\n{lines}\nConnection: close\n\n",
                         comes_from="127.0.2.1")  # fmt: skip
            assert "200 OK" in answer[:20] and "evil.example" not in answer
            assert "evil.example" not in httpx.get(app.address + page).text
    doubled = raw(app, "GET / HTTP/1.1\nHost: 127.0.0.1\nHost: evil.example\nConnection: close\n\n")
    assert " 400 " in doubled[:20]


def test_a_question_costs_no_new_page(app, come):
    client = come().client
    client.get("/?x=0")
    server = psutil.Process(app.process.pid)
    before = sum(server.cpu_times()[:2])
    for number in range(100):
        assert client.get(f"/?x={number}").status_code == 200
    assert sum(server.cpu_times()[:2]) - before < 1.5, "each would be written anew in 25 to 50 ms"


def test_pages_and_files_have_a_limit_too(app):
    with httpx.Client(base_url=app.address, transport=httpx.HTTPTransport(local_address="127.0.3.1")) as client:
        client.get("/")
        asked = next(n for n in range(5000) if client.get("/robots.txt").status_code == 429)
        assert asked > REQUESTS - 60, "what a page needs is let in"
        refused = next(answer for _ in range(200) if (answer := client.get("/")).status_code == 429)
        assert "Come back in" in refused.text and refused.headers["retry-after"]
        poll = {"data": [], "fn_index": 0, "session_hash": "s"}  # a slow machine earns a request back in between
        assert any(client.post(f"{API}/run/predict", json=poll).status_code == 429 for _ in range(200))
        client.cookies.clear()
        assert client.get("/").status_code == 200, "somebody else behind this address"


# ------------------------------------------------------------------------------------------------- queue and uploads


def test_one_address_can_not_fill_the_queue(app, come):
    """Four browsers of one address ask for all they may; a visitor from elsewhere is let in and soon answered."""
    crowd = [come("127.0.4.1") for _ in range(4)]
    asked = 0
    sent = []
    for visitor, _ in itertools.product(crowd, range(12)):
        large = io.BytesIO()
        Image.new("RGB", (4000, 3000), (len(sent), 200, 200)).save(large, "JPEG")
        sent.append((visitor, upload(visitor, large.getvalue())))
    event = crowd[0].event("#lk-drop", "upload")["id"]
    for visitor, files in sent:
        answer = visitor.join(event, visitor.adding(files))
        assert answer.status_code in (200, 429), answer.text
        asked += answer.status_code == 200
    assert asked == 40
    assert come().add_photos(sample_photos(4))["success"]
    waiting = sum(Path(files[0]["path"]).exists() for _, files in sent)
    assert waiting >= 24, "their turn came long before the crowd's last ones"
    for visitor in crowd:  # closing the page drops what waits
        with visitor.client.stream("GET", f"{API}/queue/data", params={"session_hash": visitor.page}):
            pass


def test_addresses_take_turns():
    from types import SimpleNamespace

    from ui.web.turns import Turns

    def event(name: str, address: str):
        request = SimpleNamespace(client=SimpleNamespace(host=address))
        return SimpleNamespace(_id=name, request=request, concurrency_id="photos")

    queue = object.__new__(Turns)
    waiting = [event(f"a{n}", "1.1.1.1") for n in range(3)] + [event("b0", "2.2.2.2"), event("c0", "3.3.3.3")]
    queue.event_queue_per_concurrency_id = {"photos": SimpleNamespace(queue=waiting)}
    queue.active_jobs = [None, [event("running", "2.2.2.2")]]
    queue._take_turns("photos")
    assert [each._id for each in waiting] == ["a0", "c0", "a1", "b0", "a2"]
    assert queue.working_on() == {"a0", "a1", "a2", "b0", "c0", "running"}


def test_one_address_can_not_hold_every_slot():
    from types import SimpleNamespace

    from ui.web.turns import Turns

    def event(name: str, address: str):
        request = SimpleNamespace(client=SimpleNamespace(host=address))
        return SimpleNamespace(_id=name, request=request, concurrency_id="photos", fn=SimpleNamespace(batch=False))

    queue = object.__new__(Turns)
    crowd = [event(f"a{number}", "1.1.1.1") for number in range(4)]
    slots = SimpleNamespace(queue=[crowd[3]], concurrency_limit=4, current_concurrency=3)
    queue.event_queue_per_concurrency_id = {"photos": slots}
    queue.active_jobs = [*([each] for each in crowd[:3]), None]
    assert queue.get_events() is None and slots.queue == [crowd[3]]
    other = event("b0", "2.2.2.2")
    slots.queue.append(other)
    assert queue.get_events() == ([other], False, "photos") and slots.queue == [crowd[3]]
    slots.current_concurrency, queue.active_jobs = 2, [*([each] for each in crowd[:2]), None, None]
    assert queue.get_events() == ([crowd[3]], False, "photos") and not slots.queue


def test_what_is_announced_and_does_not_come_costs_nobody_anything(app, come):
    crowd = [come("127.0.5.1") for _ in range(8)]
    ways = []
    for visitor in crowd:
        way = socket.create_connection(("127.0.0.1", app.port), source_address=("127.0.5.1", 0))
        head = (
            f"POST {API}/upload HTTP/1.1\nHost: 127.0.0.1:{app.port}\nCookie: {cookie_of(visitor)}\n"
            "Content-Length: 50000000\nContent-Type: multipart/form-data; boundary=x\n\n"
        )
        way.sendall(head.replace("\n", "\r\n").encode())
        ways.append(way)
    time.sleep(0.5)
    assert upload(come("127.0.5.1"), noise(seed=8)), "a ninth browser of the address"
    for way in ways:
        way.close()
    for visitor in crowd:
        assert upload(visitor, noise(seed=9))


@pytest.mark.parametrize("size", ["999999999999999", "51000000", "1000000000000000", "-1", "1e3", "\u0663"])
def test_an_absurd_length_is_refused_at_once(app, come, size):
    cookie = cookie_of(come())
    answer = raw(
        app,
        f"POST {API}/upload HTTP/1.1\nHost: 127.0.0.1:{app.port}\nCookie: {cookie}\nContent-Length: {size}\n"
        "Connection: close\nContent-Type: multipart/form-data; boundary=x\n\n",
    )
    assert answer.split(" ")[1] in ("400", "411", "413"), answer[:200]


def test_more_than_was_left_is_cut_off(app, come):
    visitor = come()
    big = bytes(20_000_000)
    for _ in range(2):
        upload(visitor, big, name="a.zip")
    refused = visitor.client.post(f"{API}/upload", files=[("files", ("a.zip", big))])
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 60


# ------------------------------------------------------------------------------------------------- other sites, proxies


def test_another_sites_page_can_not_drive_the_app(app, come):
    client = come().client
    evil = {"origin": "http://evil.example", "x-forwarded-host": "evil.example"}
    for headers in (evil, {"origin": "null"}, {"origin": "http://127.0.0.1.evil.example"}, {"origin": ""},
                    {"sec-fetch-site": "cross-site"}):  # fmt: skip
        answer = client.post(f"{API}/queue/join", json={"data": []}, headers=headers)
        assert answer.status_code == 403 and "other sites" in answer.text, headers
    for host in (f"127.0.0.1:{app.port}", "evil.example"):
        preflight = {"host": host, "origin": "http://evil.example", "access-control-request-method": "POST"}
        answer = client.options(f"{API}/queue/join", headers=preflight)
        assert answer.status_code in (400, 403)
        answers = [answer, client.get(f"{API}/app_id", headers={"origin": "http://evil.example"})]
        assert not any(name.startswith("access-control-") for each in answers for name in each.headers)


def test_a_name_that_leads_to_this_machine_is_not_this_machine(app):
    """Another site may let its own name point to 127.0.0.1, and is the same origin then."""
    names = {"rebound.example": 400, "localhost:80": 200, "127.0.0.1": 200, "[::1]:7860": 200, "0.0.0.0:7860": 200}
    for host, status in names.items():
        assert httpx.get(app.address, headers={"host": host}).status_code == status, host


def test_a_name_that_leads_to_the_network_is_not_the_app(monkeypatch):
    """Another site may let its own name point to 192.168.1.5 too; addresses and a network's own names can't be its."""

    def served(host: str, server: str = "192.168.1.5") -> bool:
        try:
            return bool(read(Door(), server=server, host=host, client="192.168.1.9"))
        except Strange as problem:
            assert "LIKENESS_HOSTS" in str(problem)
            return False

    for host in ("192.168.1.5:7860", "[fe80::1]:7860", "localhost", "studio", "studio:7860", "studio.local", ""):
        assert served(host), host
    names = (
        "rebound.example",
        "rebound.example.",
        "rebound.example:7860",
        "192.168.1.5.rebound.example",
        "local.example",
    )
    assert not any(map(served, names)) and not served("studio.local", "127.0.0.1")
    monkeypatch.setenv("LIKENESS_HOSTS", "rebound.example, Photos.Example")
    assert served("rebound.example:7860") and served("photos.example") and served("photos.example", "127.0.0.1")
    assert not served("other.example")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "other.example")
    assert served("other.example"), "the name it listens by"


def read(door: Door, *, client: str = "127.0.0.1", server: str = "10.0.0.9", **headers: str) -> dict:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "scheme": "http", "client": (client, 1), "server": (server, 80), "headers": named}
    return dict(asyncio.run(door.read(scope)))


def test_a_proxy_is_believed_when_the_operator_says_so(monkeypatch):
    said = {"x_forwarded_for": "6.6.6.6, 9.9.9.9", "x_forwarded_host": "forged.example, real.example", "host": "inner"}
    alone = read(Door(), **said)
    assert alone["client"][0] == "127.0.0.1" and dict(alone["headers"]) == {b"host": b"inner"}
    monkeypatch.setenv("LIKENESS_PROXIES", "127.0.0.1,10.1.0.0/16")
    told = read(Door(), **said)
    assert told["client"][0] == "9.9.9.9", "the last one that no proxy of ours wrote"
    assert dict(told["headers"])[b"x-forwarded-host"] == b"real.example"
    assert read(Door(), **said, client="8.8.8.8")["client"][0] == "8.8.8.8", "who is no proxy is not believed"
    monkeypatch.delenv("LIKENESS_PROXIES")
    monkeypatch.setenv("SPACE_ID", "me/likeness")
    assert read(Door(), **said, client="10.20.30.40")["client"][0] == "9.9.9.9", "a Space is behind the host's proxy"


def test_an_ipv6_network_is_one_address_and_headers_come_once():
    door = Door(proxies="")
    one, two, other = (
        door.visitor(read(door, client=c)).address for c in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
    )
    assert one == two != other and door.visitor(read(door, client="::ffff:1.2.3.4")).address == "1.2.3.4"
    for name in (b"host", b"origin", b"cookie", b"content-length", b"content-type"):
        scope = {"type": "http", "client": None, "server": None, "headers": [(name, b"1"), (name.upper(), b"1")]}
        with pytest.raises(Strange, match="twice"):
            asyncio.run(door.read(scope))


# ------------------------------------------------------------------------------------------------- ids


def test_names_in_addresses_take_nothing_from_anybody(app, come):
    owner, stranger = come(), come()
    file = upload(owner, noise(seed=10))
    for number in range(21):
        names = "&".join(f"session_hash=a{number}-{n}" for n in range(2500))
        for route in ("info", "app_id", "startup-events"):
            stranger.client.get(f"{API}/{route}?{names}")
        assert stranger.client.get(f"{API}/queue/data?{names}").status_code == 400
    for name in ("x" * 65, "", "a b", "../x", "%00"):
        assert stranger.client.get(f"{API}/queue/data", params={"session_hash": name}).status_code == 400
        assert stranger.join(0, [], session_hash=name).status_code == 400
    assert stranger.client.get(f"{API}/queue/data").status_code == 400
    assert stranger.client.get(f"{API}/heartbeat/{'x' * 65}").status_code == 400
    told = owner.press("#lk-drop", "upload", owner.adding(file))
    assert told["success"], "the file is still its owner's"


def test_a_doubled_name_does_not_pass_the_waiting_limit(come):
    visitor = come()
    event = visitor.event("#lk-style", "click")["id"]
    codes = []
    for number in range(15):
        codes.append(visitor.join(event, [None], session_hash=f"page{number}").status_code)
        doubled = visitor.client.get(f"{API}/queue/data?session_hash=page{number}&session_hash=none")
        assert doubled.status_code == 400
    assert codes == [200] * 10 + [429] * 5


def test_who_has_no_cookie_has_nothing(app, come):
    owner = come()
    owner.add_photos(sample_photos(5))
    owner.poll()
    link = min(owner.media)
    assert owner.client.get("/" + link).status_code == 200
    with httpx.Client(base_url=app.address) as bare:
        assert bare.get("/" + link).status_code == 403
        sent = bare.post(f"{API}/upload", files=[("files", ("a.png", noise()))])
        assert sent.status_code == 403 and "/config" in sent.text
        for ask in (bare.get(f"{API}/queue/data?session_hash=s"), bare.get(f"{API}/heartbeat/s"),
                    bare.post(f"{API}/queue/join", json={"data": [], "fn_index": 0, "session_hash": "s"})):  # fmt: skip
            assert ask.status_code == 403 and "cookie" in ask.text
        assert COOKIE in bare.get("/config").headers["set-cookie"], "a program gets its key here"
        assert bare.post(f"{API}/upload", files=[("files", ("a.png", noise()))]).status_code == 200


def test_browsers_that_keep_no_cookie_are_told_apart_on_a_hosted_space(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "me/likeness")
    door = Door()

    def browser(client: str, agent: str) -> str:
        return door.visitor(read(door, client=client, user_agent=agent)).browser

    first = browser("9.9.9.9", "Safari")
    assert first and first == browser("9.9.9.9", "Safari")
    assert len({first, browser("9.9.9.8", "Safari"), browser("9.9.9.9", "Firefox")}) == 3
    forged = read(door, client="9.9.9.8", x_likeness_browser=first)
    assert door.visitor(forged).browser != first and b"x-likeness-browser" not in dict(forged["headers"])


def test_only_ones_own_event_can_be_cancelled(app, come):
    owner, stranger = come(), come()
    files = owner.send(sample_photos(6))
    event = owner.event("#lk-drop", "upload")["id"]
    named = owner.join(event, owner.adding(files)).json()["event_id"]
    for page in (stranger.page, owner.page, "x"):
        body = {"session_hash": page, "fn_index": event, "event_id": named}
        assert stranger.client.post(f"{API}/cancel", json=body).status_code == 200
    told = owner.stream()[-1]
    assert told["event_id"] == named and told["success"] and "media/" in json.dumps(told)


# ------------------------------------------------------------------------------------------------- runs


def test_choosing_makes_no_run_and_is_kept_for_the_photos(app, come):
    visitor = come()
    before = set(app.runs.iterdir())
    chosen = visitor.event("#lk-consent", "input")["inputs"][1:]
    base = visitor.values[chosen[1]]
    for number in range(20):
        told = visitor.press("#lk-consent", "input", [None, "woman", base, number % 2 == 0])
        assert told["success"]
    assert set(app.runs.iterdir()) == before
    told = visitor.press("#lk-drop", "upload", [None, visitor.send(sample_photos(5)), "woman", base, True])
    assert told["success"] and visitor.capability
    (run,) = [folder for folder in set(app.runs.iterdir()) - before if (folder / "incoming.json").exists()]
    assert list(run.rglob("consent.json")), "consent was given before the photos came"
    record = max((app.runs / "sessions").glob("*.json"), key=os.path.getmtime)
    assert json.loads(record.read_text())["choices"]["class_word"] == "woman"
