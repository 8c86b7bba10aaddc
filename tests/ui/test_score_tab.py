"""The Score tab without a browser: any picture is judged and dropped, friends vote, the download explains itself."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipelines.core.files import append_line
from pipelines.core.records import Photo, PhotoSet, UserError
from pipelines.core.run import load_photo_set, run_at, save_photo_set
from pipelines.evaluation import lookalike, votes
from pipelines.faces.face import Seen
from pipelines.faces.judges import available_judges
from tests.evaluation.test_scoring import MEASURED, ColourJudge
from tests.ui.test_app import base, draw, own_home, services, take_in, teach  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "presets" / "sample_person"
RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


class PatchJudge(ColourJudge):
    """Sees a face in every 20 px square that is not black; the largest face is the first from the left."""

    def look_at_each(self, image):
        found = []
        for left in range(0, image.shape[1], 20):
            patch = image[:20, left : left + 20].astype(np.float64).reshape(-1, 3).mean(0)
            if patch.max():
                box = (float(left), 0.0, left + 20.0, 20.0)
                found.append(Seen(patch / np.linalg.norm(patch), None, 20.0, 1, box))
        return found


JUDGE = PatchJudge()


def patches(*colours) -> np.ndarray:
    return np.concatenate([np.full((20, 20, 3), colour, np.uint8) for colour in colours], axis=1)


def photo(folder: Path, name: str, colour) -> Photo:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches(colour)).save(folder / name)
    return Photo(name, str(folder / name), name.ljust(64, "0"), 20, 20, (2, 2, 18, 18), ((6, 8), (14, 8)), 8.0)


@pytest.fixture
def red(tmp_path) -> PhotoSet:
    """A person who is red, with two held-out photos."""
    shades = [(255, 0, 0), (255, 40, 0), (255, 0, 30), (250, 10, 10)]
    photos = [photo(tmp_path / "red", f"{n}.png", shade) for n, shade in enumerate(shades)]
    return PhotoSet(tuple(photos[:2]), (), tuple(photos[2:]))


def pictures(folder: Path, colour, count: int) -> list[Path]:
    return [Path(photo(folder, f"{n}.png", colour).path) for n in range(count)]


# ------------------------------------------------------------------------------------------------- the logic


def test_every_face_is_judged_for_itself_from_left_to_right(red):
    knowing, notes = lookalike.known([JUDGE], red)
    answer = lookalike.look_at_any(patches(BLUE, BLACK, RED, GREEN), knowing)
    assert notes == [] and answer.judges == ("colour",)
    assert [face.box[0] for face in answer.faces] == [0.0, 40.0, 60.0]
    assert [face.opinions[0].verdict for face in answer.faces] == [lookalike.NONE, lookalike.PERSON, lookalike.NONE]
    assert all(face.opinions[0].score.faces == 1 for face in answer.faces), "no face is blamed for its neighbours"


def test_the_score_is_the_one_every_render_gets(red, tmp_path):
    from pipelines.evaluation import references
    from pipelines.evaluation.scale import measure_scale

    knowing, _ = lookalike.known([JUDGE], red)
    path = Path(photo(tmp_path, "any.png", (200, 90, 0)).path)
    (face,) = lookalike.look_at_any(np.asarray(Image.open(path)), knowing).faces
    (usual,) = references.score_renders([path], references.reference(JUDGE, red.held_out))
    mine = face.opinions[0].score
    assert (mine.similarity, mine.verdict, mine.words) == (usual.similarity, usual.verdict, usual.words)
    assert knowing[0].marks == measure_scale(JUDGE, red)


def test_who_it_is_nearest_to_is_asked_of_as_many_pictures_each(red, tmp_path):
    sample, drawn = pictures(tmp_path / "sample", GREEN, 5), pictures(tmp_path / "base", BLUE, 5)
    knowing, _ = lookalike.known([JUDGE], red, sample=sample, base=drawn)
    answer = lookalike.look_at_any(patches(GREEN, BLUE, RED), knowing)
    leads = [face.opinions[0].nearest[0] for face in answer.faces]
    assert [one.who for one in leads] == [lookalike.SAMPLE, lookalike.BASE, lookalike.PERSON]
    assert [face.opinions[0].verdict for face in answer.faces] == [lookalike.SAMPLE, lookalike.BASE, lookalike.PERSON]
    assert {one.pictures for face in answer.faces for one in face.opinions[0].nearest} == {len(red.held_out)}


def test_a_held_out_photo_itself_is_told(red):
    knowing, _ = lookalike.known([JUDGE], red)
    (same,) = lookalike.look_at_any(np.asarray(Image.open(red.held_out[0].path)), knowing).faces
    (other,) = lookalike.look_at_any(patches((200, 90, 0)), knowing).faces
    assert same.opinions[0].is_held_out and not other.opinions[0].is_held_out


def test_a_judge_without_calibration_claims_nothing(red):
    class Unmeasured(PatchJudge):
        calibration = None

    knowing, _ = lookalike.known([Unmeasured()], red)
    (face,) = lookalike.look_at_any(patches(RED), knowing).faces
    assert face.opinions[0].verdict == lookalike.UNKNOWN and "uncalibrated" in face.opinions[0].sentence


def test_a_second_judge_speaks_of_the_same_face_or_of_none(red):
    class Blind(PatchJudge):
        name = "blind"

        def look_at_each(self, image):
            return [seen for seen in super().look_at_each(image) if seen.box[0] < 20]

    knowing, _ = lookalike.known([JUDGE, Blind()], red)
    first, second = lookalike.look_at_any(patches(RED, GREEN), knowing).faces
    assert [one.score.judge for one in first.opinions] == ["colour", "blind"]
    assert first.opinions[1].score.similarity == first.opinions[0].score.similarity
    assert second.opinions[1].score.similarity is None and "does not see" in second.opinions[1].sentence


def test_no_face_no_held_out_photos_and_a_damaged_pack(red, tmp_path):
    class Broken(PatchJudge):
        name = "broken"

        def look(self, image):
            raise UserError("The face pack broken could not be read.")

    knowing, notes = lookalike.known([Broken(), JUDGE], red)
    assert [one.person.judge.name for one in knowing] == ["colour"] and "could not be read" in notes[0]
    assert lookalike.look_at_any(patches(BLACK, BLACK), knowing).faces == ()
    with pytest.raises(UserError, match="could not be read"):
        lookalike.known([Broken()], red)
    with pytest.raises(UserError, match="held out"):
        lookalike.known([JUDGE], PhotoSet(red.train, (), ()))
    black = PhotoSet(red.train, (), (photo(tmp_path, "black.png", BLACK),))
    with pytest.raises(UserError, match="finds no face in the held-out photos"):
        lookalike.known([JUDGE], black)


def test_what_is_remembered_stays_in_memory_and_goes_with_the_run(red, tmp_path, monkeypatch):
    looked = []

    class Counting(PatchJudge):
        def look(self, image):
            looked.append(1)
            return super().look(image)

    monkeypatch.setattr(lookalike, "resident_judges", lambda: (Counting(),))
    monkeypatch.setattr(lookalike, "_remembered", OrderedDict())  # other tests have their own runs in it
    knowing, _ = lookalike.known_of(tmp_path, red)
    with pytest.raises(TypeError, match="memory"):
        pickle.dumps(knowing[0])
    assert "array" not in repr(knowing[0])
    once = len(looked)
    assert lookalike.known_of(tmp_path, red)[0] is knowing and len(looked) == once, "asked once"
    lookalike.known_of(tmp_path, PhotoSet(red.train[1:], (), red.held_out))
    assert len(looked) > once, "other photos are another person"
    lookalike.forget(tmp_path)
    assert not lookalike._remembered
    lookalike.known_of(tmp_path / "deleted", red)
    assert not lookalike._remembered, "nothing of a run that is gone"


def test_judges_are_made_once():
    assert lookalike.resident_judges() is lookalike.resident_judges()


def test_the_largest_of_all_faces_is_the_one_that_look_sees():
    pytest.importorskip("dlib")
    image = np.concatenate([np.asarray(Image.open(SAMPLE / f"synthetic-0{n}.png").convert("RGB").resize(size))
                            for n, size in ((3, (240, 240)), (4, (240, 240)))], axis=1)  # fmt: skip
    for judge in available_judges():
        one, every = judge.look(image), judge.look_at_each(image)
        assert len(every) == one.faces == 2 and np.array_equal(every[0].vector, one.vector)
        assert every[0].face_px >= every[1].face_px and every[0].box[0] != every[1].box[0]
        assert judge.look_at_each(np.zeros((64, 64, 3), np.uint8)) == []


def test_asking_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from pipelines.evaluation import lookalike, votes; from pipelines.reports import archive, page; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------- the handler


@pytest.fixture
def page(services, monkeypatch):  # noqa: F811
    """(the look handler, its section, capability, session) of a run with photos and consent."""
    import gradio as gr

    from ui.score import look

    caught = {}
    with gr.Blocks():
        section = look.build(services)
        monkeypatch.setattr(section.drop, "upload", lambda handler, *args, **kwargs: caught.update(kwargs, f=handler))
        look.wire(section, services, SimpleNamespace(capability=gr.BrowserState(None)))
    assert caught["concurrency_id"] == "look" and inspect.isgeneratorfunction(caught["f"])
    monkeypatch.setattr(lookalike, "resident_judges", lambda: (JUDGE,))
    capability, session = services.sessions.create()
    take_in(session.run)
    session = services.sessions.choose(session, consent_at="now")
    return caught["f"], section, capability, session


def upload(name: str, image: np.ndarray | bytes, tmp_path: Path) -> Path:
    """A file as Gradio's upload leaves it."""
    folder = tmp_path / "uploads" / "hash"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        (folder / name).write_bytes(image)
    else:
        Image.fromarray(image).save(folder / name)
    return folder / name


