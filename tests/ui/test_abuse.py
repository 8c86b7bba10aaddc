"""What a stranger with curl can do to the app that is served: nothing, and they are told so in a sentence.

Raw HTTP against `python app.py` in a process of its own. Laws: no request gets at a file or at another's run; no junk
ends in a 5xx, in a traceback or in a change; a flood is refused and the others are still served.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import socket
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.visits import API, App, Visitor, quantiles, sample_photos
from ui.web.guard import BODY_LIMIT
from ui.web.limits import Allowance, Limits, Refused, TooMuch
from ui.web.visitors import Visitor as Who

pytestmark = pytest.mark.skipif(os.name != "posix", reason="counts descriptors and plants links")
SERVED_S = 1.0  # within this the others are answered while somebody floods (p95)
# Most of what follows comes from one address: the limits of one browser are what is tested here.
LIMITS = {"LIKENESS_EVENTS_PER_MINUTE": "3000", "LIKENESS_UPLOAD_MB_PER_HOUR": "120", "LIKENESS_MAX_UPLOADS": "3"}
LIMITS |= {
    "LIKENESS_REQUESTS_PER_MINUTE": "60000",
    "LIKENESS_IMPORT_MB": "25",
}  # the largest file of all that the page takes


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    base = tmp_path_factory.mktemp("bases") / "face-base"  # taken for a portrait base; nothing here loads it
    for part, config in (("unet", {"sample_size": 16}), ("vae", {"block_out_channels": [8, 8, 16, 16]})):
        (base / part).mkdir(parents=True)
        (base / part / "config.json").write_text(json.dumps(config))
    (base / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    facts = {"vocabulary": ["portrait", "of"], "subject_token": "<subject>", "subject_vectors": 4}
    (base / "likeness.json").write_text(json.dumps(facts))
    with App(tmp_path_factory.mktemp("app"), LIKENESS_BASE=str(base), OMP_NUM_THREADS="1", **LIMITS) as served:
        yield served
        log = served.log.read_text()
    assert "Traceback" not in log, log[-3000:]
    assert "etc/passwd" not in log, "what a browser sent is in no log"


@pytest.fixture(scope="module")
def victim(app):
    """Somebody with photos of their own."""
    visitor = Visitor(app.address).open()
    done = visitor.add_photos(sample_photos(6))
    assert done["success"], done
    visitor.poll()
    assert visitor.media and visitor.capability
    return visitor


@pytest.fixture
def stranger(app):
    visitor = Visitor(app.address).open()
    yield visitor
    visitor.close()


def everything(folder: Path) -> dict[str, str]:
    """Every file below `folder` and its digest."""

    def content(file: Path) -> bytes:
        if file.parent.name != "sessions":
            return file.read_bytes()
        record = json.loads(file.read_text())  # how many of the best to show is a matter of taste: any number will do
        assert record["choices"].pop("keep", 0) in range(25)
        return json.dumps(record).encode()

    return {
        str(file.relative_to(folder)): hashlib.sha256(content(file)).hexdigest()
        for file in sorted(folder.rglob("*"))
        # how fast this machine is, and SQLite's own notes while somebody reads: nothing of anybody
        if file.is_file() and file.name not in ("paces.json", ".photos") and not file.name.endswith(("-shm", "-wal"))
    }


def small(answer: httpx.Response) -> bool:
    """Whether an answer is a refusal with a sentence for a person."""
    return 400 <= answer.status_code < 500 and 5 < len(answer.text) < 500 and "Traceback" not in answer.text


# ------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def secret(app):
    """A file that only this machine may read, and links to it where the app keeps its own."""
    file = app.home / "secret.txt"
    file.write_text("the-secret")
    app.uploads.mkdir(exist_ok=True)
    for folder in (app.uploads, app.runs):
        (folder / "link.png").symlink_to(file)
    return file


def test_no_address_leads_out_of_the_app(app, victim, stranger, secret):
    outside = [
        "/etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd",
        "%252e%252e%252fetc%252fpasswd", "..%5c..%5cetc%5cpasswd", "a%00.png", "%00", "file:///etc/passwd",
        "file%3a%2f%2f%2fetc%2fpasswd", "http://127.0.0.1:22/", f"http://127.0.0.1:{app.port}/config",
        "http://169.254.169.254/latest/meta-data/", "//169.254.169.254/", str(secret), str(app.uploads / "link.png"),
        str(app.runs / "link.png"), "link.png", "x" * 3000, "x" * 256, "🙂" * 64, "🙂" * 50, "\u202egnp.exe",
    ]  # fmt: skip
    link = sorted(victim.media)[0]
    expires, signature, _ = link.removeprefix("media/").split("/", 2)
    roots = ["/", "/media/", f"/media/{expires}/{signature}/", "/assets/", "/static/", "/svelte/", f"{API}/file=",
             f"{API}/file/", "/file=", f"{API}/proxy=", f"{API}/stream/", f"{API}/custom_component/"]  # fmt: skip
    streams = [f"{API}/upload_progress?upload_id=", f"{API}/heartbeat/", f"{API}/queue/data?session_hash="]
    targets = [root + name for root in roots for name in outside]
    targets += [root + name for root in streams for name in ("../x", "%2fetc%2fpasswd", "%00", str(secret))]
    for target in targets:
        patience = httpx.Timeout(20, read=0.3 if target.startswith(tuple(streams)) else 20)
        try:
            answer = stranger.client.send(raw(stranger, target, timeout=patience))
        except httpx.ReadTimeout:  # an event stream of the stranger's own page of that name: it says nothing
            continue
        assert answer.status_code < 500, (target, answer.status_code)
        assert "the-secret" not in answer.text and "root:x:" not in answer.text, target
        assert "ami-id" not in answer.text and "SSH-2.0" not in answer.text


def raw(visitor: Visitor, target: str, *, timeout: httpx.Timeout, method: str = "GET") -> httpx.Request:
    """The address exactly as written: httpx would tidy the dots away."""
    request = visitor.client.build_request(method, "/", timeout=timeout)
    request.url = request.url.copy_with(raw_path=quote(target, safe="/:?=&%.").encode())
    return request


def test_a_file_that_nobody_uploaded_is_no_input(app, victim, stranger, secret):
    theirs = victim.send(sample_photos(1))[0]["path"]
    add = stranger.event("#lk-drop", "upload")["id"]
    for path in (theirs, "/etc/passwd", str(secret), str(app.uploads / "link.png"), "../../etc/passwd", "a\x00.png",
                 "http://169.254.169.254/x.png",
                 f"http://127.0.0.1:{app.port}/config", "file:///etc/passwd"):  # fmt: skip
        for shape in ({"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path},
                      {"path": path, "url": path, "is_stream": True}):  # fmt: skip
            answer = stranger.join(add, stranger.adding([shape]))
            assert answer.status_code == 403 and small(answer), (path, answer.text)
    for url in ("http://169.254.169.254/x.png", "file:///etc/passwd"):
        assert (
            stranger.join(add, stranger.adding([{"url": url, "meta": {"_type": "gradio.FileData"}}])).status_code == 200
        )
        told = stranger.stream()[-1]
        assert not told["success"] and "can't read" in told["output"]["error"]


def test_component_functions_and_unknown_routes_are_closed(stranger):
    for method, route in (
        ("POST", "component_server"), ("GET", "openapi.json"), ("GET", "monitoring/summary"), ("POST", "vibe-edit"),
        ("GET", "vibe-code"), ("POST", "process_recording"), ("GET", "queue/status"), ("GET", "profiling/traces"),
        ("GET", "dev/reload"), ("GET", "token"), ("POST", "call/add"), ("POST", "api/add"), ("GET", "runs"),
        ("POST", "stream/x"), ("GET", "deep_link?session_hash=x"),
    ):  # fmt: skip
        assert stranger.client.request(method, f"{API}/{route}").status_code == 403, route


def test_a_strangers_ids_open_nothing(app, victim, stranger):
    event = victim.join(victim.event("#lk-style", "click")["id"], [None]).json()["event_id"]
    before = everything(app.runs)
    heard = stranger.client.get(f"{API}/queue/data?session_hash={victim.page}").text
    assert "process_" not in heard and "session_not_found" in heard, "a page of that name, but the stranger's own"
    for route in ("cancel", "reset"):
        body = {"session_hash": victim.page, "fn_index": 2, "event_id": event}
        assert stranger.client.post(f"{API}/{route}", json=body).status_code == 200, "as for an event that has ended"
    for link in victim.media:
        assert stranger.client.get("/" + link).status_code == 403
        assert victim.client.get("/" + link).status_code == 200
    stranger.page = victim.page
    assert not any(link in stranger.poll().text + stranger.load().text for link in victim.media)
    assert everything(app.runs) == before
    assert victim.stream()[-1]["event_id"] == event, "the victim's event was not cancelled"


# ------------------------------------------------------------------------------------------------- junk

JUNK = [
    "../../etc/passwd", -1, 10**17, 1e308, -0.5, True, [], {}, [[]],
    {"path": None, "meta": {"_type": "gradio.FileData"}},
    {"__type__": "update", "value": 1}, "x" * 5000, "\u202e<script>\x00🙂", ["a"] * 300, [{"a": [None]}],
]  # fmt: skip


ALONE = ("forget", "use_sample", "open_example", "use_own", "make")  # these act on the capability alone


def test_junk_in_any_place_of_any_event_is_refused_in_words_and_changes_nothing(app, victim):
    """Every event of the page, with the visitor's own capability, one value at a time replaced."""
    before = everything(app.runs)
    sent, seen = 0, set()
    for event in victim.config["dependencies"]:
        handler = (re.sub(r"_\d+$", "", event["api_name"]), len(event["inputs"]))
        if handler in seen and "lambda" not in event["api_name"]:
            continue  # one handler behind several controls
        seen.add(handler)
        takes, own = len(event["inputs"]), victim.capability
        cases = [[], [None] * (takes + 3), JUNK]
        if event["api_name"] not in ALONE:
            good = [own, *[None] * (takes - 1)]
            cases += [[*good[:place], junk, *good[place + 1 :]] for place in range(takes) for junk in JUNK]
        for data in cases:
            if event["api_name"] in ALONE and len(data) >= takes:
                continue
            sent += 1
            if event["queue"]:
                answer = victim.join(event["id"], data)
                if answer.status_code == 200:
                    told = victim.stream()[-1]
                    said = str((told.get("output") or {}).get("error"))
                    assert told["success"] or len(said) > 10, (event["api_name"], data, told)
                    assert "not in the list of choices" not in said and "Error(" not in said
                    continue
            else:
                answer = victim.call(event["id"], data)
            assert answer.status_code < 500, (event["api_name"], data, answer.text)
            assert answer.status_code == 200 or small(answer), (event["api_name"], data, answer.text)
    assert sent > 300
    assert everything(app.runs) == before, "no run was made, none was changed"


