"""The API as a program meets it: docs/api.md is run as it stands, and what must be refused is refused.

On a live app with a tiny base that draws noise, and trainings of a few steps.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "api.md"
SAMPLE = sorted((ROOT / "presets" / "sample_person").glob("*.png"))
FAST = {"steps": 4, "batch": 2, "preview_every_s": 0.0}
ENDPOINTS = {"add_photos", "train", "status", "generate", "score", "finish", "finished", "download", "stop", "delete"}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The app on a free port, with a tiny base and trainings of a few steps."""
    from tests.live import live_app
    from tests.tiny import make_tiny_sd

    base = make_tiny_sd(tmp_path_factory.mktemp("bases") / "tiny", "portrait")

    def short(spec):
        return replace(spec, settings=dict.fromkeys(spec.methods, FAST))

    packs = tmp_path_factory.mktemp("no-packs")
    with live_app(tmp_path_factory, teach=short, LIKENESS_BASE=base, LIKENESS_FACE_MODELS=packs) as (found, _):
        yield found


@pytest.fixture(scope="module")
def client(address):
    from gradio_client import Client

    return Client(address, analytics_enabled=False, verbose=False)


@pytest.fixture(scope="module")
def photos():
    from gradio_client import handle_file

    return [handle_file(path) for path in SAMPLE]


@pytest.fixture
def key(client, photos):
    return client.predict(files=photos, class_word="woman", consent=True, api_name="/add_photos")["key"]


def refusal(client, **arguments) -> str:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        client.predict(**arguments)
    return str(caught.value)


def test_the_documentation_runs_as_it_stands(address, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = DOCS.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert "http://127.0.0.1:7860" in blocks[0] and len(blocks) >= 10
    names: dict[str, object] = {"__name__": "docs"}
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        for number, block in enumerate(blocks):
            code = block.replace("http://127.0.0.1:7860", address).replace("time.sleep(2)", "time.sleep(0.3)")
            exec(compile(code, f"docs/api.md, block {number}", "exec"), names)
    scores, said = names["scores"], told.getvalue()
    assert isinstance(scores, dict) and {row["method"] for row in scores["table"]} == {"none", "lora"}
    assert all(row["pictures"] == 3 for row in scores["table"])
    assert "likeness.zip" not in said and "methods/lora/subject.json" in said
    assert "This page's run is no longer here" in said
    for name in ENDPOINTS:
        assert f"`/{name}`" in text, f"docs/api.md says nothing of {name}"


def test_endpoints_are_typed_and_nothing_else_is_offered(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {f"/{name}" for name in ENDPOINTS}
    for name, about in named.items():
        assert about["description"], name
        for argument in about["parameters"]:
            assert argument["type"], (name, argument)
        (answer,) = about["returns"]
        assert answer["type"].get("type") in ("object", "array"), name
    assert named["/status"]["returns"][0]["type"]["properties"]["busy"] == {"type": "boolean"}


def test_without_consent_nothing_is_kept(client, photos, address):
    import os

    runs = Path(os.environ["LIKENESS_HOME"])
    before = {path.name for path in runs.iterdir()} if runs.is_dir() else set()
    for consent in (False, None, "yes", 1):
        said = refusal(client, files=photos, class_word="woman", consent=consent, api_name="/add_photos")
        assert "Consent has to be stated" in said
    assert {path.name for path in runs.iterdir()} == before
    until = time.monotonic() + 20  # uploads go a moment after the event that named them
    while left := list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.png")):
        assert time.monotonic() < until, left
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"class_word": "dog"}, "choose one of these"),
        ({"base": "../models"}, "There is no base"),
        ({"base": ["sd15"]}, "There is no base"),
        ({"class_word": ["woman"]}, "choose one of these"),
        ({"files": []}, "No photos arrived"),
        ({"files": [{"path": "/etc/passwd", "meta": {"_type": "not a file"}}]}, None),
        ({"files": ["/etc/passwd"]}, "handle_file"),
        ({"files": [{}]}, "handle_file"),
        ({"files": 7}, "handle_file"),
        ({"key": "A" * 43}, "no longer here"),
        ({"key": "../../etc"}, "no longer here"),
    ],
)
def test_what_can_not_be_taken_in_is_refused(client, photos, arguments, said):
    sent = {"files": photos[:1], "class_word": "woman", "consent": True, "key": "", "base": ""} | arguments
    if said is None:  # somebody else's file: the guard answers before Gradio does
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            client.predict(**sent, api_name="/add_photos")
    else:
        assert said in refusal(client, **sent, api_name="/add_photos")


