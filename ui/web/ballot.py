"""The page of a blind vote: one photo of the person, unlabelled pictures beside it, and nothing else.

In: GET /vote/<run>/<voter>, and POST with `round` and `pick` from its buttons. Out: HTML without a script that is
needed and without anything that tells the methods apart: pictures are shrunk, stripped of what their files say, and
stand inside the page, so that there is no address, no name and no size to guess from. The link is for whoever was
given it; it opens the vote and nothing else of the run. It speaks the language that the browser asks for, if we do.
"""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from anyio import CapacityLimiter, to_thread
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.core.records import UserError
from pipelines.core.run import Run, is_run, load_photo_set
from pipelines.evaluation import votes
from ui.page.errors import sentence
from ui.run.sessions import RUN_NAME
from ui.words.words import ENGLISH, preferred, translate

PREFIX = "/vote/"
BODY_LIMIT = 1 << 12  # bytes of an answer
SIDE_PX = 448  # pictures are shown at most so large
AT_ONCE = 2  # pages that are made: each opens a whole photo, of up to 40 megapixels

STYLE = """
:root{color-scheme:light dark;--ink:#17212b;--soft:#526071;--line:#d4d8de;--page:#f6f7f9;--card:#fff;--main:#0f766e}
@media (prefers-color-scheme:dark){:root{--ink:#e8edf2;--soft:#a9b4c2;--line:#2a323c;--page:#0f1419;--card:#171d24;
--main:#5eead4}}
*{box-sizing:border-box}
body{font:17px/1.5 system-ui,sans-serif;margin:0;background:var(--page);color:var(--ink)}
main{max-width:1080px;margin:0 auto;padding:16px}
h1{font-size:1.3rem;line-height:1.25;margin:.2rem 0 .6rem}p{margin:.2rem 0 .8rem;color:var(--soft)}
.bar{height:7px;border-radius:9px;background:var(--line);overflow:hidden;margin-bottom:14px}
.bar b{display:block;height:100%;background:var(--main)}
.sides{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,3fr);gap:22px;align-items:start}
figure{margin:0}figure img{border-radius:12px}figcaption{padding:7px 0;text-align:center;color:var(--soft)}
img{width:100%;aspect-ratio:1;object-fit:cover;display:block}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,240px));gap:12px}
button{font:inherit;color:inherit;background:var(--card);border:2px solid var(--line);border-radius:12px;padding:0;
cursor:pointer;overflow:hidden}
button:hover,button:focus-visible{border-color:var(--main);outline:3px solid var(--main);outline-offset:1px}
button span{display:block;padding:7px}.others{display:flex;flex-wrap:wrap;gap:10px;margin-top:14px}
.others button{padding:9px 16px}
.said{background:var(--card);border:1px solid var(--line);border-left:3px solid var(--main);border-radius:8px;
padding:12px 14px}
@media (max-width:700px){.row{grid-template-columns:1fr 1fr}.sides{grid-template-columns:1fr;gap:12px}
figure{max-width:46vw;margin:0 auto}figcaption{padding:2px 0}}
"""
# The number keys pick too; everything works without this.
KEYS = """
addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`)?.click();
});
let sent = false;
document.querySelector('form')?.addEventListener('submit', (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
addEventListener('pageshow', () => { sent = false; });
"""


