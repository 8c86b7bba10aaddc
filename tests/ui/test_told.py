"""What the pages show is told in the reader's language, all of it: a rich run is rendered in English and in others.

Beside it: what other layers say is still what `ui.words.retold` looks for, and every picture has a text of its own.
"""

# ruff: noqa: F811 - fixtures come from test_app

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest

from pipelines.bases.memory import MemoryNeeds, memory_plan
from pipelines.core import presets
from pipelines.core.files import append_line, write_json
from pipelines.core.records import REASONS, Event, Look, Sampling, Score
from pipelines.evaluation import lookalike, votes
from pipelines.evaluation.scale import Scale
from pipelines.faces.judges import judge_named
from pipelines.finishing import mark, refine
from pipelines.finishing.credentials import ADOBE, Credentials
from pipelines.photos import checks
from pipelines.reports import figures
from tests.reports.test_figures import FOUND
from tests.ui.test_app import PORTRAIT_WORDS, base, own_home, photo_file, take_in, teach  # noqa: F401
from tests.ui.test_generate_tab import SAMPLING, draw, job
from tests.ui.test_words import LANGUAGES, every_text, measured
from ui.generate import html as generate_html
from ui.generate import styles, values
from ui.page import html as page_html
from ui.programs import endpoints
from ui.run import cards, photobox
from ui.run.services import offered_bases
from ui.score import html as score_html
from ui.score import look
from ui.train import dials, plots
from ui.train import html as train_html
from ui.words import phrases, retold, words

ROOT = Path(__file__).resolve().parents[2]
# What no language of ours changes: names, licences, what goes into a prompt, and what this test calls things.
NAMES = """
Likeness LoRA DreamBooth DoRA Textual inversion Pivotal tuning dlib arc colour mine sks GB MB kB px min PNG ZIP HTML
JSON CSV JPEG IPTC UTC jpg me
"""


# ------------------------------------------------------------------------------------------------- what is shown


class _Texts(HTMLParser):
    """The texts that a piece of HTML shows, or has for who can't see it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        shown = ("alt", "aria-label", "data-copy") if "lk-look" in (named.get("class") or "") else TOLD
        self.found += [value for name in shown if (value := named.get(name))]
        if tag == "img" or named.get("role") == "img":
            self.images.append(named)


TOLD = ("alt", "aria-label", "title", "placeholder", "data-copy")


def read(html: str) -> _Texts:
    reader = _Texts()
    reader.feed(html)
    return reader


def spoken(updates: dict[Any, Any]) -> Iterator[str]:
    """Every text that components are told to show; their HTML as it is."""
    for component, told in updates.items():
        for name in ("value", "x_title", "y_title", "color_title", "label", "info"):
            shown = told.get(name)
            if hasattr(shown, "line"):  # a table of a plot
                yield from shown.line.unique()
            elif isinstance(shown, str) and (name != "value" or isinstance(component, gr.HTML | gr.Button)):
                yield shown
        yield from (choice[0] for choice in told.get("choices") or () if isinstance(choice, tuple))


def words_of(texts: Iterator[str] | list[str]) -> set[str]:
    # a marker is replaced by the page
    plain = (piece for text in texts for piece in read(re.sub(r"__i18n__\{.*?\}", "", text)).found)
    return {word for each in plain for word in re.findall(r"[^\W\d_]{2,}", each)}


def known_words(language: str) -> set[str]:
    translations = json.loads((words.FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return set(re.findall(r"[^\W\d_]{2,}", " ".join(translations.values())))


def names() -> set[str]:
    texts = [
        NAMES,
        *PORTRAIT_WORDS,
        *values.SCHEDULERS[1:],
        *dials.OPTIMIZER_NAMES.values(),
    ]
    texts += [part for style in presets.styles().values() for part in (style.name, style.prompt, style.negative_prompt)]
    texts += [part for row in offered_bases()[0].values() for part in (row.title, row.licence)]
    texts += [judge_named("dlib").licence]
    return set(re.findall(r"[^\W\d_]{2,}", " ".join(texts)))


def left_in_english(render: Any, language: str) -> set[str]:
    """Words of the English page that stand on the other one and that this language never says."""
    english = words_of(render())
    with words.speaking(language):
        other = words_of(render())
    assert len(other) > 2, "something is shown"
    return (english & other) - known_words(language) - names()


def assert_told(render: Any) -> None:
    for language in LANGUAGES:
        assert left_in_english(render, language) == set(), language


# ------------------------------------------------------------------------------------------------- a rich run


@pytest.fixture
def show(base, monkeypatch):
    """`show(capability)`: everything that the whole app's tabs show at their first opening."""
    import app
    from ui.page import refresh

    pages: list[Any] = []
    monkeypatch.setattr(refresh.Refresh, "_settle", lambda self: pages.append(self))
    monkeypatch.setattr(app, "_janitor", lambda *args: None)
    app.build()
    (found,) = pages

    def show(capability: object) -> dict[Any, Any]:
        view = found.services.view(capability)
        shown = [found.frame(view), *(found.built(tab, view) for tab in found.tabs)]
        return {component: update for updates in shown for component, update in updates.items()}

    show.services = found.services  # type: ignore[attr-defined]
    return show