def ask(page, path: Path | None) -> str:
    handler, section, capability, _ = page
    return _last(handler, section, capability, path)


def _last(handler, section, capability, path) -> str:
    said = ""
    for update in handler(capability, str(path) if path else None):
        said = update.get(section.answer, said)
    return said


def test_a_dropped_picture_is_judged_and_kept_nowhere(page, tmp_path, caplog):
    *_, session = page
    before = {path for path in session.run.folder.rglob("*")}
    path = upload("aunt.png", patches((130, 120, 125), BLACK, BLUE), tmp_path)
    with caplog.at_level(logging.DEBUG):
        said = ask(page, path)
    assert (
        "Face 1 of 2" in said and "Face 2 of 2" in said and 'alt="The dropped picture; faces marked in it: 2"' in said
    )
    assert said.count("lk-strip") == 1 and "This person&#x27;s own photos: " in said
    assert {path for path in session.run.folder.rglob("*")} == before, "nothing of it is in the run"
    assert "aunt" not in caplog.text


@pytest.mark.parametrize(
    "name,content,sentence",
    [
        ("notes.jpg", b"not a picture", "is not a photo that can be read"),
        ("empty.png", b"", "is empty"),
        ("black.png", patches(BLACK), "No face was found"),
        ("<img src=x>.png", b"<script>", "is not a photo"),
    ],
)
def test_what_can_not_be_judged_is_said(page, tmp_path, name, content, sentence):
    path = upload(name, content, tmp_path)
    said = ask(page, path)
    assert sentence in said and "<script" not in said and "<img src=x" not in said


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(page, tmp_path):
    path = tmp_path / "uploads" / "hash" / "bomb.png"
    path.parent.mkdir(parents=True)
    Image.new("L", (12_000, 12_000)).save(path)
    assert "at most" in ask(page, path)


