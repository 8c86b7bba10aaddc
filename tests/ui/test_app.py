"""The pages without a browser: what handlers accept, who may fetch what, which styles a base can draw."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.bases.registry import BASES
from pipelines.core import presets
from pipelines.core.files import Lock, append_line, jsonable, write_json
from pipelines.core.records import COLUMNS, METHODS, Event, Look, Photo, PhotoSet, UserError
from pipelines.core.run import Run
from pipelines.photos.captions import COLOURS
from pipelines.runs import jobs

ROOT = Path(__file__).resolve().parents[2]
SPOKEN = """portrait of photo a man woman person young middle aged elderly background jacket gradient spotlight
black and white sepia warm cool light bright dim close up"""
PORTRAIT_WORDS = frozenset(COLOURS) | frozenset(re.findall(r"\w+", SPOKEN))
DIALS = {
    "prompt": "portrait of {subject}, grey background", "negative_prompt": "", "number": 2, "seed": 7, "steps": 20,
    "guidance": 3.0, "scheduler": "default", "width": 0, "height": 0, "strength": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "runs"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.delenv("LIKENESS_BASE", raising=False)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder that the registry takes for a portrait base; nothing here loads it."""
    folder = tmp_path / "face-base"
    for part, config in (("unet", {"sample_size": 16}), ("vae", {"block_out_channels": [8, 8, 16, 16]})):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    facts = {"vocabulary": sorted(PORTRAIT_WORDS), "subject_token": "<subject>", "subject_vectors": 4}
    (folder / "likeness.json").write_text(json.dumps(facts))
    monkeypatch.setenv("LIKENESS_BASE", str(folder))
    return folder


@pytest.fixture
def services(base):
    from ui.run.services import Services

    return Services()


def photo_file(folder: Path, name: str, value: int = 120) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / name)
    return folder / name


ROW = BASES["portrait-128"]


def middle_face(image: np.ndarray) -> list:
    """A face in the middle, whatever the picture shows."""
    from pipelines.faces.face import Face

    height, width = image.shape[:2]
    x, y = width / 2, height / 2
    eyes = np.array([(x - 12, y - 6), (x + 12, y - 6)])
    return [Face((x - 20, y - 20, x + 20, y + 22), eyes, eyes, np.array([x, y + 10]), 1.0)]


def take_in(run: Run, count: int = 8) -> PhotoSet:
    """A photo set in a run, as intake leaves it - without a face in sight."""
    from ui.run import photobox

    photos = []
    for index in range(count):
        path = photo_file(run.photos, f"{index:02d}.png", index)
        (run.folder / photobox.STAGED).mkdir(exist_ok=True)
        photo_file(run.folder / photobox.STAGED, f"{index:03d}.png", index)
        box = (10.0, 10.0, 80.0, 80.0)
        photos.append(Photo(f"me{index}.jpg", str(path), f"{index:064d}", 96, 96, box, ((30, 40), (60, 40)), 30.0))
    cut = max(1, count // 4)
    found = PhotoSet(tuple(photos[cut:]), (), tuple(photos[:cut]))
    staged = tuple(photobox.Staged(f"me{index}.jpg", f"{index:03d}.png") for index in range(count))
    photobox._save(run, photobox.Box(staged, found, None))
    return found


def teach(run: Run, base_name: str, digest: str, method: str = "lora") -> None:
    """A subject.json such as training writes."""
    folder = run.method(method)
    folder.mkdir(parents=True)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (folder / "checkpoint.safetensors").write_bytes(b"private")
    write_json(
        folder / "subject.json",
        {"id": f"{method}-1", "method": method, "base": base_name, "complete": True, "steps": 100, "train_s": 50.0,
         "artifact_bytes": 7, "trainable_params": 1234, "photo_digest": digest, "recipe": {"batch": 8}},
    )  # fmt: skip


def draw(run: Run, column: str, seed: int, base_name: str, subject: str | None) -> Path:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    sampling = {"prompt": "portrait of {subject}, grey background", "seed": seed}
    text.add_text("likeness", json.dumps({"sampling": sampling, "base": base_name, "subject": subject}))
    folder = run.renders(column)
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(folder / f"seed{seed}.png", pnginfo=text)
    return folder / f"seed{seed}.png"


# ------------------------------------------------------------------------------------------------- styles


def test_every_style_is_complete_and_enough_of_them_can_be_drawn(base):
    from pipelines.bases.registry import find_base

    styles = presets.styles()
    for name, style in styles.items():
        assert (ROOT / "presets" / "styles" / f"{name}.json").is_file(), "a style's id is its file's name"
        spoken = set(re.findall(r"[a-z0-9'-]+", style.prompt.replace("{subject}", " ").lower()))
        assert spoken == set(style.words), f"{name}: `words` must list what the prompt says"
        assert style.prompt.count("{subject}") == 1
    portrait = find_base(str(base))
    drawable = [name for name, style in styles.items() if presets.style_problem(style, portrait) is None]
    assert len(drawable) >= 14
    real = [style for style in styles.values() if "portrait" not in style.bases and "any" not in style.bases]
    assert len(real) >= 14
    for family in ("sd15", "sdxl"):
        assert all(presets.style_problem(style, BASES[family]) is None for style in styles.values())
    assert any(not style.photoreal for style in real), "paintings must be marked: recognisers can't judge them"
    assert all("nsfw" in style.negative_prompt for style in real)


def test_styles_follow_the_grammar_the_base_was_trained_on(base):
    """subject, background, light of the background, jacket, tone: the order of the captions."""
    from pipelines.bases.registry import find_base

    row = find_base(str(base))
    order = ["background", "gradient", "spotlight", "jacket"]
    for style in presets.styles().values():
        if presets.style_problem(style, row) is None:
            parts = style.prompt.split(", ")
            assert parts[0] == "portrait of {subject}"
            places = [order.index(word) for part in parts for word in order if part.split()[-1] == word]
            assert places == sorted(places), style.id


def test_a_style_the_base_cannot_draw_is_listed_with_its_reason(base):
    from pipelines.bases.registry import find_base
    from ui.generate.styles import style_choices

    choices, marked = style_choices(find_base(str(base)))
    assert "astronaut" not in [name for _, name in choices]
    assert "Astronaut" in marked and "written for" in marked
    assert choices[0][1] in ("studio-grey", "linkedin-navy"), "a plain look comes first"
    assert [name for _, name in style_choices(BASES["sdxl"])[0]][-1] == "own"


def test_the_schedulers_on_the_page_are_the_generators():
    from pipelines.bases.sampling import DISTILLED
    from pipelines.generation.generator import SCHEDULERS
    from ui.generate import values

    undemanding = tuple(name for name in SCHEDULERS if name not in DISTILLED)
    assert undemanding == values.SCHEDULERS, "what needs distilled weights is for those who know that they have them"


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"guidance": math.nan}, "Guidance must be a number"),
        ({"guidance": math.inf}, "Guidance must be a number"),
        ({"strength": -1}, "LoRA strength"),
        ({"steps": 10.7}, "Steps must be a whole number"),
        ({"steps": True}, "Steps must be a whole number"),
        ({"steps": math.nan}, "Steps must be a whole number"),
        ({"number": 0}, "Pictures per method"),
        ({"number": 10**9}, "Pictures per method"),
        ({"seed": None}, "Seed must be a whole number"),
        ({"seed": "1; rm"}, "Seed must be a whole number"),
        ({"seed": -5}, "Seed must be a whole number"),
        ({"prompt": "   "}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "portrait of {Subject}"}, "says {Subject}"),
        ({"prompt": "{subject} " * 200}, "at most 500"),
        ({"prompt": "portrait of {subject} in a spaceship"}, "does not know: in, spaceship"),
        ({"scheduler": "../../etc"}, "no such scheduler"),
        ({"width": 512}, "does not draw that size"),
        ({"height": math.nan}, "does not draw that size"),
    ],
)
def test_every_dial_is_checked_on_the_server(base, changes, says):
    from pipelines.bases.registry import find_base
    from ui.generate.values import samplings

    row = find_base(str(base))
    assert [s.seed for s in samplings(row, **DIALS)] == [7, 8]
    with pytest.raises(UserError, match=re.escape(says)) as raised:
        samplings(row, **(DIALS | changes))
    assert str(base) not in str(raised.value), "a path of this machine is nobody's business"