@pytest.mark.parametrize("pressed", [[], 7, "x", {"photo": {}, "action": []}, {"action": "remove"}, {"action": "keep"},
                                     {"photo": "../x", "action": "remove"}, {"photo": "000.png", "action": "caption",
                                                                              "value": {"a": 1}}])  # fmt: skip
def test_junk_buttons_of_a_photo_are_refused(app, victim, pressed):
    before = everything(app.runs)
    told = victim.press("#lk-cards", "click", [victim.capability], event_data=pressed)
    assert not told["success"] and re.search("Reload the page|no other braces", told["output"]["error"]), told
    assert everything(app.runs) == before


@pytest.mark.parametrize("body", [
    b"", b"null", b"[]", b"7", b'"x"', b"{", b'{"data": NaN}', b'{"data":[Infinity],"fn_index":25,"session_hash":"n"}',
    b'{"data":[-Infinity,NaN],"fn_index":25,"session_hash":"n"}', b'{"data":{},"fn_index":25,"session_hash":"n"}',
    b'{"data":[],"fn_index":"25","session_hash":"n"}', b'{"data":[],"fn_index":true,"session_hash":"n"}',
    b'{"data":[],"fn_index":99999,"session_hash":"n"}', b'{"data":[],"fn_index":-1,"session_hash":"n"}',
    b'{"data":[],"fn_index":25,"session_hash":["n"]}', b'{"data":[],"fn_index":25,"session_hash":{"n":1}}',
    b'{"data":[1e999],"fn_index":25,"session_hash":"n"}', b'{"data":[],"session_hash":"n"}', b'{"fn_index":25}',
    b'{"data":[' + b"9" * 5000 + b'],"fn_index":25,"session_hash":"n"}', b"\xff\xfe\x00",
    b'{"data":' + b"[" * 5000 + b"]" * 5000 + b',"fn_index":25,"session_hash":"n"}', b"[" * 200_000,
    b'{"data":[' + b'{"a":' * 60 + b"1" + b"}" * 60 + b'],"fn_index":25,"session_hash":"n"}',
    b'{"data":["' + b"x" * (10 << 20) + b'"],"fn_index":25,"session_hash":"n"}',
])  # fmt: skip
def test_a_body_that_is_no_event_is_refused(stranger, body):
    for route in ("run/predict", "queue/join", "cancel", "reset"):
        answer = stranger.client.post(f"{API}/{route}", content=body, headers={"content-type": "application/json"})
        allowed = answer.status_code == 200 and route in ("cancel", "reset")  # they answer the same for nothing at all
        allowed |= (
            answer.status_code == 200 and b"1e999" in body
        )  # a number as any other to a poll: it is no capability
        assert allowed or 400 <= answer.status_code < 500, (route, body[:60], answer.status_code, answer.text[:200])
        assert len(body) <= BODY_LIMIT or answer.status_code == 413
        assert "Traceback" not in answer.text