def test_heic_is_read(page, tmp_path):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "uploads" / "hash" / "phone.heic"
    path.parent.mkdir(parents=True)
    heif.from_pillow(Image.fromarray(patches(RED)).resize((64, 64))).save(path, quality=90)
    said = ask(page, path)
    assert "Face 1 of 4" in said, "64 px: four squares of 20 px and what is left"


def test_without_photos_or_consent_nobody_is_compared(page, services, tmp_path):  # noqa: F811
    handler, section, capability, session = page
    services.sessions.choose(session, consent_at=None)
    path = upload("a.png", patches(RED), tmp_path)
    assert "consent" in ask(page, path)
    stranger, _ = services.sessions.create()
    path = upload("a.png", patches(RED), tmp_path)
    assert "Add 5 more photos" in _last(handler, section, stranger, path)
    path = upload("a.png", patches(RED), tmp_path)
    assert "no longer here" in _last(handler, section, "forged", path)
    assert "No picture arrived" in ask((handler, section, _agreed(services, session, capability), session), None)


def _agreed(services, session, capability):  # noqa: F811
    services.sessions.choose(session, consent_at="now")
    return capability


def test_a_small_face_is_said_to_be_small(page, tmp_path, monkeypatch):
    class Far(PatchJudge):
        def look_at_each(self, image):
            return [Seen(np.array([1.0, 0, 0]), None, 5.0, 1, (0.0, 0.0, 5.0, 5.0))]

    monkeypatch.setattr(lookalike, "resident_judges", lambda: (Far(),))
    assert MEASURED.smallest_face_px == 12 and "too small to judge" in ask(
        page, upload("a.png", patches(RED), tmp_path)
    )