def rich(show) -> str:
    """A run in which everything has happened that the pages tell of. Returns its capability."""
    services = show.services
    capability, session = services.sessions.create()
    run, found = session.run, take_in(session.run, 6)
    row = services.view(capability).row.name
    both, next_photo = ("dark", "near_duplicate"), "a photo in daylight"
    staged = [
        photobox.Staged("a.jpg", "000.png", REASONS["dark"], "usable", ("dark",), pin="trained"),
        photobox.Staged("b.jpg", "001.png", "; ".join(REASONS[code] for code in both).replace("another one", "a.jpg"),
                        "usable", both, zoom=1.2, caption="x"),
        photobox.Staged("c.jpg", None, REASONS["same_picture"].replace("another one", "a.jpg"), "leave_out",
                        ("same_picture",)),
        photobox.Staged("d.jpg", "002.png", REASONS["another_person"], "leave_out", ("another_person",), kept=True),
        photobox.Staged("me3.jpg", "003.png"),
    ]  # fmt: skip
    report = checks.report([], [measured(99)], [], None)
    report = replace(report, ceiling=0.4, ceiling_low=True, next_photo=next_photo, angles=((0.1, 0.2),))
    photobox._save(run, photobox.Box(tuple(staged), found, None, report))
    for method in ("lora", "dreambooth"):
        teach(run, row, found.digest, method)
    preview = [photo_file(run.method("lora"), f"preview_{step:05d}.png") for step in (2, 4)]
    told = [Event("start", "lora", 0, 4), *(Event("step", "lora", i, 4, loss=1 / i, seconds=i) for i in (1, 2, 3, 4))]
    told += [Event("preview", "lora", 2 * i, 4, path=str(path)) for i, path in enumerate(preview, start=1)]
    for event in (*told, Event("done", "lora", 4, 4, seconds=4)):
        append_line(run.events, event)
    mine = {
        "id": "mine-1", "base": row, "photo_digest": "", "phrase": "sks", "complete": True, "steps": 0, "train_s": 0,
        "artifact_bytes": 1, "trainable_params": 1, "imported": {"kind": "embedding", "rank": 2},
    }  # fmt: skip
    for name, kind in (("imported-mine", "lora"), ("imported-other", "embedding")):
        card = mine | {"id": name, "imported": {"kind": kind, "rank": 2}}
        write_json(run.method(name) / "subject.json", card)
    subjects = {"none": None, "lora": "lora-1", "dreambooth": "dreambooth-1", "imported-mine": "imported-mine"}
    files = [draw(run, column, SAMPLING, row, subject) for column, subject in subjects.items()]
    job(run, files)
    told_of: list[dict[str, Any]] = [
        {"similarity": 0.3, "verdict": "someone else", "words": "0.30 - like most different-person pairs"},
        {"similarity": 0.61, "verdict": "looks like you", "words": "0.61 - higher than 99.9% of different-person pairs",
         "note": "2 faces are in the picture; the largest was judged. The face is 9 px high, too small to judge: below "
                 "12 px even real photos score low."},
        {"similarity": 0.5, "verdict": "borderline",
         "words": "0.50 - higher than all measured of different-person pairs"},
        {"similarity": None, "verdict": "no face", "reason": "no face found"},
    ]  # fmt: skip
    for file, said in zip(files, told_of, strict=True):
        append_line(run.scores, {"render": run.relative(file), "judge": "dlib", **said})
    marks = {"impostor": 0.25, "floor": 0.1, "best_possible": 0.6, "ceiling": 0.7, "ceiling_low": 0.6,
             "ceiling_high": 0.8, "threshold": 0.4}  # fmt: skip
    write_json(run.marks, {"dlib": marks, "arc": marks})
    job(run, [draw(run, "lora", each, row, "lora-1") for each in swept(SAMPLING)])
    change = replace(SAMPLING, source=run.relative(files[1]), change=0.4, seed=5)
    job(run, [draw(run, "lora", change, row, "lora-1")])
    worst = [run.relative(file) for file in files[:2]]
    write_json(run.figures, drawn() | {"worst": worst})
    session = services.sessions.choose(session, consent_at="now", base=row, keep=2)
    asked = votes.start(run)
    for number in range(len(asked.rounds)):
        votes.answer(run, asked.voter, round=number, pick=0)
    votes.start(run)
    record(services.view(capability))
    shot = next(each for each in services.view(capability).pictures if each.method == "lora")
    services.sessions.choose(session, picked=shot.id, finishing=shot.id)
    return capability