def test_every_endpoint_wants_a_key_and_checks_what_it_is_told(client, key):
    for name in sorted(ENDPOINTS - {"add_photos"}):
        more = {"files": []} if name == "finish" else {}
        assert "no longer here" in refusal(client, key="A" * 43, **more, api_name=f"/{name}")
        assert "no longer here" in refusal(client, key={"path": 3}, **more, api_name=f"/{name}")
    for arguments, said in (
        ({"quality": "superb"}, "no quality"),
        ({"methods": ["hypernetwork"]}, "is no method"),
        ({"methods": "lora"}, "as a list"),
        ({"methods": [["lora"]]}, "as a list"),
        ({"methods": ["lora"], "settings": {"dreambooth": {"steps": 9}}}, "not to be trained"),
        ({"methods": ["lora"], "settings": {"lora": {"steps": 1e9}}}, "steps must be a whole number"),
        ({"methods": ["lora"], "settings": {"lora": {"colour": "x"}}}, "colour of lora can't be set here"),
        ({"methods": ["lora"], "settings": {"lora": {"start_from": "0" * 64}}}, "can't be set here"),
        ({"methods": ["lora"], "settings": {"lora": {"optimizer": "sgd"}}}, "There is no such optimizer"),
        ({"methods": ["lora"], "settings": {"lora": {"dora": "yes"}}}, "dora of lora can't be set here"),
        ({"methods": ["pivotal"], "settings": {"pivotal": {"face_weight": 99}}}, "face_weight must be a number"),
        ({"methods": ["lora"], "settings": {"lora": 3}}, "one object per method"),
    ):
        assert said in refusal(client, key=key, **arguments, api_name="/train")
    assert "Train at least one method first" in refusal(client, key=key, prompt="{subject}", api_name="/generate")
    assert "first" in refusal(client, key=key, api_name="/score")
    status = client.predict(key=key, api_name="/status")
    assert status["state"] == "none" and not status["busy"] and status["trained"] == []


def test_what_can_not_be_drawn_is_refused():
    from pipelines.bases.registry import BASES
    from pipelines.core.records import UserError
    from ui.programs.answers import plan_of

    row = BASES["portrait-128"]
    for changes, said in (
        ({"style": "astronaut"}, "written for"),
        ({"style": "../styles"}, "There is no style"),
        ({"style": ["studio-grey"]}, "There is no style"),
        ({"prompt": "", "style": ""}, "either a prompt"),
        ({"prompt": "portrait of {subject}", "style": "studio-grey"}, "either a prompt"),
        ({"prompt": "portrait of {}"}, "says {}"),
        ({"prompt": "portrait of {subject}, spaceship"}, "does not know: spaceship"),
        ({"prompt": "portrait of {subject}", "number": 25}, "number must be a whole number from 1 to 24"),
        ({"prompt": "portrait of {subject}", "number": True}, "number must be"),
        ({"prompt": "portrait of {subject}", "seed": float("nan")}, "seed must be"),
    ):
        asked = {"prompt": "", "style": "", "number": 1, "seed": 0} | changes
        with pytest.raises(UserError, match=re.escape(said)):
            plan_of(row, **asked)
    plan = plan_of(row, "", "studio-grey", 3, 7)
    assert [each.seed for each in plan] == [7, 8, 9] and plan[0].prompt == plan[2].prompt


def test_a_program_is_answered_in_english_whatever_it_likes(address, photos):
    from gradio_client import Client

    german = Client(address, analytics_enabled=False, verbose=False, headers={"accept-language": "de"})
    first = german.predict(files=photos[:3], class_word="woman", consent=True, api_name="/add_photos")
    assert "2 more photos" in first["problem"]
    assert "2 more photos" in refusal(german, key=first["key"], api_name="/train")
    german.predict(key=first["key"], api_name="/delete")


def test_too_few_photos_say_how_many_are_missing_and_more_can_follow(client, photos):
    first = client.predict(files=photos[:3], class_word="woman", consent=True, api_name="/add_photos")
    assert (first["missing"], first["ready"]) == (2, False) and "2 more photos" in first["problem"]
    assert "2 more photos" in refusal(client, key=first["key"], api_name="/train")
    then = client.predict(files=photos[3:], class_word="woman", consent=True, key=first["key"], api_name="/add_photos")
    assert then["key"] == first["key"] and then["ready"] and then["problem"] == ""
    assert {each["part"] for each in then["verdicts"]} >= {"training", "held out"}
    client.predict(key=first["key"], api_name="/delete")


def test_links_open_for_the_program_that_showed_the_key_and_for_nobody_else(client, key, address):
    from gradio_client import Client

    links = client.predict(key=key, api_name="/download")
    link = f"{address}/{links[0]['link']}"
    assert httpx.get(link, cookies=client.cookies).status_code == 200
    assert httpx.get(link).status_code == 403, "a program without the cookie"
    other = Client(address, analytics_enabled=False, verbose=False)
    assert other.cookies and httpx.get(link, cookies=other.cookies).status_code == 403, "another program"
    with httpx.Client() as browser:
        browser.get(address)
        assert browser.cookies and browser.get(link).status_code == 403, "another browser"
    assert httpx.get(link.replace("/media/", "/media/9"), cookies=client.cookies).status_code == 403
    assert httpx.get(f"{address}/gradio_api/file={SAMPLE[0]}").status_code == 403
    client.predict(key=key, api_name="/delete")
    assert httpx.get(link, cookies=client.cookies).status_code == 403, "nothing is left to fetch"


def test_calls_that_go_around_the_queue_are_closed(address, key):
    body = {"data": [key]}
    for path in ("run/status", "api/status", "call/status", "run/delete"):
        assert httpx.post(f"{address}/gradio_api/{path}", json=body).status_code in (403, 404), path
    foreign = httpx.post(f"{address}/gradio_api/queue/join", json=body, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