def test_the_best_render_stands_beside_the_answer(page, services, tmp_path):  # noqa: F811
    *_, capability, session = page
    row, run = services.view(capability).row.name, session.run
    teach(run, row, load_photo_set(run).digest)
    for column, subject, value in (("lora", "lora-1", 0.61), ("none", None, 0.9)):
        line = {"render": run.relative(draw(run, column, 1, row, subject)), "judge": "colour", "similarity": value}
        append_line(run.scores, line)
    view = services.view(capability)
    assert view.best_score("colour") == ("lora", 0.61), "the untrained base draws nobody in particular"
    said = ask(page, upload("a.png", patches(RED), tmp_path))
    assert "The best render of this run reaches 0.61 (LoRA)" in said and "Best render (LoRA)" in said
    assert "untrained base&#x27;s pictures" not in said, "a black render shows no face to compare with"


def test_the_best_picture_is_none_of_the_untrained_bases(services):  # noqa: F811
    from types import SimpleNamespace

    from ui.run.cards import Shot
    from ui.score.score import _best

    def shot(method, value):
        return Shot(method, 1, "", "", similarity=value, words=f"alike at {value}", verdict="borderline", scored=True)

    view = SimpleNamespace(shots=(shot("none", 0.9), shot("lora", 0.61)), marks={})
    assert "alike at 0.61" in _best(view, "colour") and "0.9" not in _best(view, "colour")
    assert _best(SimpleNamespace(shots=(shot("none", 0.9),), marks={}), "colour") == ""


# ------------------------------------------------------------------------------------------------- the tab


def test_the_tab_opens_with_the_photos_and_says_what_is_missing(services, base):  # noqa: F811
    import gradio as gr

    from ui.score import score

    with gr.Blocks():
        tab = score.build(services)
    capability, session = services.sessions.create()
    assert not services.view(capability).score_opens
    take_in(session.run)
    view = services.view(capability)
    assert (
        view.score_opens and "consent" in view.look_blocked and "consent" in tab.show(view)[tab.looking.about]["value"]
    )
    services.sessions.choose(session, consent_at="now")
    view = services.view(capability)
    shown = tab.show(view)
    assert view.look_blocked is None and shown[tab.looking.drop]["interactive"]
    assert "No method has a score yet. Train at least one method" in shown[tab.blocked]["value"]
    assert not shown[tab.table]["visible"] and not shown[tab.voting.row]["visible"]
    assert "Judges any picture now" in view.steps()[3][1]


def test_a_vote_is_started_counted_and_told_beside_the_judge(services, base):  # noqa: F811
    import gradio as gr

    from ui.run.package import pack
    from ui.score import score, vote

    with gr.Blocks():
        tab = score.build(services)
    capability, session = services.sessions.create()
    run, found = session.run, take_in(session.run)
    services.sessions.choose(session, consent_at="now")
    row = services.view(capability).row.name
    for method in ("lora", "dreambooth"):
        teach(run, row, found.digest, method)
    for seed in range(3):
        for method, value in (("lora", 0.5), ("dreambooth", 0.2), ("none", 0.0)):
            path = draw(run, method, seed, row, None if method == "none" else f"{method}-1")
            line = {"render": run.relative(path), "judge": "dlib", "similarity": value}
            append_line(run.scores, line)
    view = services.view(capability)
    shown = tab.show(view)
    assert shown[tab.voting.row]["visible"] and shown[tab.voting.links]["value"] == ""
    assert "Friends" not in shown[tab.table]["value"] and vote.friends(view) == {}
    asked = votes.start(run)
    for number in range(3):
        votes.answer(run, asked.voter, round=number, pick=asked.rounds[number].order.index("lora"))
    second = votes.start(run)
    view = services.view(capability)
    shown = tab.show(view)
    assert "Friends&#x27; picks" in shown[tab.table]["value"] or "Friends' picks" in shown[tab.table]["value"]
    assert "100% (44% to 100%)" in shown[tab.table]["value"] and "0% (0% to 56%)" in shown[tab.table]["value"]
    said = shown[tab.voting.said]["value"]
    assert "1 voter answered 3 rounds" in said and "order of the methods is that of dlib" in said
    assert "3 of 3" in said and "In 3 of 3 rounds" in said
    links = shown[tab.voting.links]["value"]
    assert f"vote/{run.id}/{second.voter}" in links and asked.voter not in links, "a finished vote has no link"
    pack(run, services.media)
    with zipfile.ZipFile(run.folder / "likeness.zip") as archive:
        assert len(archive.read("votes.jsonl").splitlines()) == 3
        settings = json.loads(archive.read("settings.json"))
        readme = archive.read("README.txt").decode()
        names = set(archive.namelist())
    assert settings["base"] == Path(row).name, "of a local base never the path"
    assert set(settings["methods"]) == {"lora", "dreambooth"}
    assert settings["pictures"]["renders/lora/seed1.png"]["seed"] == 1 and settings["photos"]["held_out"] == 2
    for name in names - {"README.txt"}:
        assert name in readme or name.startswith("renders/"), f"README.txt is silent about {name}"
    assert "renders/lora/: 3 pictures drawn by LoRA." in readme and "me0.jpg" not in readme + json.dumps(settings)