def test_real_bases_take_sizes_and_any_word():
    from ui.generate.values import samplings

    wish = DIALS | {"prompt": "{subject} in a spaceship", "width": 512, "height": 768}
    (first, _) = samplings(BASES["sd15"], **wish)
    assert (first.width_px, first.height_px) == (512, 768)


def test_unexpected_errors_become_one_sentence_and_stay_in_the_log(caplog):
    import errno

    import gradio as gr

    from ui.page.errors import DISK_FULL, OURS, told

    @told
    def broken() -> None:
        raise KeyError("/secret/path")

    with pytest.raises(gr.Error) as raised:
        broken()
    assert raised.value.message == OURS.replace("'", "&#x27;") and "/secret/path" in caplog.text

    @told
    def full():
        yield 1
        raise OSError(errno.ENOSPC, "no space", "/secret/disk")

    steps = full()
    assert next(steps) == 1
    with pytest.raises(gr.Error) as raised:
        next(steps)
    assert raised.value.message == DISK_FULL and "/secret/disk" not in caplog.text

    @told
    def known() -> None:
        raise UserError("<img src=x>.jpg is not a photo.")

    with pytest.raises(gr.Error) as raised:
        known()
    assert "<img" not in raised.value.message


# ------------------------------------------------------------------------------------------------- who is asking


@pytest.mark.parametrize(
    "forged", [None, 0, "", "../../etc/passwd", "x" * 43, "A" * 5000, ["a"], {"a": 1}, "é" * 43, "a/b" + "c" * 40]
)
def test_a_forged_capability_finds_nothing(services, forged):
    services.sessions.create()
    assert services.sessions.find(forged) is None
    with pytest.raises(UserError, match="Reload the page"):
        services.sessions.need(forged)
    assert services.view(forged).session is None


def test_two_people_never_meet(services):
    first, mine = services.sessions.create()
    second, yours = services.sessions.create()
    assert first != second and mine.run.folder != yours.run.folder
    assert services.sessions.find(first).run == mine.run
    on_disk = "".join(p.read_text() for p in services.sessions.root.rglob("*.json"))
    assert first not in on_disk and second not in on_disk, "only the hash of a capability is stored"
    assert mine.run.folder.name not in first


def test_a_record_that_was_tampered_with_leads_nowhere(services, tmp_path):
    capability, session = services.sessions.create()
    file = services.sessions.folder / f"{session.key}.json"
    for run in ("..", "../elsewhere", str(tmp_path), "sessions", "", None, 7):
        write_json(file, {"run": run})
        assert services.sessions.find(capability) is None
    (services.sessions.root / "link").symlink_to(session.run.folder)
    write_json(file, {"run": "link"})
    assert services.sessions.find(capability) is None


def test_choices_survive_a_restart_and_forgetting_removes_them(services):
    from ui.run.services import Services

    capability, session = services.sessions.create()
    services.sessions.choose(session, class_word="woman", consent_at="2026-01-01T00:00:00Z")
    again = Services()
    assert again.sessions.find(capability).choices.class_word == "woman"
    receipt = again.sessions.forget(again.sessions.find(capability))
    assert receipt["remaining_files"] == 0 and not session.run.folder.exists()
    assert again.sessions.find(capability) is None and not list(services.sessions.folder.glob("*.json"))


def test_idle_runs_are_swept_and_used_ones_stay(services):
    kept, session = services.sessions.create()
    old, idle = services.sessions.create()
    long_ago = time.time() - 1e6
    for path in (idle.run.folder, *idle.run.folder.iterdir()):
        os.utime(path, (long_ago, long_ago))
    assert services.sweep(older_than_s=3600) == 1
    assert services.sessions.find(old) is None and services.sessions.find(kept) is not None


# ------------------------------------------------------------------------------------------------- who may fetch what


def test_runs_are_kept_a_day_unless_told_otherwise(monkeypatch):
    import app

    monkeypatch.delenv("LIKENESS_KEEP_HOURS", raising=False)
    assert app.keep_hours() == 24
    for said, hours in {"0": 0, "1.5": 1.5, "-3": 0, "": 24}.items():
        monkeypatch.setenv("LIKENESS_KEEP_HOURS", said)
        assert app.keep_hours() == hours
    monkeypatch.setenv("LIKENESS_KEEP_HOURS", "a day")
    with pytest.raises(SystemExit, match="must be a number of hours"):
        app.keep_hours()