def record(view) -> None:
    """What finishing leaves of the LoRA's pictures, in every state."""
    run = view.session.run
    sentences = [
        "Who it is did not change (dlib 0.61 → 0.60, arc 0.70 → 0.71).",
        "dlib finds less of the person in it: 0.40 instead of 0.61, and at most 0.04 may be lost.",
        "There is no grain worth removing (0.3 grey levels).",
        "The background stays as it is: the outline found cuts into the face.",
    ]
    states = (refine.KEPT, refine.DROPPED, refine.NOT_NEEDED, refine.DROPPED)
    steps = [
        {"step": name, "name": refine.STEPS[name].name, "choice": "sand" if name == "background" else "",
         "state": state, "sentence": sentence, "before_file": "a.jpg", "after_file": "b.jpg"}
        for name, state, sentence in zip(("exposure", "enlarge", "denoise", "background"), states, sentences)
    ]  # fmt: skip
    for shot in view.pictures:
        if shot.method != "lora":
            continue
        folder = run.finished(shot.path)
        folder.mkdir(parents=True)
        for name in ("portrait.jpg", "a.jpg", "b.jpg", "flaws.jpg"):
            (folder / name).write_bytes(b"x")
        (folder.parent / "finished.zip").write_bytes(b"x")
        saved = {
            "picture": shot.path, "base": shot.base, "subject": shot.subject, "file": "portrait.jpg", "format": "JPEG",
            "raw_file": "a.jpg", "refined_file": "b.jpg", "width_px": 400, "height_px": 400, "bytes": 41_000,
            "marks": {"credentials": True, "field": True, "watermark": True}, "reference": refine.HELD_OUT,
            "reference_photos": 2, "order": {"pictures": [shot.path, "x"]}, "steps": steps,
            "flaws": {"file": "flaws.jpg", "score": 0.2},
            "notes": ["dlib finds no face in the raw picture.",
                      "400 x 300 pixels: more would not have fitted into 60 kB."],
            "similarity": {"dlib": {"raw": 0.61, "refined": 0.6, "delivered": None, "may_lose": 0.04}},
        }  # fmt: skip
        write_json(folder / "finished.json", saved)


def test_nothing_of_a_rich_run_stays_english(show):
    capability = rich(show)
    render = lambda: list(spoken(show(capability)))  # noqa: E731
    shown = " ".join(render())
    for part in (
        "lk-fin-steps", "lk-votes", "lk-likeness" if "lk-likeness" in shown else "No likeness curve",
        "lk-jobs", "lk-dropped", "lk-picked", "lk-strip", "Friends", "lk-worst", "Identity against obedience",
        "called by", "near_duplicate" if "near_duplicate" in shown else "nearly the same picture as a.jpg",
    ):  # fmt: skip
        assert part in shown, part
    assert_told(render)


def test_nothing_that_a_new_visitor_sees_is_english(show):
    assert_told(lambda: list(spoken(show(None))))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_a_run_with_photos_and_nothing_else(show, count):
    """With 8 and no photo for validation the reason is another one."""
    capability, session = show.services.sessions.create()
    found = take_in(session.run, count)
    teach(session.run, show.services.view(capability).row.name, found.digest)
    show.services.sessions.choose(session, consent_at="now")
    assert_told(lambda: list(spoken(show(capability))))


# ------------------------------------------------------------------------------------------------- pieces