def test_a_vote_page_is_served_behind_the_guard(services, base):  # noqa: F811
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.testclient import TestClient

    from ui.web.ballot import Ballots, link
    from ui.web.guard import Guard

    capability, session = services.sessions.create()
    run, found = session.run, take_in(session.run)
    row = services.view(capability).row.name
    for method in ("lora", "dreambooth"):
        teach(run, row, found.digest, method)
        draw(run, method, 1, row, f"{method}-1")
    asked = votes.start(run)
    app = Starlette(
        middleware=[Middleware(Guard, media=services.media), Middleware(Ballots, root=services.sessions.root)]
    )
    client = TestClient(app)
    address = "/" + link(run, asked.voter)
    page = client.get(address)
    assert page.status_code == 200 and "no-store" in page.headers["cache-control"]
    assert "frame-ancestors" in page.headers["content-security-policy"] and 'content="same-origin"' in page.text
    foreign = client.post(address, data={"round": "0", "pick": "0"}, headers={"origin": "https://elsewhere.example"})
    assert foreign.status_code == 403 and votes.answers(run) == []
    done = client.post(address, data={"round": "0", "pick": "0"}, headers={"origin": "http://testserver"})
    assert done.status_code == 200 and "Thank you" in done.text and str(done.url).endswith(address), "back to the vote"
    again = client.post(address, data={"round": "0", "pick": "1"})
    assert "Thank you" in again.text and len(votes.answers(run)) == 1
    assert client.put(address).status_code == 405 and client.get("/vote/x/y").status_code == 404
    assert client.get("/elsewhere").status_code == 404, "everything else goes on"


def test_names_on_the_strip_and_in_votes_are_escaped():
    from ui.run import cards
    from ui.score import html as score_html

    evil = '<script>alert("x")</script>'
    html = score_html.strip(cards.StripData(evil, (), {evil: (0.1,)})) + score_html.vote_links([(evil, 1, 2)])
    html += score_html.table([cards.MethodRow("lora", *[None] * 8)], {"lora": evil}) + score_html.judge_title(
        evil, first=True
    )
    assert "<script" not in html


def test_the_command_line_asks_the_same(tmp_path, capsys, red, monkeypatch):
    from pipelines.cli.entry import main

    monkeypatch.setattr("pipelines.faces.judges.available_judges", lambda **_: [JUDGE])
    run = run_at(tmp_path / "run")
    run.photos.mkdir()
    moved = [photo(run.photos, Path(one.path).name, np.asarray(Image.open(one.path))[0, 0]) for one in red.photos]
    save_photo_set(run, PhotoSet(tuple(moved[:2]), (), tuple(moved[2:])))
    any_picture = tmp_path / "any.png"
    Image.fromarray(patches(RED, BLACK, BLUE)).save(any_picture)
    assert main(["score", str(any_picture), "--run", str(run.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]["any.png"]["faces"]
    first, second = (one["judges"]["colour"] for one in found)
    assert first["looks_like"] == lookalike.PERSON != second["looks_like"]
    assert set(first["nearest"]) == {lookalike.PERSON, lookalike.SAMPLE}, "nothing was drawn by the base yet"
    assert main(["score", str(any_picture), "--run", str(run.folder)]) == 0
    assert "face 1, colour: It looks like this person." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["score", str(any_picture)])


def test_letters_stand_above_their_lines_and_not_on_each_other():
    from ui.run import cards
    from ui.score import html as score_html

    values = (0.37, 0.30, 0.49, 0.488)
    marks = tuple(cards.Mark(f"mark {n}", value, "what it means") for n, value in enumerate(values))
    html = score_html.strip(cards.StripData("a judge", marks))
    places = re.findall(r'lk-mark" style="left:([\d.]+)%;bottom:(\d+)px" title="mark (\d)"', html)
    assert sorted(int(n) for *_, n in places) == [0, 1, 2, 3]
    assert all(float(left) == pytest.approx(100 * values[int(n)]) for left, _, n in places)
    for bottom in {bottom for _, bottom, _ in places}:
        row = sorted(float(left) for left, at, _ in places if at == bottom)
        assert all(b - a >= score_html.LETTER_GAP for a, b in zip(row, row[1:]))