def test_uploads_of_killed_apps_and_closed_tabs_are_deleted(tmp_path, monkeypatch):
    import subprocess

    from ui.page import startup

    monkeypatch.setattr(startup.tempfile, "gettempdir", lambda: str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    killed, running = (tmp_path / f"{startup.UPLOADS}{pid}-x" for pid in (dead.pid, os.getpid()))
    for folder in (killed, running):
        (folder / "hash").mkdir(parents=True)
        (folder / "hash" / "me.jpg").write_bytes(b"photo")
    (tmp_path / f"{startup.UPLOADS}notes").write_text("of somebody else")
    startup.sweep_dead()
    assert not killed.exists() and (running / "hash" / "me.jpg").exists()
    assert (tmp_path / f"{startup.UPLOADS}notes").exists()

    old = running / "tmp1234"
    old.write_bytes(b"half a photo")
    os.utime(old, (time.time() - 4000,) * 2)
    assert startup.sweep_uploads(3600, running) == 1 and not old.exists()
    assert (running / "hash" / "me.jpg").exists(), "just uploaded"


def test_sweeping_goes_by_what_the_app_was_built_with(base, tmp_path, monkeypatch, caplog):
    import app

    started: list[tuple] = []
    sweep, built = app._janitor, threading.Event()
    monkeypatch.setattr(app, "_janitor", lambda *args: (started.append(args), built.set()))
    app.build()
    assert built.wait(60)
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    monkeypatch.setattr(app.time, "sleep", lambda seconds: sys.exit())
    old = photo_file(tmp_path / "uploads" / "hash", "old.png")
    os.utime(old, (time.time() - 4000,) * 2)
    with pytest.raises(SystemExit):
        sweep(*started[0])
    assert not old.exists() and "sweeping failed" not in caplog.text


def test_who_may_see_a_run_is_forgotten_with_it(services):
    from ui.web import media

    _, session = services.sessions.create()
    run, picture = session.run.folder.name, session.run.folder / "a.png"
    for number in range(media.BROWSERS + 5):
        services.media.admit(run, f"browser {number}")
    assert len(services.media._admitted[run]) == media.BROWSERS
    assert services.media.admits(picture, f"browser {number}") and not services.media.admits(picture, "browser 0")
    services.media.prune()
    assert run in services.media._admitted
    services.sessions.forget(session)
    services.media.prune()
    assert not services.media._admitted


def test_links_are_signed_expire_and_stay_inside(services, monkeypatch):
    media = services.media
    _, session = services.sessions.create()
    picture = photo_file(session.run.folder / "renders" / "lora", "a b.png")
    address = media.link(picture).split("?")[0].removeprefix("media/")
    from urllib.parse import unquote

    address = unquote(address)
    assert media.resolve(address) == picture
    expires, signature, name = address.split("/", 2)
    other = photo_file(session.run.folder / "renders" / "lora", "other.png")
    for forged in (
        f"{expires}/{signature}/{other.relative_to(media.root)}",
        f"{int(expires) + 9}/{signature}/{name}",
        f"{expires}/{'A' * 32}/{name}",
        f"{expires}//{name}", "", "x", "1/2", f"{expires}/{signature}/../../etc/passwd", f"٣/{signature}/{name}",
    ):  # fmt: skip
        assert media.resolve(forged) is None, forged
    with pytest.raises(ValueError):
        media.link(Path("/etc/hostname"))
    monkeypatch.setattr("ui.web.media.time.time", lambda: time.monotonic() + 1e10)
    assert media.resolve(address) is None, "it has expired"


def test_files_other_than_pictures_and_downloads_are_not_served(services):
    _, session = services.sessions.create()
    secret = session.run.folder / "worker.log"
    secret.write_text("x")
    link = services.media.link(secret).split("?")[0].removeprefix("media/")
    assert services.media.resolve(link) is None


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """The app as it is served: (client, its Media). The client has opened the page, as a browser does."""
    import httpx

    from tests.live import live_app
    from ui.web.guard import Guard

    with live_app(tmp_path_factory) as (address, launch):
        (media,) = (m.kwargs["media"] for m in launch["app_kwargs"]["middleware"] if m.cls is Guard)
        with httpx.Client(base_url=address, timeout=60) as client:
            client.get("/")
            yield client, media


def test_routes_that_know_no_owner_are_closed(web):
    client, _ = web
    sent = client.post("/gradio_api/upload", files={"files": ("me.png", io.BytesIO(b"photo"), "image/png")})
    (path,) = sent.json()
    assert Path(path).read_bytes() == b"photo"
    for route in (
        f"/gradio_api/file={path}", f"/gradio_api/file/{path}", f"/file={path}", "/gradio_api/deep_link?session_hash=a",
        "/gradio_api/runs", "/monitoring/summary", "/gradio_api/proxy=http://127.0.0.1/", f"/gradio_api/%66ile={path}",
        "/media/1/2/3.png",
    ):  # fmt: skip
        assert client.get(route).status_code in (403, 404), route
    assert client.get("/docs").status_code == 404 and client.get("/openapi.json").status_code == 404


def handler(client, name: str) -> dict:
    """The event of the page that runs the handler called `name`."""
    (found,) = (d for d in client.get("/config").json()["dependencies"] if d["api_name"] == name)
    return found


def join(client, page: str, name: str, data: list, **more) -> object:
    body = {"data": data, "fn_index": handler(client, name)["id"], "session_hash": page, **more}
    return client.post("/gradio_api/queue/join", json=body)


def stream(client, page: str) -> tuple[int, str]:
    """(status, text) of a page's event stream, read to the end of its event."""
    text = ""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": page}) as answer:
        for line in answer.iter_lines():
            text += line + "\n"
            if "process_completed" in line or "close_stream" in line:
                break
    return answer.status_code, text


def test_a_second_browser_that_knows_every_address_and_id_gets_nothing(web, tmp_path):
    import httpx

    owner, media = web
    page = "owner-page"
    (base,) = {
        c["props"]["value"] for c in owner.get("/config").json()["components"] if c["props"].get("elem_id") == "lk-base"
    }
    assert owner.get("/").headers.get("set-cookie") is None, "a browser keeps the name it has"
    photo = tmp_path / "me.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(photo)
    progress = {"upload_id": "owner-upload"}
    sent = owner.post("/gradio_api/upload", params=progress, files={"files": ("me.png", photo.open("rb"), "image/png")})
    (upload,) = sent.json()
    kept = {"path": upload, "meta": {"_type": "gradio.FileData"}}
    event = join(owner, page, "use_sample", [None, base]).json()["event_id"]

    with httpx.Client(base_url=owner.base_url, timeout=60) as stranger, httpx.Client(base_url=owner.base_url) as bare:
        assert "HttpOnly" in stranger.get("/").headers["set-cookie"]
        for other in (stranger, bare):  # another browser, and a script without a cookie
            status, text = stream(other, page)
            assert "media/" not in text and "process_" not in text, "another page's event stream"
            assert other.get("/gradio_api/upload_progress", params=progress).status_code in (403, 404)
            for route in ("reset", "cancel"):
                ids = {"session_hash": page, "event_id": event, "fn_index": 0}
                assert other.post(f"/gradio_api/{route}", json=ids).status_code in (200, 403), "as if it had ended"
            mine = join(other, "their-page", "add", [None, [kept], "person", base, False])
            assert mine.status_code == 403, "another's upload handed in as one's own"
            nested = {"data": [], "event_data": {"x": [{"y": kept}]}, "fn_index": 0, "session_hash": "s"}
            assert other.post("/gradio_api/run/predict", json=nested).status_code == 403
            for path in (
                f"call/use_sample/{event}", f"call/v2/use_sample/{event}", f"stream/{page}/1/1/playlist-file",
                f"deep_link?session_hash={page}", f"file={upload}", f"file/{upload}", "runs", "run-history/records",
                f"queue/status?session_hash={page}", f"proxy=http://127.0.0.1{owner.base_url.port}/",
            ):  # fmt: skip
                assert other.get(f"/gradio_api/{path}").status_code == 403, path

        status, text = stream(owner, page)
        assert status == 200 and "process_completed" in text and '"success":true' in text.replace(" ", "")
        links = set(re.findall(r"media/\d+/[\w-]+/[^\s\"'<>\\\\?]+", text))
        assert len(links) >= 8, "the photos' links came through the owner's stream"
        for link in links:
            assert owner.get(f"/{link}").status_code == 200
            assert stranger.get(f"/{link}").status_code == 403 and bare.get(f"/{link}").status_code == 403, (
                "a known link"
            )

        (capability,) = set(re.findall(r'"([A-Za-z0-9_-]{43})"', text))
        assert capability not in str(sorted(links)), "the capability stands in no address"
        for guess in (capability[:-1] + "_", capability.lower(), f"../{capability}", page, event):
            body = {"data": [guess, {}], "fn_index": handler(stranger, "poll")["id"], "session_hash": "guessing"}
            answer = stranger.post("/gradio_api/run/predict", json=body)
            assert answer.status_code == 200 and "media/" not in answer.text, "a guessed capability"
        # whoever shows the capability itself is the owner: the same person after clearing the cookies
        body = {"data": [capability, {}], "fn_index": handler(stranger, "poll")["id"], "session_hash": "cleared"}
        assert "media/" in stranger.post("/gradio_api/run/predict", json=body).text
        assert stranger.get("/" + min(links)).status_code == 200
        assert bare.get("/" + min(links)).status_code == 403


def test_the_cookie_fits_a_frame_on_https_and_a_page_at_home():
    from ui.web.visitors import COOKIE, Door, Visitor

    value = "v" * 43
    at_home, framed = (Visitor(value, "1.2.3.4", key).cookie for key in (f"{COOKIE}-7860", f"__Host-{COOKIE}"))
    assert "SameSite=Lax" in at_home and "Secure" not in at_home
    assert at_home.startswith(f"{COOKIE}-7860={value}; Path=/;")
    assert framed.startswith(f"__Host-{COOKIE}={value}; Path=/;") and "SameSite=None; Secure; Partitioned" in framed

    def known(sent: str, host: str = "localhost", *, secure: bool = False) -> str:
        headers = [(b"host", host.encode()), (b"cookie", sent.encode())]
        return Door(proxies="").visitor({"headers": headers, "scheme": "https" if secure else "http"}).browser

    assert known(f"a=b; {COOKIE}-80={value}") == known(f"{COOKIE}-7860={value}", "[::1]:7860") == value
    assert known(f"{COOKIE}-7861={value}", "localhost:7860") == "", "another instance on this machine"
    assert known(f"{COOKIE}-80=short") == known(f"{COOKIE}-80={value}", "localhost:x") == ""
    assert known(f"{COOKIE}-80={value}", secure=True) == "", "what another host of the domain can set"
    assert known(f"__Host-{COOKIE}={value}", secure=True) == value


def test_an_event_is_read_only_up_to_its_limit(web):
    from ui.web.guard import BODY_LIMIT

    client, _ = web
    assert client.post("/gradio_api/queue/join", content=b"[" * (BODY_LIMIT + 1)).status_code == 413
    assert client.post("/gradio_api/run/predict", content=b"[" * 100_000).status_code == 413
    assert client.post("/gradio_api/run/predict", content=b"no json").status_code in (400, 422)


def test_writes_from_other_sites_are_refused_and_headers_are_strict(web):
    client, _ = web
    assert client.post("/gradio_api/upload", headers={"origin": "https://evil.example"}).status_code == 403
    assert client.post("/gradio_api/queue/join", headers={"origin": "null"}, json={}).status_code == 403
    page = client.get("/config")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_a_signed_picture_is_served_and_never_cached(web):
    client, media = web
    picture = photo_file(media.root / ("r" * 32), "00.png")
    answer = client.get("/" + media.link(picture))
    assert answer.status_code == 200 and answer.headers["cache-control"] == "private, no-store"
    assert answer.content == picture.read_bytes()
    zipped = picture.with_suffix(".zip")
    zipped.write_bytes(b"zip")
    download = client.get("/" + media.link(zipped, name="likeness.zip"))
    assert "attachment" in download.headers["content-disposition"] and "likeness.zip" in str(download.headers)


def test_the_page_is_built_without_telemetry_and_with_its_doors_closed(base):
    import app

    app.prepare_environment()
    demo, launch = app.build()
    assert launch["show_error"] is False and launch["enable_monitoring"] is False and launch["run_history"] is False
    assert launch["share"] is False and launch["footer_links"] == ["settings"]
    assert demo.api_open is False
    offered = {d.api_name for d in demo.fns.values() if d.api_visibility != "private"}
    documented = {"add_photos", "train", "status", "generate", "score", "download", "stop", "delete"}
    documented |= {"finish", "finished"}
    assert offered == documented, "the pages' own handlers are no API"


def test_what_is_ticked_while_photos_arrive_stays_ticked(base, tmp_path, monkeypatch):
    import app
    from ui.run import photobox

    demo, _ = app.build()
    add = next(event.fn for event in demo.fns.values() if getattr(event.fn, "__name__", "") == "add")
    monkeypatch.setattr(photobox, "add", lambda run, paths, row: iter([photobox.load(run)]))
    assert add is not None
    _, *later = add(None, [str(photo_file(tmp_path, "a.png"))], "woman", ROW.name, True)
    for update in later:
        said = {component.elem_id for component in update if hasattr(component, "elem_id")}
        assert not said & {"lk-consent", "lk-class-word", "lk-base"}


def test_photos_for_a_run_that_is_gone_start_afresh(base, tmp_path, monkeypatch):
    """The page still shows what was ticked and picked for the run that was deleted."""
    import app
    from ui.run import photobox

    demo, _ = app.build()
    add = next(event.fn for event in demo.fns.values() if getattr(event.fn, "__name__", "") == "add")
    monkeypatch.setattr(photobox, "add", lambda run, paths, row: iter([photobox.load(run)]))
    assert add is not None
    first, *_ = add("0" * 43, [str(photo_file(tmp_path, "a.png"))], "woman", ROW.name, True)
    said = {component.elem_id: update for component, update in first.items()}
    assert said["lk-consent"]["value"] is False and said["lk-class-word"]["value"] == "person"
    assert said["lk-base"]["value"]


def test_the_page_needs_no_torch():
    import subprocess

    code = (
        "import app, sys; app.prepare_environment(); app.build(); "
        "print([m for m in ('torch', 'diffusers', 'cv2', 'dlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ.copy()
    )
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


# ------------------------------------------------------------------------------------------------- photos


def test_bad_files_are_named_and_good_ones_stay(services, tmp_path, monkeypatch):
    from pipelines.photos import checks
    from ui.run import photobox
    from ui.upload import html as upload_html

    monkeypatch.setattr(checks, "detect_faces", lambda image: middle_face(image) if image[0, 0, 0] != 90 else [])
    _, session = services.sessions.create()
    folder = tmp_path / "sent"
    good = photo_file(folder, "ok.png")
    (folder / "notes.jpg").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:3000])
    Image.new("1", (12000, 12000)).save(folder / "bomb.png")
    Image.new("RGB", (96, 96), (90, 90, 90)).save(folder / "lawn.png")
    *_, box = photobox.add(
        session.run, [good, *(folder / n for n in ("notes.jpg", "empty.png", "cut.jpg", "bomb.png", "lawn.png"))], ROW
    )
    verdicts = {one.name: one for one in box.staged}
    assert verdicts["ok.png"].file and box.good == 1 and box.missing == 4
    for name, word in (("notes.jpg", "not a photo"), ("empty.png", "empty"), ("cut.jpg", "cut short"),
                       ("bomb.png", "megapixels"), ("lawn.png", "no face")):  # fmt: skip
        assert verdicts[name].file is None and word in verdicts[name].text, name
    assert photobox.load(session.run) == box, "a reload shows the same"
    html = upload_html.photo_cards(services.photo_cards(session.run, box))
    assert html.count(">left out<") == 5 and html.index("bomb.png") < html.index("ok.png")
    assert not any(one.can_be_kept for one in box.staged), "a file without a face can't be used whatever one says"
    assert len(list((session.run.folder / photobox.STAGED).iterdir())) == 1, "and is not kept"
    box = photobox.remove(session.run, "refused:bomb.png", ROW)
    assert len(box.staged) == 5 and box.good == 1
    for key in ("../x", None, 7, "nothing"):
        with pytest.raises(UserError, match="not in the list"):
            photobox.remove(session.run, key, ROW)