def shots() -> list[cards.Shot]:
    return [
        cards.Shot("lora", 1, "/1", "p {subject}", 0.6, None, "looks like you", scored=True, id="1", sampling=SAMPLING),
        cards.Shot("none", 1, "/2", "p {subject}", 0.2, None, "someone else", scored=True, id="2", sampling=SAMPLING),
        cards.Shot("dreambooth", 2, "/3", "p {subject}", 0.7, None, "someone else", scored=True),
        cards.Shot("dreambooth", 3, "/4", "p {subject}", None, "no face found", "no face", scored=True),
        cards.Shot("dreambooth", 4, "/5", "p {subject}", None, scored=True),
        cards.Shot("dreambooth", 5, "/6", "p {subject}"),
        cards.Shot("dreambooth", 6, "/7", "p {subject}", 0.3, None, "borderline", drawing=True, scored=True),
        cards.Shot("lora", 7, "/8", "p {subject}", 0.5, None, "uncalibrated", scored=True),
    ]


def swept(one: Sampling) -> list[Sampling]:
    return [replace(one, steps=steps, guidance=guidance) for steps in (2, 4) for guidance in (1.0, 3.0)]


PIECES = {
    "gallery": lambda: [generate_html.gallery(shots(), 1), generate_html.gallery(shots(), only_favourites=True)],
    "grid": lambda: [generate_html.side_by_side(shots(), ("none", "lora", "dreambooth"))],
    "sweep": lambda: [
        generate_html.side_by_side([replace(shots()[0], sampling=each) for each in swept(SAMPLING)], ("lora",)),
        generate_html.side_by_side([replace(shots()[0], sampling=each) for each in swept(SAMPLING)[:3]], ("lora",)),
    ],
    "before and after": lambda: [
        generate_html.before_after(*shots()[:2]),
        generate_html.before_after(shots()[0], shots()[7]),
    ],
    "picked": lambda: [generate_html.picked(shots()[0])],
    "helped": lambda: [generate_html.chips(["grey"]), generate_html.look_cards([cards.LookCard("a", "A", "x")])],
    "votes": lambda: [score_html.vote_links([("a", 1, 3), ("b", 3, 3)])],
    "marks": lambda: [score_html.marks(mark.Verification(tuple(found), "dlib")) for found in verifications()],
    "drawings": lambda: [figures.sections(drawn(), words.tell)],
    "looked at": lambda: [
        score_html.looked(answer(), {"colour": ("lora", 0.6)}),
        score_html.judge_title("colour", first=False),
    ],
    "dropped": lambda: [look.shown(np.zeros((20, 20, 3), np.uint8), [(1, 1, 5, 5)])],
    "loss": lambda: [plots.loss_in_words("lora", plots.loss_frame([(1, 0.5), (2, 0.4)]))],
    "waiting": lambda: [phrases.waiting(1, 5.0), phrases.waiting(3, None), page_html.note(words.tell("Looking ..."))],
    "unknown word": lambda: [values.unknown_note(SimpleNamespace(  # type: ignore[arg-type]
        name="portrait-128", title="x", unknown_words=lambda text: ("colour",)), "{subject}, colour")],
}  # fmt: skip


def drawn() -> dict[str, Any]:
    """What the report's drawings are made of, under names that are known."""
    heat = {**FOUND["heat"], "photos": [{"name": "a.jpg", "part": part} for part in figures.PARTS]}
    methods = {name: found for name, found in FOUND["methods"].items() if name != "other tool"}
    return FOUND | {"judge": "arc", "heat": heat, "methods": methods}


def verifications() -> Iterator[list[mark.Mark]]:
    states = [
        Credentials("none"), Credentials("unreadable"), Credentials("tampered", "Likeness"),
        Credentials("valid", "Likeness", ("trainedAlgorithmicMedia",), "dlib", ours=True),
        Credentials("valid", "", ("compositeSynthetic",), "", self_signed=True, ours=True),
        Credentials("valid", "", ("algorithmicMedia",), "", self_signed=True),
        Credentials("valid", "", ("compositeWithTrainedAlgorithmicMedia",), ""),
        *(Credentials("valid", parent_types=(name,), issuer="dlib") for name in mark.GENERATED),
        *(Credentials("doubtful", doubt=name, problems=("a.b",), source_types=(ADOBE,)) for name in mark.DOUBTS),
    ]  # fmt: skip
    for found in states:
        yield [mark._credentials_mark(found)]
    for size in (32, 256):
        yield [mark._watermark_mark(np.zeros((size, size, 3), np.uint8))]