class Ballots:
    """ASGI middleware: answers `/vote/`, passes everything else on. `root` is the folder that holds the runs."""

    def __init__(self, app: ASGIApp, *, root: Path) -> None:
        self.app = app
        self.root = root
        self._slots = CapacityLimiter(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        local = "" if scope["type"] != "http" else unquote(scope["path"]).removeprefix(scope.get("root_path", "") or "")
        if not local.startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        address = local.removeprefix(PREFIX)
        language = preferred(dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1"))
        if scope["method"] in ("GET", "HEAD"):
            work: partial[Response] = partial(show, self.root, address, language=language)
            response = await to_thread.run_sync(work, limiter=self._slots)
        elif scope["method"] == "POST":
            body = await _body(receive)
            work = partial(take, self.root, address, body, language=language)
            response = await to_thread.run_sync(work, limiter=self._slots)
        else:
            response = page("<p>Not served.</p>", status=405)
        response.headers["cache-control"] = "private, no-store"
        await response(scope, receive, send)


def link(run: Run, voter: str) -> str:
    """The relative address of a vote."""
    return f"{PREFIX.lstrip('/')}{run.id}/{voter}"


def show(root: Path, address: str, *, language: str = ENGLISH) -> Response:
    """The round that is due, or the end."""
    try:
        run, voter = _run_and_voter(root, address)
        asked, done = votes.ballot(run, voter), votes.answered(run, voter)
        if done < len(asked.rounds):
            return page(_round(run, asked.rounds[done], done, len(asked.rounds), language), language)
    except Exception as error:  # a visitor reads a sentence, whatever it is
        return _problem(error, language, status=404)
    text = translate("Thank you. Your {count} answers are saved. You can close this page, or hand it back.", language)
    return page(_said(text.format(count=done), language), language)


def take(root: Path, address: str, body: bytes, *, language: str = ENGLISH) -> Response:
    """Save an answer and show what is next. An answer to a round that is over changes nothing."""
    said = parse_qs(body.decode("latin-1")) if len(body) <= BODY_LIMIT else {}
    number, pick = (said.get(name, [""])[0] for name in ("round", "pick"))
    try:
        run, voter = _run_and_voter(root, address)
        if not re.fullmatch(r"[0-9]{1,3}", number):
            raise UserError("That answer could not be read. Reload the page and choose again.")
        choice: int | str = int(pick) if re.fullmatch(r"[0-9]{1,2}", pick) else pick
        votes.answer(run, voter, round=int(number), pick=choice)
        if votes.answered(run, voter) == len(votes.ballot(run, voter).rounds):
            from pipelines.reports.page import refresh_votes

            refresh_votes(run)
    except Exception as error:
        return _problem(error, language, status=400)
    return RedirectResponse(voter, status_code=303)  # relative, so that any prefix in front of us stays


def _run_and_voter(root: Path, address: str) -> tuple[Run, str]:
    name, _, voter = address.partition("/")
    folder = root / name
    known = RUN_NAME.fullmatch(name) and votes.VOTER.fullmatch(voter)
    if not known or folder.is_symlink() or not is_run(folder):
        raise UserError("There is no such vote. Ask for a new link.")
    return Run(folder), voter


def _round(run: Run, shown: votes.Round, number: int, rounds: int, language: str) -> str:
    def said(text: str, **values: int) -> str:
        return escape(text.format(**values))

    question = said(translate("Which picture looks most like this person?", language))
    about = translate(
        "Round {number} of {rounds}. Go by the face alone, not by beauty, light or background. Number keys work too.",
        language,
    )
    answered = said(translate("Rounds answered", language))
    person = said(translate("A photo of the person", language))
    called = translate("Picture {number}", language)
    none = said(translate("None of them looks like this person", language))
    unsure = said(translate("I can't say", language))
    buttons = "".join(
        f'<button name="pick" value="{place}" data-key="{place + 1}"><img src="{picture(run.folder / file)}" '
        f'alt="{said(called, number=place + 1)}"><span>{said(called, number=place + 1)}</span></button>'
        for place, file in enumerate(shown.files)
    )
    return (
        f"<h1>{question}</h1><p>{said(about, number=number + 1, rounds=rounds)}</p>"
        f'<div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="{rounds}" aria-valuenow="{number}" '
        f'aria-label="{answered}"><b style="width:{number / rounds:.1%}"></b></div>'
        f'<div class="sides"><figure><img src="{photo(run, shown.photo)}" alt="{person}">'
        f"<figcaption>{person}</figcaption></figure>"
        f'<form method="post"><input type="hidden" name="round" value="{number}">'
        f'<div class="row">{buttons}</div><div class="others">'
        f'<button name="pick" value="{votes.NONE_OF_THEM}" data-key="0">{none}</button>'
        f'<button name="pick" value="{votes.CANT_SAY}" data-key="?">{unsure}</button></div></form></div>'
    )


def _said(text: str, language: str) -> str:
    title = escape(translate("Blind vote", language))
    return f'<h1>{title}</h1><div class="said" role="status">{escape(text)}</div>'


def _problem(error: Exception, language: str, *, status: int) -> HTMLResponse:
    """The sentence about `error`; `status` where it is the visitor's to put right, else 500."""
    text = translate(sentence(error), language)
    return page(_said(text, language), language, status=status if isinstance(error, UserError) else 500)


def page(body: str, language: str = ENGLISH, *, status: int = 200) -> HTMLResponse:
    # Without its own referrer policy the answer would come from nowhere, and the guard refuses such.
    return HTMLResponse(
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="referrer" content="same-origin">'
        f"<title>{escape(translate('Blind vote', language))}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{KEYS}</script></body></html>",
        status_code=status,
    )


def picture(path: Path) -> str:
    """A render as a data URI: pixels only, never its name or what its file says. Raises UserError when it is gone."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _uri(image.convert("RGB"))
    except OSError:
        raise UserError(votes.GONE) from None


def photo(run: Run, name: str) -> str:
    """What is around the person's face in one of their photos, as a data URI. Raises UserError when it is gone."""
    from PIL import Image

    from pipelines.photos.decode import decode
    from pipelines.photos.framing import around_person

    photos = load_photo_set(run)
    found = next((one for one in photos.held_out if run.relative(one.path) == name), None) if photos else None
    if found is None:
        raise UserError(votes.GONE)
    return _uri(Image.fromarray(around_person(decode(Path(found.path)), found)))


def _uri(image: Any) -> str:
    from PIL import Image

    clean = Image.new("RGB", image.size)
    clean.paste(image)  # pixels come along, text chunks and profiles do not
    clean.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    clean.save(packed, format="JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


async def _body(receive: Receive) -> bytes:
    """A request's body; what is longer than an answer can be is cut off."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body") or len(body) > BODY_LIMIT:
            return body[: BODY_LIMIT + 1]