def test_a_person_has_the_last_word_about_a_photo(services, tmp_path, monkeypatch):
    from pipelines.photos import checks, intake
    from ui.run import photobox
    from ui.upload import html as upload_html

    monkeypatch.setattr(checks, "detect_faces", middle_face)
    monkeypatch.setattr(intake, "_recogniser", lambda: None)
    _, session = services.sessions.create()
    run, small = session.run, replace(ROW, min_eye_distance_px=30.0)
    *_, box = photobox.add(run, [photo_file(tmp_path, f"me{k}.png", k) for k in range(6)], small)
    assert box.good == 0 and all(one.can_be_kept and "too small" in one.text for one in box.staged)
    assert upload_html.photo_cards(services.photo_cards(run, box)).count(">Use it anyway<") == 6
    for one in box.staged:
        box = photobox.change(run, one.key, "keep", small)
    assert (
        box.good == 6
        and box.photo_set is not None
        and upload_html.photo_cards(services.photo_cards(run, box)).count("as you asked") == 6
    )
    box = photobox.judge_again(run, ROW)  # another base, for which the faces are large enough
    assert [one.verdict for one in box.staged] == ["good"] * 6

    first, second = box.staged[0], box.staged[1]
    box = photobox.change(run, first.key, "held_out", ROW)
    box = photobox.change(run, second.key, "trained", ROW)
    assert photobox.part_of(box, "me0.png") == "held out" and photobox.part_of(box, "me1.png") == "training"
    digest = box.photo_set.digest
    box = photobox.change(run, second.key, "caption", ROW, "navy background")
    box = photobox.change(run, second.key, "closer", ROW)
    shown = photobox.crops(run, box)
    told = {one.name: (text, learned, one.zoom) for one, path, text, learned in shown if path.is_file()}
    assert told["me1.png"] == ("portrait of {subject}, navy background", True, 1.1)
    assert len(told) == 6 and box.photo_set.digest != digest, "other captions are another training"
    assert photobox.load(run) == box
    html = upload_html.crop_cards(services.crop_cards(run, box))
    assert html.count("<img") == 6 and "navy background" in html and "1.10×" in html
    with pytest.raises(UserError, match="does not know: spaceship"):
        photobox.change(run, second.key, "caption", ROW, "a spaceship")
    with pytest.raises(UserError, match="no other braces"):
        photobox.change(run, second.key, "caption", ROW, "{subject} {__class__}")
    box = photobox.change(run, second.key, "caption", ROW, " ")
    assert box.staged[1].caption is None
    for key, action in ((second.key, "explode"), ("../x", "keep"), (None, "keep")):
        with pytest.raises(UserError, match="Reload the page"):
            photobox.change(run, key, action, ROW)
    for one in box.staged:
        if one.name != "me1.png":
            box = photobox.change(run, one.key, "held_out", ROW)
    assert len(box.photo_set.train) == 1
    box = photobox.change(run, second.key, "held_out", ROW)
    assert box.photo_set is None and "No photo is left to learn from" in str(box.problem)
    assert any(key[0].startswith(str(run.folder.resolve())) for key in intake._known)
    box = photobox.clear(run)
    assert not any(key[0].startswith(str(run.folder.resolve())) for key in intake._known), "no measure outlives them"
    assert box == photobox.Box() and not (run.folder / photobox.CROPS).exists()