def answer() -> lookalike.Answer:
    def opinion(value: float | None, verdict: str, **more: Any) -> lookalike.Opinion:
        reason = None if value is not None else "this judge does not see this face"
        text = None if value is None else f"{value:.2f} - like most different-person pairs"
        nearest = tuple(
            lookalike.Nearest(who, 0.5, 2, "looks like you")
            for who in (lookalike.SAMPLE, lookalike.BASE, lookalike.PERSON)
        )
        return lookalike.Opinion(Score("", "colour", value, reason, verdict=verdict, words=text), nearest, **more)

    box = (0.0, 0.0, 1.0, 1.0)
    found = [
        opinion(0.6, "looks like you", is_held_out=True), opinion(0.3, "borderline"), opinion(0.1, "someone else"),
        opinion(None, "no face"),
    ]  # fmt: skip
    marks = Scale("colour", 0.2, None, None, 0.7, 0.6, 0.8, 0.4)
    return lookalike.Answer(tuple(lookalike.JudgedFace(box, (one,)) for one in found), ("colour",), {"colour": marks})


@pytest.mark.parametrize("piece", PIECES)
def test_nothing_of_a_piece_stays_english(piece):
    assert_told(PIECES[piece])


# ------------------------------------------------------------------------------------------------- other layers


def outcome() -> Iterator[str]:
    """Every way in which a vote is told."""
    for voters, none, cant in product((1, 2), (0, 1), (0, 1)):
        for wins in (0, 1, 2):
            share = votes.Share(wins, 2, wins / 2, 0.0 if wins < 2 else 0.9, 1.0, 0.5)
            counted = votes.Tally(
                voters, voters, none, cant, {"lora": share, "none": votes.Share(1, 2, 0.5, 0.1, 0.6, 0.5)}
            )
            for agreed in (None, votes.Agreement("dlib", 3, 3, 4, 2, 1.5), votes.Agreement("dlib", 3, 2, 0, 0, 0.0)):
                yield from map(words.in_words, votes.told(counted, agreed, {"lora": "LoRA", "none": "dlib"}))


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_friends_said_is_told_whole(language):
    english = words_of(list(outcome()))
    with words.speaking(language):
        other = words_of(list(outcome()))
    assert (english & other) - known_words(language) - names() == set()


def sources() -> Iterator[tuple[str, re.Pattern[str]]]:
    """(module, form) of every text in the other layers, sentence by sentence; a form fits whatever is filled in."""
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                whole = node.value
            elif isinstance(node, ast.JoinedStr):
                whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            else:
                continue
            for piece in re.split(r"(?<=[.!?]) ", whole.strip()):
                if len(piece.replace("\0", "")) > 3 or "\0" not in piece:
                    yield path.stem, re.compile(re.escape(piece).replace("\0", ".*"), re.DOTALL)


def test_every_sentence_that_is_looked_for_is_one_that_somebody_says():
    forms = {form for _, form in sources()}
    # put together from clauses, or from what other forms hold
    made = {
        "Stable Diffusion 1.5 or SDXL",
        "{value} - higher than all measured of different-person pairs",
        *(each for each in retold.SENTENCES if each.startswith("The picture is too narrow for this size")),
        "Watermark: the picture is too small to read one from.",
    }  # fmt: skip
    for sentence in retold.SENTENCES:
        plain = re.sub(r"\{\w+\}", "1", sentence)
        assert sentence in made or any(form.fullmatch(plain) for form in forms), sentence


# Modules whose every sentence can reach a page.
WATCHED = ("refine", "matte", "mark")


def test_no_sentence_of_a_watched_layer_is_missing():
    listed = [form for _, form in retold._patterns()]
    listed += [re.compile("7 finds less of 7 in it: .*")]  # "the person", or "the raw picture"
    for module in WATCHED:
        file = next((ROOT / "pipelines").rglob(f"{module}.py"))
        tree = ast.parse(file.read_text(encoding="utf-8"))
        quiet = {id(each) for node in ast.walk(tree) for each in _unsaid(node)}
        for node in ast.walk(tree):
            if id(node) in quiet or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            values = node.values if isinstance(node, ast.JoinedStr) else [node]
            whole = "".join(str(v.value) if isinstance(v, ast.Constant) else "7" for v in values)
            for piece in re.split(r"(?<=[.!?]) ", whole.strip()):
                if re.match(r"[A-Z7]", piece) and piece.endswith(".") and piece.count(" ") > 2 and piece not in NEVER:
                    assert any(form.fullmatch(piece) for form in listed), (module, piece)