# ------------------------------------------------------------------------------------------------- uploads


def picture(width: int = 64, height: int = 64, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


def bomb() -> bytes:
    """12,000 x 12,000 pixels in 18 kB."""
    out = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(out, "PNG")
    return out.getvalue()


def packed(names: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return out.getvalue()


def hand_in(visitor: Visitor, files: list[tuple[str, bytes]]) -> dict:
    """Upload and add files, whatever they are; what the page is told."""
    sent = visitor.client.post(f"{API}/upload", files=[("files", (name, content)) for name, content in files])
    assert sent.status_code == 200, sent.text
    data = [{"path": path, "orig_name": "x", "meta": {"_type": "gradio.FileData"}} for path in sent.json()]
    return visitor.press("#lk-drop", "upload", visitor.adding(data))


def test_hostile_files_are_named_and_the_server_stays_small(app, stranger):
    server = psutil.Process(app.process.pid)
    hand_in(stranger, [("warm.png", picture())])  # whatever is loaded once is loaded
    before = server.memory_info().rss
    whole = picture(200, 200, "JPEG")
    cases = {
        "page.png": b"<html><script>alert(1)</script></html>", "empty.png": b"", "cut.jpg": whole[:2000],
        "bomb.png": bomb(), "a.svg": b"<svg onload='alert(1)'/>",
        "out.zip": packed({"../../../../tmp/lk-out.png": picture()}), "zeros.zip": packed({"a.png": bytes(80_000_000)}),
        "many.zip": packed({f"{n}.png": b"x" for n in range(3000)}), "no.zip": b"PK\x03\x04nothing",
        "nested.zip": packed({"inner.zip": packed({"a.png": picture()})}), "head.gif": b"GIF89a", "x.webp": b"RIFF" * 9,
    }  # fmt: skip
    for name, content in cases.items():
        began = time.monotonic()
        told = hand_in(stranger, [(name, content)])
        took = time.monotonic() - began
        text = json.dumps(told)
        assert "<script>alert" not in text and "onload='" not in text
        if name.endswith(".zip"):
            assert not told["success"] and name in told["output"]["error"], (name, told)
        else:
            assert told["success"] and "refused:" in text, (name, text[:300])
        assert took < 10, (name, took)
    told = hand_in(stranger, [("run.exe", b"MZ\x90\x00")])
    assert not told["success"] and "file type" in told["output"]["error"].lower()
    assert not Path("/tmp/lk-out.png").exists()
    assert server.memory_info().rss - before < 300 << 20


def test_two_people_who_send_the_same_photo_at_once_are_both_answered(app):
    """Gradio keeps equal bytes in one folder, which whoever is done first tidies away."""
    told: list[dict] = []

    def one() -> None:
        visitor = Visitor(app.address).open()
        told.append(visitor.add_photos(sample_photos(3)))
        visitor.close()

    people = [threading.Thread(target=one) for _ in range(3)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert [each["success"] for each in told] == [True] * 3, told


@pytest.mark.parametrize("name", [
    "x" * 300 + ".png", "🙂" * 120 + ".png", "a\x00b.png", "\u202egnp.exe.png", "../../etc/passwd.png",
    "/etc/cron.d/x.png", "..", ".", "con.png",
    "a\r\nSet-Cookie: x=1.png", '"><img src=x onerror=alert(1)>.png', " .png", "a/../../b.png",
    "%2e%2e%2fx.png",
])  # fmt: skip
def test_no_name_of_a_file_does_harm(app, stranger, name):
    before = everything(app.runs).keys()
    sent = stranger.client.post(f"{API}/upload", files=[("files", (name, picture()))])
    assert sent.status_code < 500, sent.text
    assert "set-cookie" not in {key.lower() for key in sent.headers}
    if sent.status_code == 200:
        for path in sent.json():
            assert Path(path).resolve().is_relative_to(app.uploads.resolve()), path
        data = [{"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}} for path in sent.json()]
        told = json.dumps(stranger.press("#lk-drop", "upload", stranger.adding(data)))
        assert "<img src=x" not in told
    outside = {file.name for file in app.home.iterdir()} - {"runs", "uploads", "app.log", "secret.txt"}
    assert not outside and before <= everything(app.runs).keys()


def test_uploads_that_are_too_large_too_many_or_broken_are_refused(app, stranger):
    post = stranger.client.post
    large = post(f"{API}/upload", files=[("files", ("a.png", bytes(27_000_000)))])
    assert large.status_code == 413
    sent = post(f"{API}/upload", files=[("files", (f"{n}.png", b"x")) for n in range(1000)])
    assert all(map(os.path.lexists, sent.json()))
    data = [{"path": path, "orig_name": "x", "meta": {"_type": "gradio.FileData"}} for path in sent.json()]
    told = stranger.press("#lk-drop", "upload", stranger.adding(data))
    assert not told["success"] and "At most 30" in told["output"]["error"]
    deadline = time.monotonic() + 60
    while any(map(os.path.lexists, sent.json())):
        assert time.monotonic() < deadline, "what was not taken in is gone"
        time.sleep(0.2)
    assert small(post(f"{API}/upload", files=[("files", (f"{n}.png", b"x")) for n in range(1001)]))
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"", b"junk", b"--x\r\n\r\n--x--", b'--x\r\nContent-Disposition: form-data\r\n\r\ny\r\n--x--\r\n',
                 b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nno file\r\n--x--\r\n',
                 b"--x\r\n" + b"A: " + b"b" * 20_000 + b"\r\n\r\n--x--"):  # fmt: skip
        answer = post(f"{API}/upload", content=body, headers=form)
        assert answer.status_code < 500, (body[:60], answer.status_code, answer.text)
    assert post(f"{API}/upload", content=b"x", headers={"content-type": "text/plain"}).status_code == 400
    chunked = post(f"{API}/upload", content=(piece for piece in [b"x"] * 3), headers=form)
    assert chunked.status_code == 411 and "Content-Length" in chunked.text
    # an hour's allowance: refused before it is read, with the time to come back
    answers = [post(f"{API}/upload", files=[("files", ("a.bin", bytes(20_000_000)))]) for _ in range(6)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and "Come back in" in refused[0].text and int(refused[0].headers["retry-after"]) > 60


# ------------------------------------------------------------------------------------------------- floods


def others_are_served(app: App, until: threading.Event) -> dict[str, float]:
    """What somebody else waits for their page meanwhile."""
    other = Visitor(app.address).open()
    waited = []
    while not until.is_set() or len(waited) < 20:
        began = time.monotonic()
        assert other.poll().status_code == 200
        waited.append(time.monotonic() - began)
        time.sleep(0.02)
    assert other.press("#lk-style", "click", [None])["success"], "their click is worked on"
    other.close()
    return quantiles(waited)


def flood(app: App, job, count: int, threads: int = 20) -> tuple[list, dict[str, float]]:
    """`count` calls of `job(number)` from `threads` threads; their results, and how the others fared."""
    results, numbers, done = [], iter(range(count)), threading.Event()

    def work() -> None:
        for number in numbers_of(numbers):
            results.append(job(number))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    threading.Thread(target=lambda: ([worker.join() for worker in workers], done.set())).start()
    fared = others_are_served(app, done)
    return results, fared


_turn = threading.Lock()


def numbers_of(numbers):
    while True:
        with _turn:
            number = next(numbers, None)
        if number is None:
            return
        yield number


def test_two_hundred_events_at_once_of_one_visitor_leave_room_for_the_others(app, stranger):
    package = stranger.event("#lk-style", "click")["id"]

    def one(number: int) -> httpx.Response:
        return stranger.join(package, [None])  # and nobody ever reads the answers

    answers, fared = flood(app, one, 200)
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 429, 503} and 429 in codes, codes
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "try again" in refused.json()["detail"] and refused.headers["retry-after"]
    assert sum(answer.status_code == 200 for answer in answers) <= 10
    assert fared["p95_ms"] < 1000 * SERVED_S, fared


def test_slow_uploads_of_one_visitor_hold_up_nobody(app, stranger):
    """Ten connections that promise a megabyte each and send a byte now and then."""
    cookie = "; ".join(f"{name}={value}" for name, value in stranger.client.cookies.items())
    head = (f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1:{app.port}\r\nCookie: {cookie}\r\n"
            "Content-Length: 1000000\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n").encode()  # fmt: skip
    slow = []
    for _ in range(10):
        connection = socket.create_connection(("127.0.0.1", app.port), timeout=5)
        connection.sendall(head + b"--x\r\n")
        slow.append(connection)
    done = threading.Event()
    threading.Timer(1.0, done.set).start()
    fared = others_are_served(app, done)
    assert fared["p95_ms"] < 1000 * SERVED_S, fared
    answers = []
    for connection in slow:
        connection.settimeout(0.2)
        try:
            answers.append(connection.recv(4000).decode())
        except TimeoutError:
            answers.append("")
    assert sum("429" in answer for answer in answers) == 7, "three may be under way, the others are refused at once"
    assert all("too many requests open" in answer for answer in answers if answer)
    for connection in slow:
        connection.close()
    deadline = time.monotonic() + 10
    while stranger.client.post(f"{API}/upload", files=[("files", ("a.png", b"x"))]).status_code == 429:
        assert time.monotonic() < deadline, "closed connections still count"
        time.sleep(0.1)


@pytest.mark.slow
def test_an_upload_that_stops_in_the_middle_is_given_up(app, stranger):
    from ui.web.uploads import SILENCE_S

    cookie = "; ".join(f"{name}={value}" for name, value in stranger.client.cookies.items())
    with socket.create_connection(("127.0.0.1", app.port), timeout=SILENCE_S + 15) as connection:
        connection.sendall(
            f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1:{app.port}\r\nCookie: {cookie}\r\n"
            "Content-Length: 100000\r\n"
            "Connection: close\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(4000), b"")).decode()
    assert " 408 " in answer.splitlines()[0] and "too slowly" in answer


@pytest.mark.slow
def test_random_bytes_at_every_open_route(app, stranger):
    chance = random.Random(0)
    routes = ["queue/join", "run/predict", "cancel", "reset", "upload", "queue/data", "upload_progress", "heartbeat/x",
              "info", "app_id", "theme.css", "startup-events"]  # fmt: skip
    for _ in range(3000):
        route, method = (
            chance.choice(routes),
            chance.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
        )
        if method == "GET" and route in ("queue/data", "heartbeat/x", "upload_progress"):
            continue  # streams
        content = chance.randbytes(chance.choice([0, 1, 50, 3000]))
        kind = chance.choice(["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
        answer = stranger.client.request(method, f"{API}/{route}", content=content, headers={"content-type": kind})
        assert answer.status_code < 500, (method, route, answer.status_code, answer.text[:200])


# ------------------------------------------------------------------------------------------------- the limits alone


def test_limits_count_a_browser_and_its_address():
    limits = Limits(Allowance(max_in_flight=2, max_waiting=2, events_per_minute=5, upload_mb_per_hour=1))
    me, you, other = Who("me", "1.2.3.4"), Who("you", "1.2.3.4"), Who("other", "5.6.7.8")
    with contextlib.ExitStack() as held:
        for who in (me, me, you):
            held.enter_context(limits.hold("in_flight", who))
        with pytest.raises(TooMuch, match="too many requests open"):
            held.enter_context(limits.hold("in_flight", me))
    with limits.hold("in_flight", me):
        pass
    for event in ("a", "b"):
        limits.asked(me, limits.spend_event(me), event, "page")
    with pytest.raises(TooMuch, match="Wait until one is done"):
        limits.spend_event(me)
    limits.spend_event(you)
    limits.answered(me, event="a")
    limits.answered(me, event=limits.spend_event(me))  # was not let in after all
    limits.answered(me, page="page")
    with pytest.raises(TooMuch, match="more than one visitor may send. Come back in 12 seconds"):
        for _ in range(6):
            limits.answered(me, event=limits.spend_event(me))
    limits.require_upload(other, 1_000_000)
    limits.require_upload(other, 1_000_000)  # what is announced costs nothing
    limits.spend_upload(other, 900_000)
    with pytest.raises(TooMuch, match="Come back in 6 minutes") as refused:
        limits.require_upload(other, 200_000)
    assert refused.value.status == 429 and 350 < refused.value.seconds <= 360
    with pytest.raises(Refused, match="One upload may have 1 MB"):
        limits.require_upload(other, 1_000_001)
    with pytest.raises(TooMuch):  # many browsers of one address
        for number in range(20):
            limits.spend_upload(Who(f"browser {number}", "9.9.9.9"), 999_999)


def test_made_up_browsers_do_not_make_an_address_forgotten():
    limits = Limits(Allowance(upload_mb_per_hour=1000))
    for number in range(8):
        limits.spend_upload(Who(f"browser {number}", "1.1.1.1"), 1_000_000_000)
    for number in range(20_001):
        limits.spend_request(Who(f"made up {number}", f"2.2.2.{number % 2}"))
    with pytest.raises(TooMuch):
        limits.require_upload(Who("another", "1.1.1.1"), 500_000_000)


def test_limits_are_set_by_the_environment(monkeypatch):
    monkeypatch.setenv("LIKENESS_MAX_WAITING", "3")
    assert Allowance.from_environment() == Allowance(max_waiting=3)
    monkeypatch.setenv("LIKENESS_MAX_WAITING", "0")
    limits = Limits()
    for number in range(100):
        limits.asked(Who("me", "x"), limits.spend_event(Who("me", "x")), str(number), "page")
    monkeypatch.setenv("LIKENESS_MAX_WAITING", "many")
    with pytest.raises(SystemExit, match="whole number"):
        Limits()


def test_a_run_has_a_limit_on_disk(tmp_path, monkeypatch):
    from pipelines.core.records import UserError
    from ui.web.limits import require_room

    (tmp_path / "a.bin").write_bytes(bytes(3_000_000))
    require_room(tmp_path)
    monkeypatch.setenv("LIKENESS_RUN_GB", "0.002")
    with pytest.raises(UserError, match="at most 0.002 GB are kept"):
        require_room(tmp_path)
    monkeypatch.setenv("LIKENESS_RUN_GB", "0")
    require_room(tmp_path)


def test_what_a_page_is_told_of_its_events_ends_the_wait():
    from ui.web.guard import ended_event

    done = b'data: {"msg":"process_completed","event_id":"0a1b","output":{}}\n\n'
    assert ended_event(done) == "0a1b" and re.fullmatch("[0-9a-f]+", "0a1b")
    assert ended_event(b'data: {"msg":"process_generating","event_id":"0a1b"}\n\n') is None


def test_a_folder_is_measured_while_files_come_and_go(tmp_path, monkeypatch):
    from ui.web import limits

    (tmp_path / "part.bin").write_bytes(bytes(3_000_000))
    monkeypatch.setenv("LIKENESS_RUN_GB", "0.002")

    def gone(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(limits.os, "lstat", gone)
    limits.require_room(tmp_path)