def test_a_zip_is_taken_apart(services, tmp_path, monkeypatch):
    import zipfile

    from pipelines.photos import checks, intake
    from ui.run import photobox

    monkeypatch.setattr(checks, "detect_faces", middle_face)
    monkeypatch.setattr(intake, "_recogniser", lambda: None)
    _, session = services.sessions.create()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for k in range(3):
            archive.write(photo_file(tmp_path, f"me{k}.png", k), f"folder/me{k}.png")
    *_, box = photobox.add(session.run, [tmp_path / "all.zip"], ROW)
    assert [one.name for one in box.staged] == ["me0.png", "me1.png", "me2.png"] and box.good == 3
    assert not (session.run.folder / "unpacked").exists()
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="bad.zip is not a ZIP"):
        list(photobox.add(session.run, [tmp_path / "bad.zip"], ROW))
    assert photobox.load(session.run).good == 3


def test_too_many_photos_change_nothing(services, tmp_path):
    from ui.run import photobox

    _, session = services.sessions.create()
    with pytest.raises(UserError, match="At most 30"):
        next(photobox.add(session.run, [tmp_path / f"{i}.png" for i in range(31)], ROW))
    assert photobox.load(session.run) == photobox.Box()


def test_stored_copies_carry_no_place_and_no_camera(services, tmp_path, monkeypatch):
    from pipelines.photos import checks
    from ui.run import photobox

    monkeypatch.setattr(checks, "detect_faces", middle_face)
    _, session = services.sessions.create()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SecretCamera", 6
    file = tmp_path / "phone.jpg"
    Image.new("RGB", (120, 80), "red").save(file, exif=exif)
    *_, box = photobox.add(session.run, [file], ROW)
    stored = session.run.folder / photobox.STAGED / str(box.staged[0].file)
    with Image.open(stored) as image:
        assert image.size == (80, 120), "upright"
        assert not image.getexif()
    assert b"SecretCamera" not in stored.read_bytes() and stored.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "shown"), [("a/b\\c\n.jpg", "a_b_c_.jpg"), ("x" * 300 + ".png", None), ("\x00", "_"), ("🙂.jpg", "🙂.jpg")]
)
def test_names_are_made_fit_to_show(name, shown):
    from ui.run.photobox import display_name

    found = display_name(name)
    assert len(found) <= 80 and not re.search(r"[\x00-\x1f/\\]", found)
    assert shown is None or found == shown


