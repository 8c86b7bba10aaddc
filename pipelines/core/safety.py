"""What is not drawn: sexual content, and anything suggestive about somebody young.

In: what a person wrote. Out: nothing, or a `UserError` that does not repeat it. The words are data, in
`presets/safety/<language>.json`; every language's list always applies. Called wherever a prompt comes in; it can't be
switched off. `pipelines/bases/checker.py` checks the pictures. Light: no torch.
Try it:
`python -c "from pipelines.core.safety import check_prompt; check_prompt('portrait of {subject}, navy jacket')"`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pipelines.core.files import REPOSITORY
from pipelines.core.records import UserError

WORDS = REPOSITORY / "presets" / "safety"
REFUSED = (
    "This prompt asks for sexual content, which Likeness does not draw. Describe clothes, light or a place instead."
)
YOUNG = (
    "This prompt shows somebody young in a sexual or suggestive way, which Likeness does not draw. Describe everyday "
    "clothes, light or a place instead."
)
UNDRESSED = (
    "This negative prompt takes the clothes away, and Likeness does not draw sexual content. Name flaws to avoid "
    "instead, such as blurred or dark."
)
PARTS = (
    "refused",  # never drawn
    "suggestive",  # not with somebody young
    "minors",
    "perhaps_minors",  # words for somebody young that are said of adults too
    "ages",  # with {n}, a number below 18
    "numbers",  # the numbers below 18 as words
    "innocent",  # phrases in which a refused word means something else
    "shades",  # colours that are called like a state of undress; they excuse nothing where a child is meant
    "undressing",  # whole phrases that a negative prompt must not hold
)

# Letters of other scripts that look Latin, and what stands for a letter where words are disguised.
LOOKALIKES = str.maketrans("абвеёіјкмнорстухѕԁɡαβεικνορτυχıøłđ", "abbeeijkmhopctyxsdgabeiknoptuxiold")
DISGUISED = (
    str.maketrans("0134578@$€!|+", "oieastbaseiit"),
    str.maketrans("0134578@$€!|+", "oleastbaselit"),
)
TOKEN = re.compile(r"[a-z0-9@$€!|+]*[a-z][a-z0-9@$€!|+]*")
LONG_ENOUGH = 4  # letters of a word that may be put together from pieces: shorter ones arise by chance


@dataclass(frozen=True)
class _Words:
    """Compiled patterns over folded text."""

    refused: re.Pattern[str]
    suggestive: re.Pattern[str]
    minors: re.Pattern[str]
    perhaps_minors: re.Pattern[str]
    innocent: re.Pattern[str]
    shades: re.Pattern[str]
    plain: frozenset[str]  # the refused single words without a wildcard
    undressing: frozenset[str]


def check_prompt(prompt: str, negative_prompt: str = "") -> None:
    """Raises UserError for what is not drawn. What a negative prompt wants to avoid may be named there."""
    if sentence := problem(str(prompt), str(negative_prompt)):
        raise UserError(sentence)


@lru_cache(maxsize=512)
def problem(prompt: str, negative_prompt: str = "") -> str | None:
    """Why this is not drawn, as a sentence that does not repeat it; None when it is."""
    words = _words()
    # an innocent phrase becomes a digit: no phrase of a list holds one, so the words around it do not join to a phrase
    readings = [words.innocent.sub(" 0 ", reading) for reading in _readings(prompt, words)]
    minor = any(words.minors.search(reading) for reading in readings)
    for reading in readings:
        if words.refused.search(reading if minor else words.shades.sub(" 0 ", reading)):
            return YOUNG if minor else REFUSED
    suggestive = any(words.suggestive.search(reading) for reading in readings)
    if suggestive and (minor or any(words.perhaps_minors.search(reading) for reading in readings)):
        return YOUNG
    parts = re.split(r"[,;|()\[\]{}\n.]|:[\d.]+", fold(negative_prompt))
    return UNDRESSED if any(" ".join(part.split()) in words.undressing for part in parts) else None


def fold(text: str) -> str:
    """Small Latin letters without marks: "ＮÚDE" -> "nude". Spanish ñ becomes ny, as año and ano are two words."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(each for each in text if unicodedata.category(each) != "Cf").casefold()
    text = text.replace("ñ", "ny").translate(LOOKALIKES)
    return "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))