UNSEEN = {"Kind"}  # what a step is about: the command line says it
NEVER = {"Its strength is 0."}  # the app offers no strengths


def _unsaid(node: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, errors, what a class of `UNSEEN` holds, and the parts of a longer text."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        yield node.body[0].value  # type: ignore[attr-defined]
    name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if name.endswith("Error") or name in UNSEEN:
        yield from ast.walk(node)
    if isinstance(node, ast.JoinedStr):
        yield from node.values


def test_a_sentence_is_told_in_clauses_and_parts():
    with words.speaking("de"):
        assert retold.retell("no face found") == "kein Gesicht gefunden" == retold.retell("no face found.")[:-1]
        assert retold.retell("A new sentence. That does not show that it is a photo.").startswith("A new sentence. Das")
        assert retold.retell("They say: an AI model drew this picture.").startswith("Sie sagen: ein KI-Modell")
        assert "teal" in phrases.named("imported-teal"), "somebody's own name for it"
        plan = memory_plan(MemoryNeeds(4, 2, 9, 3, 1, 2, 1), 8.0).reason
        assert "Gradient Checkpointing ist" in retold.retell(plan) and "needed" not in retold.retell(plan)
    assert retold.retell("no face found") == "no face found"


def test_programs_are_told_in_english_whatever_they_like():
    with words.speaking("de"):
        assert retold.retell("kept") == "behalten"
        assert endpoints.spoken(lambda: f"{retold.retell('kept')} {words.tell('Train')}")() == "kept Train"


def test_why_a_style_can_not_be_drawn_is_told(base):
    from pipelines.bases.registry import find_base

    row = find_base(str(base))
    assert_told(lambda: [styles.style_choices(row)[1]])


# ------------------------------------------------------------------------------------------------- pictures


def test_every_picture_and_drawing_has_a_text(show):
    capability = rich(show)
    pages = [*spoken(show(capability)), *(html for render in PIECES.values() for html in render())]
    images = [image for html in pages for image in read(html).images]
    assert len(images) > 30
    for image in images:
        said = (image.get("alt") if "src" in image else image.get("aria-label")) or ""
        assert re.search(r"[^\W\d_]{3,}", said), image
    svgs = [tag for html in pages for tag in re.findall(r"<svg[^>]*>", html)]
    assert svgs and all('role="img"' in tag and 'aria-label="' in tag for tag in svgs)


def test_the_plot_of_the_loss_has_its_last_values_beside_it(show):
    capability = rich(show)
    lane = next(html for html in spoken(show(capability)) if "lk-lane" in html and "Loss: " in html)
    assert "Loss: 1.0000 at first, 0.2500 at step 4, smoothed " in unescape(lane)
    view = show.services.view(capability)
    assert "LoRA" in train_html.lane(view.lane("lora")) and "Loss: " not in train_html.lane(view.lane("dreambooth"))


@pytest.mark.parametrize(
    ("photos", "says"), [(5, "Add 3 more photos"), (7, "Add one more photo"), (8, "other moments")]
)
def test_a_lane_says_why_it_has_no_likeness_curve(show, photos, says):
    capability, session = show.services.sessions.create()
    found = take_in(session.run, photos)
    teach(session.run, show.services.view(capability).row.name, found.digest)
    html = train_html.lane(show.services.view(capability).lane("lora"))
    assert "No likeness curve" in html and says in html
    append_line(session.run.events, Event("watch", "lora", 3, 4, data=Look(0.25, 0.25, None, 0.0)))
    html = train_html.lane(show.services.view(capability).lane("lora"))
    assert "No likeness curve" not in html and "lk-likeness" in html


def test_with_a_photo_to_watch_with_nothing_is_missing(show):
    capability, session = show.services.sessions.create()
    found = take_in(session.run, 8)
    split = replace(found, train=found.train[1:], validation=found.train[:1])
    photobox._save(session.run, replace(photobox.load(session.run), photo_set=split))
    teach(session.run, show.services.view(capability).row.name, split.digest)
    assert show.services.view(capability).lane("lora").no_likeness == ""


def test_from_how_many_photos_on_one_is_kept_to_watch():
    from pipelines.photos.split import split_sizes
    from ui.run.view import WATCHED_FROM

    assert split_sizes(WATCHED_FROM)[1] == 1 and split_sizes(WATCHED_FROM - 1)[1] == 0
    assert any(f"fewer than {WATCHED_FROM} photos" in text for text in every_text())