def test_uploads_go_with_their_last_owner_and_only_inside_gradios_folder(tmp_path, monkeypatch):
    from ui.web.uploads import Uploads
    from ui.web.visitors import Visitor

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    inside = photo_file(tmp_path / "uploads" / "hash", "a.png")
    outside = photo_file(tmp_path / "mine", "a.png")
    me, you = Visitor("me", "1.2.3.4"), Visitor("you", "1.2.3.4")
    uploads = Uploads()
    uploads.add([str(inside), str(outside)], me)
    uploads.add([str(inside)], you)
    assert uploads.owned(str(inside), "me") and not uploads.owned(str(outside), "you")
    uploads.name("event", "me", [str(inside), str(outside)])
    uploads.settle({"event"})
    assert uploads.owned(str(inside), "me"), "the event is not done"
    uploads.settle(set())
    assert not uploads.owned(str(inside), "me") and inside.exists() and outside.exists() and not uploads.awaited
    photo_file(tmp_path / "again", "a.png").rename(inside)
    uploads.settle(set())
    assert uploads.forget("you") == (1, inside.stat().st_size) and inside.exists(), "sent again this moment"
    uploads.add([str(inside)], me)
    assert uploads.forget("me")[0] == 1 and not inside.exists() and not inside.parent.exists()
    uploads.add([str(inside)], me)
    uploads.prune()
    assert not uploads.owned(str(inside), "me"), "swept"
    uploads.add([str(outside)] * 2, me)
    uploads.forget("me")
    assert not uploads._count, "one file that was sent twice counts once"


# ------------------------------------------------------------------------------------------------- tabs


def test_each_closed_tab_says_why(services, base):
    capability, session = services.sessions.create()
    assert "Add 5 more photos" in services.view(None).train_blocked
    assert "Add 5 more photos" in services.view(capability).train_blocked
    found = take_in(session.run)
    assert "consent" in services.view(capability).train_blocked
    session = services.sessions.choose(session, consent_at="2026-01-01T00:00:00Z")
    assert services.view(capability).train_blocked is None
    assert "Train at least one" in services.view(capability).generate_blocked
    row = services.view(capability).row.name
    teach(session.run, row, "another set of photos")
    view = services.view(capability)
    assert view.stale and "changed since training" in view.generate_blocked
    teach(session.run, row, found.digest, "dreambooth")
    view = services.view(capability)
    assert view.generate_blocked is None and view.columns == ("none", "dreambooth")
    assert "Generate pictures first" in view.score_blocked
    assert [is_open for _, _, is_open in view.steps()] == [True, True, True, False]
    assert "8 good photos" in view.steps()[0][1]


def test_a_base_that_is_not_here_is_said_and_closes_training(monkeypatch, tmp_path):
    from ui.run.services import Services

    missing = replace(BASES["portrait-128"], path=str(tmp_path / "nothing"))
    monkeypatch.setitem(BASES, "portrait-128", missing)
    services = Services()
    capability, session = services.sessions.create()
    take_in(session.run)
    services.sessions.choose(session, consent_at="now", base="portrait-128")
    assert "not in this copy" in services.view(capability).train_blocked