def _readings(prompt: str, words: _Words) -> set[str]:
    """The prompt as it is, and versions of it in which hidden words are visible again."""
    # `{subject}` and learned words such as `<likeness>` are no words of the prompt
    plain = fold(re.sub(r"\{\w*\}|<[^<>\s]*>", " ", prompt))
    spelt = {plain} | {_undisguised(plain, table) for table in DISGUISED}
    readings = set()
    for text in spelt:
        for joined in (text, _joined(text)):
            readings |= {joined, *(re.sub(r"([a-z])\1{2,}", kept, joined) for kept in (r"\1", r"\1\1"))}
    pieces = [found for reading in list(readings) for found in _put_together(reading, words)]
    return readings | ({" 0 ".join(pieces)} if pieces else set())


def _undisguised(text: str, table: dict[int, int]) -> str:
    """Digits and signs in words replaced by letters: "nud3" -> "nude"."""
    return TOKEN.sub(lambda found: found[0].translate(table), text)


def _joined(text: str) -> str:
    """Without marks inside a word: "n.u-d_e" -> "nude"."""
    return re.sub(r"(?<=[a-z])[^a-z0-9\s,;:()\[\]{}<>]+(?=[a-z])", "", text)


def _put_together(text: str, words: _Words) -> list[str]:
    """Refused words in pieces: spaced letters, a letter set apart, letters starred out."""
    found = []
    for run in re.findall(r"(?<![a-z])(?:[a-z][^a-z0-9,;]{1,3}){2,}[a-z](?![a-z])", text):
        letters = re.sub(r"[^a-z]", "", run)
        found.append(letters)
        found += [word for word in words.plain if len(word) >= LONG_ENOUGH and word in letters]
    tokens = re.findall(r"[a-z]+", text)
    pairs = (one + other for one, other in zip(tokens, tokens[1:], strict=False) if 1 in (len(one), len(other)))
    found += [word for word in pairs if len(word) >= LONG_ENOUGH and word in words.plain]
    for starred in re.findall(r"[a-z]+[*#]+[a-z*#]*[a-z]", text):
        pattern = re.compile(re.sub(r"[*#]", "[a-z]", starred))
        if len(re.sub(r"[*#]", "", starred)) * 2 >= len(starred):
            found += [word for word in words.plain if pattern.fullmatch(word)]
    return found


@lru_cache(maxsize=1)
def _words() -> _Words:
    terms: dict[str, list[str]] = {name: [] for name in PARTS}
    files = sorted(WORDS.glob("*.json"))
    if not files:  # a filter that lost its words must not let everything through
        raise UserError("The words of presets/safety are missing. Get the whole repository again.")
    for file in files:
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"presets/safety/{file.name} can't be read ({error}). Restore it.") from error
        if not isinstance(saved, dict) or set(saved) != {"about", *PARTS}:
            raise UserError(f"presets/safety/{file.name} must hold {', '.join(PARTS)}. Restore it.")
        for name in PARTS:
            terms[name] += [spelling for term in saved[name] for spelling in _spellings(term)]
    number = rf"(?:(?<![0-9])(?:0?[1-9]|1[0-7])(?![0-9])|{'|'.join(terms['numbers'])})"
    return _Words(
        refused=_pattern(terms["refused"]),
        suggestive=_pattern(terms["suggestive"]),
        minors=_pattern([*terms["minors"], *terms["ages"]], number),
        perhaps_minors=_pattern(terms["perhaps_minors"]),
        innocent=_pattern(terms["innocent"]),
        shades=_pattern(terms["shades"]),
        plain=frozenset(term.strip("*") for term in terms["refused"] if re.fullmatch(r"[a-z]+\*?", term)),
        undressing=frozenset(terms["undressing"]),
    )


def _spellings(term: str) -> Iterable[str]:
    """A term as folded text has it; German umlauts as one letter and as two."""
    two = term.lower().replace("ä", "ae").replace("ö", "oe").replace("ü", "ue")
    return dict.fromkeys((fold(term), fold(two)))


def _pattern(terms: Iterable[str], number: str = "") -> re.Pattern[str]:
    """Whole words or phrases; * stands for letters, ? makes what is before it optional, (a|b) is either."""
    meant = {" ?": "[^a-z0-9]*", " ": "[^a-z0-9]+", "(": "(?:", "*": "[a-z]*", "{n}": number}
    made = (re.sub(r" \?|[ (*]|\{n\}", lambda found: meant[found[0]], term) for term in terms)
    return re.compile(rf"(?<![a-z])(?:{'|'.join(made)})(?![a-z])")