def test_progress_is_read_from_the_job_files(services, base):
    from ui.run.progress import progress_of

    capability, session = services.sessions.create()
    take_in(session.run)
    run = session.run
    events = [
        Event("start", "lora", 0, 4),
        *(Event("step", "lora", i, 4, loss=1 / i, seconds=i, seconds_left=4 - i) for i in (1, 2, 3)),
    ]
    events += [
        Event("start", "lora", 2, 4),
        Event("step", "lora", 3, 4, loss=9.0, seconds=3),
        Event("step", "lora", 4, 4, loss=8.0, seconds=4),
    ]
    preview = photo_file(run.method("lora"), "preview_00004.png")
    events += [Event("preview", "lora", 4, 4, path=str(preview)), Event("done", "lora", 4, 4, seconds=4)]
    for event in events:
        append_line(run.events, event)
    progress = progress_of(run, services.events(run))
    assert progress.losses["lora"] == ((1, 1.0), (2, 0.5), (3, 9.0), (4, 8.0)), "a continued curve has no step twice"
    lane = services.view(capability).lane("lora")
    assert (lane.state, lane.step, lane.steps) == ("done", 4, 4) and "media/" in lane.preview
    early = photo_file(run.method("lora"), "preview_00002.png")
    looks = [Event("start", "lora", 0, 4), Event("watch", "lora", 1, 4, data=Look(0.1, 0.1, None, 0.0)),
             Event("watch", "lora", 3, 4, data=Look(0.3, 0.3, None, 0.0)), Event("start", "lora", 2, 4),
             Event("preview", "lora", 2, 4, path=str(early)),
             Event("watch", "lora", 3, 4, data=Look(0.25, 0.25, None, 0.0)),
             *events]  # fmt: skip
    run.events.write_text("".join(json.dumps(jsonable(each)) + "\n" for each in looks[:6]))
    services._events.clear()
    assert progress_of(run, services.events(run)).likeness["lora"] == ((1, 0.1), (3, 0.25)), (
        "what is taught again is seen again"
    )
    append_line(run.events, Event("preview", "lora", 4, 4, path=str(preview)))
    lane = services.view(capability).lane("lora")
    assert lane.likeness == ((1, 0.1), (3, 0.25)) and len(lane.strip) == 1 and "media/" in lane.strip[0]
    from ui.train import html as train_html

    html = train_html.lane(lane)
    assert "best 0.25" in html and html.count("<circle") == 2 and html.count("An earlier preview of LoRA") == 1
    run.events.write_text("".join(json.dumps(jsonable(each)) + "\n" for each in events))
    services._events.clear()
    from ui.train.plots import loss_frame

    frame = loss_frame(progress.losses["lora"])
    assert list(frame[frame.line == "smoothed"].loss)[0] == pytest.approx(1.0), "the running mean starts unbiased"
    long = loss_frame([(i, 1.0) for i in range(1, 5000)])
    assert len(long) <= 2 * 162 and long.step.max() == 4999
    assert services.view(capability).lane("dreambooth") is None and progress.seconds_left is None
    append_line(run.events, Event("step", "dreambooth", 1, 4, loss=1.0, seconds=1, seconds_left=30.0))
    append_line(run.events, Event("step", "textual_inversion", 1, 4, loss=1.0, seconds=1, seconds_left=12.0))
    assert progress_of(run, services.events(run)).seconds_left == 42.0, "methods that take turns wait for each other"
    append_line(run.events, Event("start", "lora", 0, 2))
    assert progress_of(run, services.events(run)).losses["lora"] == (), "a new training starts a new curve"


def test_pictures_scores_and_table(services, base):
    from ui.generate import html as generate_html
    from ui.run.package import pack
    from ui.score import html as score_html

    capability, session = services.sessions.create()
    found = take_in(session.run)
    row = services.view(capability).row.name
    session = services.sessions.choose(session, consent_at="now", base=row)
    teach(session.run, row, found.digest)
    run = session.run
    files = [draw(run, "none", 0, row, None), draw(run, "lora", 0, row, "lora-1"), draw(run, "lora", 1, row, "lora-1")]
    draw(run, "lora", 2, row, "an earlier training")
    for file, value in zip(files, (0.1, 0.5, None), strict=True):
        for judge in ("dlib", "buffalo_sc"):
            line = {
                "render": run.relative(file),
                "judge": judge,
                "similarity": value,
                "reason": None if value else "no face found",
            }
            append_line(run.scores, line)
    figures = {
        "impostor": 0.25,
        "floor": 0.1,
        "best_possible": 0.6,
        "ceiling": 0.7,
        "ceiling_low": 0.6,
        "ceiling_high": 0.8,
    }
    write_json(run.marks, {"dlib": figures, "buffalo_sc": figures | {"threshold": 0.4}})
    view = services.view(capability)
    assert view.judges == ("buffalo_sc", "dlib"), "ArcFace speaks first"
    assert len(view.pictures) == 3, "pictures of another training are mixed with nothing"
    rows = {each.method: each for each in view.rows("buffalo_sc")}
    assert rows["lora"].faces_found == 1 and rows["lora"].renders == 2
    assert rows["lora"].mean == pytest.approx(0.25), "a picture without a face costs"
    assert rows["lora"].best == 0.5 and rows["lora"].normalised == pytest.approx((0.25 - 0.1) / 0.6)
    strip = score_html.strip(view.axis("buffalo_sc"))
    assert strip.count("lk-dot") == 2 and strip.count('class="lk-mark"') == 4 and "0.60 – 0.80" in strip
    gallery = generate_html.gallery(view.pictures)
    assert gallery.index("0.50") < gallery.index("0.10") < gallery.index("no face found")
    grid = generate_html.side_by_side(view.latest_shots, view.drawn_columns)
    assert grid.count("<img") == 3 and grid.count("not drawn") == 1 and "0.50 ★" in grid
    services.sessions.choose(session, judge="dlib")
    assert services.view(capability).judge() == "dlib"
    (zipped, *_) = pack(run, services.media)
    import zipfile

    names = zipfile.ZipFile(run.folder / "likeness.zip").namelist()
    assert "methods/lora/pytorch_lora_weights.safetensors" in names
    assert not any("checkpoint" in n or "photos" in n or "incoming" in n or "log" in n for n in names)
    assert zipped[1].startswith("media/")


def test_the_best_of_many_are_kept_with_the_reason():
    from ui.generate import html as generate_html
    from ui.run import cards

    def shot(method, seed, similarity, verdict=None, reason=None):
        return cards.Shot(method, seed, f"/media/{seed}", "p {subject}", similarity, reason, verdict, scored=True)

    shots = [shot("lora", 1, 0.3, "borderline"), shot("none", 2, 0.9, "looks like you"),
             shot("lora", 3, None, "no face", "no face found"), shot("dreambooth", 4, 0.6, "looks like you"),
             shot("lora", 5, 0.7, "someone else"), shot("lora", 6, 0.5, "looks like you")]  # fmt: skip
    told = {each.seed: (kept, why) for each, kept, why in generate_html.best_of(shots, 2)}
    assert [seed for seed, (kept, _) in told.items() if kept] == [4, 6] and len(told) == 6
    assert "number 1 of 6" in told[4][1] and "less alike than the last one kept (0.50)" in told[1][1]
    assert "nobody in particular" in told[2][1] and "no face found" in told[3][1] and "somebody else" in told[5][1]
    assert generate_html.gallery(shots, 2).count("lk-dropped") == 4 and "lk-dropped" not in generate_html.gallery(shots)
    assert [kept for _, kept, _ in generate_html.best_of(shots[1:3], 5)] == [False, False], (
        "nothing fits, nothing is kept"
    )


def test_the_jobs_asked_for_are_the_ones_chosen(services, base, monkeypatch):
    from ui.run.start import start_generation, start_training

    capability, session = services.sessions.create()
    take_in(session.run)
    session = services.sessions.choose(session, class_word="man", consent_at="now")
    asked = []
    monkeypatch.setattr(jobs, "enqueue", lambda run, spec, **who: asked.append((run, spec)))
    start_training(services, session, methods=("lora",), quality="draft")
    from ui.generate.values import samplings

    plan = samplings(services.view(capability).row, **DIALS)
    start_generation(services, session, columns=("none", "lora"), samplings=plan)
    (run, train), (_, generate) = asked
    assert (
        run == session.run
        and asked[1][0] == session.run.drawing
        and (train.kind, train.methods, train.class_word) == ("train", ("lora",), "man")
    )
    assert (generate.kind, generate.methods, generate.samplings) == ("generate", ("none", "lora"), plan)
    train.check()
    generate.check()


def test_estimates_are_measured_or_not_given(services, base):
    from ui.words import phrases

    capability, session = services.sessions.create()
    found = take_in(session.run)
    view = services.view(capability)
    assert "nothing was timed on this machine yet" in view.estimate("draft", ["lora"])
    assert "Choose at least one" in view.estimate("draft", ["nonsense"])
    teach(session.run, view.row.name, found.digest)
    steps = presets.recipe(view.row, "lora", "draft", class_word="person").steps
    told = services.view(capability).estimate("draft", ["lora"])
    assert f"about {phrases.duration(phrases.rounded(steps / 2))}" in told and "as measured on this machine" in told


def test_what_people_typed_is_escaped():
    from ui.generate import html as generate_html
    from ui.page import html as page_html
    from ui.run import cards
    from ui.train import html as train_html
    from ui.upload import html as upload_html

    evil = '<script>alert("x")</script>'
    html = upload_html.photo_cards([cards.PhotoCard(evil, None, "leave_out", evil, "", evil)])
    html += generate_html.gallery([cards.Shot("lora", 1, 'x" onerror="alert(1)', evil, None, evil, True)])
    html += (
        page_html.note(evil) + page_html.stepper([(evil, evil, True)], ["upload"]) + page_html.downloads([(evil, evil)])
    )
    html += train_html.lane(cards.Lane("lora", evil, note=evil, preview=evil, strip=(evil,)))
    assert "<script" not in html and ' onerror="' not in html


def test_only_what_changed_is_sent(services, base):
    import gradio as gr

    from ui.front.steps import Frame
    from ui.generate import layout as generate_layout
    from ui.page.refresh import Refresh
    from ui.score import score
    from ui.train import layout as train_layout
    from ui.upload import layout as upload_layout

    with gr.Blocks():
        built = {
            "upload": upload_layout.build(services),
            "train": train_layout.build(services),
            "generate": generate_layout.build(services),
            "score": score.build(services),
        }
        page = Refresh(services, (Frame.build(),), {name: (gr.Tab(), (tab,)) for name, tab in built.items()})
    capability, session = services.sessions.create()
    seen: dict = {}
    for name in built:
        fresh, seen = page.changed(name, capability, seen)
        assert set(fresh) <= {*page.framed, *page.shown[name]} and len(fresh) > 5
        assert page.changed(name, capability, seen)[0] == {}
    take_in(session.run)
    assert built["upload"].cards in page.changed("upload", capability, seen)[0]
    assert built["score"].strip not in page.changed("score", capability, seen)[0]


def test_columns_and_methods_have_names_and_colours():
    from ui.page.theme import METHOD_COLOURS, METHOD_NAMES

    assert set(METHOD_NAMES) == set(METHOD_COLOURS) == set(COLUMNS) and set(METHODS) < set(COLUMNS)


def test_every_job_of_the_line_has_an_estimate_once_this_machine_was_timed(services, base, monkeypatch):
    from ui.generate.values import samplings
    from ui.run.start import start_generation, start_training

    capability, session = services.sessions.create()
    found = take_in(session.run)
    session = services.sessions.choose(session, class_word="man", consent_at="now")
    row = services.view(capability).row
    told = []
    monkeypatch.setattr(jobs, "enqueue", lambda run, spec, **how: told.append(how["estimate_s"]))
    plan = samplings(row, **DIALS)
    start_generation(services, session, columns=("none",), samplings=plan)
    teach(session.run, row.name, found.digest)
    services.view(capability)  # notes that a step took half a second
    start_training(services, session, methods=("lora",), quality="draft")
    whole = presets.recipe(row, "lora", "draft", class_word="man").steps / 2
    assert told == [None, pytest.approx(whole)]

    # a training that was stopped: what it had taken is done
    spec = jobs.JobSpec("train", row.name, "man", ("lora",), "draft")
    write_json(session.run.spec, spec)
    write_json(session.run.status, jobs.JobStatus("cancelled", "train", job="one", wall_s=20.0))
    session = services.sessions.find(capability)
    start_training(services, session, methods=("lora",), quality="draft")
    assert told[2] == pytest.approx(whole - 20.0)

    # pictures: as long as the last ones took, a step
    done = replace(spec, kind="generate", methods=("none", "lora"), samplings=plan)
    session.run.drawing.job_folder.mkdir()
    write_json(session.run.drawing.spec, done)
    write_json(session.run.drawing.status, jobs.JobStatus("done", "generate", job="two", wall_s=8.0))
    services.view(capability)
    start_generation(services, session, columns=("none",), samplings=plan)
    assert told[3] == pytest.approx(4.0)


def test_a_damaged_card_costs_its_method_and_not_the_page(services, base):
    capability, session = services.sessions.create()
    found = take_in(session.run)
    row = services.view(capability).row
    for method in ("lora", "dreambooth"):
        teach(session.run, row.name, found.digest, method)
    assert set(services.view(capability).trained) == {"lora", "dreambooth"}
    (session.run.method("lora") / "subject.json").write_bytes(b"")  # as a power cut may leave it
    assert set(services.view(capability).trained) == {"dreambooth"}


def test_a_run_is_deleted_although_its_worker_lets_go_a_moment_after_it_said_it_had_ended(services):
    _, session = services.sessions.create()
    jobs.save_status(session.run, jobs.JobStatus("cancelled", kind="train"))
    lock = Lock(session.run.lock)
    assert lock.acquire() and not jobs.released(session.run)
    threading.Timer(0.3, lock.release).start()
    services.stop_and_wait(session.run)
    assert services.sessions.forget(session)["remaining_files"] == 0
