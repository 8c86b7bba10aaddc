"""Blind votes: friends say which picture looks most like a photo of the person, without knowing who drew it.

In: a run with pictures of the same prompts and seeds by several methods. Out: ballots (which pictures, in which random
order), answers in votes.jsonl, and a tally per method with 95% intervals beside the judges' figures.
Try it: `ballot = start(run, base_name); answer(run, ballot.voter, round=0, pick=1); print(tally(run))`.
Only what was learned from these photos counts: answers about an earlier training stay in the file and out of the tally.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipelines.core import inscription, presets
from pipelines.core.files import append_line, read_json, read_lines, repair_lines, timestamp, told_when_full, write_json
from pipelines.core.records import ALL_METHODS, COLUMNS, Sampling, UserError
from pipelines.core.run import Run, load_photo_set
from pipelines.core.said import Said

ROUNDS = 12  # of one vote: two minutes of a friend's time
VOTER = re.compile(r"[A-Za-z0-9_-]{22}")  # 128 random bits, as secrets.token_urlsafe(16) writes them
PICKED, NONE_OF_THEM, CANT_SAY = "picked", "none_of_them", "cant_say"
GONE = "This vote is over: the pictures it was about are not there any more. Ask for a new one."
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Standing:
    """The photos, the base and what was learned in a run now. Votes about other ones do not count."""

    photo_digest: str
    base: str
    subjects: dict[str, str]  # method -> subject id


@dataclass(frozen=True)
class Round:
    photo: str  # of the person, held out; relative to the run
    order: tuple[str, ...]  # columns as they are shown
    files: tuple[str, ...]  # their pictures, relative to the run


@dataclass(frozen=True)
class Ballot:
    """One friend's vote, a file on the server. The page shows its pictures and nothing else of it."""

    voter: str  # a random name that says nothing about anybody
    standing: Standing
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Answer:
    voter: str
    round: int
    order: tuple[str, ...]
    files: tuple[str, ...]
    answer: str  # PICKED | NONE_OF_THEM | CANT_SAY
    pick: str | None  # column
    standing: Standing
    when: str


@dataclass(frozen=True)
class Share:
    """How often one method was picked, of the rounds that showed it and were not answered with "can't say"."""

    wins: int
    appearances: int
    share: float | None
    low: float | None  # 95% interval; see `interval`
    high: float | None
    chance: float | None  # share that random picking would give


@dataclass(frozen=True)
class Tally:
    """What friends said about the current training."""

    voters: int
    rounds: int  # answered
    none_of_them: int
    cant_say: int  # left out of every share
    shares: dict[str, Share]  # in the order of COLUMNS; those that a round showed


# ------------------------------------------------------------------------------------------------- pictures


def standing(run: Run) -> Standing | None:
    """What the run's methods have learned from its present photos; None where nothing has."""
    photos = load_photo_set(run)
    if photos is None:
        return None
    cards = {method: read_json(run.method(method) / "subject.json") for method in ALL_METHODS}
    fits = {m: c for m, c in cards.items() if isinstance(c, dict) and c.get("photo_digest") == photos.digest}
    if not fits:
        return None
    base = str(next(iter(fits.values()))["base"])
    return Standing(photos.digest, base, {m: str(c["id"]) for m, c in fits.items() if str(c["base"]) == base})


def pairs(run: Run, now: Standing, *, with_base: bool = False) -> list[dict[str, str]]:
    """Pictures to show side by side: column -> file, one entry per `Sampling` that every method with pictures has.
    Stylised pictures and prompts without the person are left out, as they are in the judges' figures.
    """
    drawn: dict[str, dict[Sampling, str]] = {}
    for column, subject in {"none": None, **now.subjects}.items():
        if column == "none" and not with_base:
            continue
        for path in sorted(run.pictures(column)):
            about = inscription.read_again(path)
            if about is None or (about.base, about.subject) != (now.base, subject):
                continue
            if "{subject}" in about.sampling.prompt and about.sampling.prompt not in presets.stylised():
                drawn.setdefault(column, {})[about.sampling] = run.relative(path)
    if len(drawn) < 2:
        return []
    shared = set.intersection(*(set(found) for found in drawn.values()))
    first = next(iter(drawn.values()))
    return [{column: drawn[column][asked] for column in drawn} for asked in first if asked in shared]


# ------------------------------------------------------------------------------------------------- voting


def start(run: Run, *, with_base: bool = False, rounds: int = ROUNDS) -> Ballot:
    """A new vote over at most `rounds` pairs in random order, the pictures of each shuffled. Raises UserError where
    there is nothing to choose between.
    """
    now, photos = standing(run), load_photo_set(run)
    if now is None or photos is None or not photos.held_out:
        raise UserError("There is nothing to vote about yet. Train a method and draw pictures first.")
    found = pairs(run, now, with_base=with_base)
    if not found:
        raise UserError(
            "A vote needs pictures of two methods with the same prompts and seeds. Draw with at least two methods at "
            "once, or let the untrained base take part."
        )
    chance = secrets.SystemRandom()
    chance.shuffle(found)
    made = []
    for files in found[:rounds]:
        order = list(files)
        chance.shuffle(order)
        photo = run.relative(chance.choice(photos.held_out).path)
        made.append(Round(photo, tuple(order), tuple(files[column] for column in order)))
    ballot = Ballot(secrets.token_urlsafe(16), now, tuple(made))
    with told_when_full():
        run.ballots.mkdir(mode=0o700, exist_ok=True)
    write_json(run.ballots / f"{ballot.voter}.json", ballot)
    return ballot


def ballot(run: Run, voter: str) -> Ballot:
    """A vote that was started. Raises UserError when there is none of that name, or what it was about is gone."""
    saved = read_json(run.ballots / f"{voter}.json") if VOTER.fullmatch(voter) else None
    if not isinstance(saved, dict):
        raise UserError("There is no such vote. Ask for a new link.")
    found = Ballot(
        str(saved["voter"]),
        Standing(**saved["standing"]),
        tuple(Round(r["photo"], tuple(r["order"]), tuple(r["files"])) for r in saved["rounds"]),
    )
    if not _counts(found.standing, standing(run), {c for r in found.rounds for c in r.order}):
        raise UserError(GONE)
    return found


def answered(run: Run, voter: str) -> int:
    """How many rounds this voter has answered: the number of the next one."""
    return sum(1 for line in read_lines(run.votes) if line.get("voter") == voter)


def started(run: Run, *, newest: int = 5) -> list[tuple[str, int, int]]:
    """(voter, rounds answered, rounds in all) of the newest votes about what is trained now, newest first."""
    if not run.ballots.is_dir():
        return []
    files = sorted(run.ballots.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = []
    for path in files[:newest]:
        with contextlib.suppress(UserError):
            asked = ballot(run, path.stem)
            found.append((asked.voter, answered(run, asked.voter), len(asked.rounds)))
    return found


_one_at_a_time = threading.Lock()


def answer(run: Run, voter: str, *, round: int, pick: int | str) -> bool:
    """Save one answer: the place of a picture (0 is the first), NONE_OF_THEM or CANT_SAY. Returns whether it counted:
    a round that was answered already (a second click, a page sent again) stays as it is.

    Raises UserError for a round that is not the next one and a place where no picture is.
    """
    asked = ballot(run, voter)
    with _one_at_a_time:
        repair_lines(run.votes)
        due = answered(run, voter)
        if not 0 <= round < len(asked.rounds) or round > due:
            raise UserError("That round is not open. Reload the page.")
        if round < due:
            return False
        this = asked.rounds[round]
        if isinstance(pick, int) and not isinstance(pick, bool) and 0 <= pick < len(this.order):
            said, column = PICKED, this.order[pick]
        elif pick in (NONE_OF_THEM, CANT_SAY):
            said, column = str(pick), None
        else:
            raise UserError("There is no such picture. Reload the page and choose one of those shown.")
        line = Answer(voter, round, this.order, this.files, said, column, asked.standing, timestamp())
        append_line(run.votes, line)
    return True


def answers(run: Run) -> list[Answer]:
    """The answers about what is trained now, one per voter and round (the first)."""
    now = standing(run)
    found: dict[tuple[str, int], Answer] = {}
    for line in read_lines(run.votes):
        try:
            one = Answer(
                **{
                    **line, "order": tuple(line["order"]), "files": tuple(line["files"]),
                    "standing": Standing(**line["standing"]),
                }
            )  # fmt: skip
        except (KeyError, TypeError):
            continue
        if _counts(one.standing, now, set(one.order)) and (one.pick is None or one.pick in one.order):
            found.setdefault((one.voter, one.round), one)
    return list(found.values())


def _counts(then: Standing, now: Standing | None, columns: set[str]) -> bool:
    """Whether the photos, the base and the subjects of these columns are still the ones that the vote was about."""
    if now is None or (then.photo_digest, then.base) != (now.photo_digest, now.base):
        return False
    return all(c == "none" or (c in now.subjects and then.subjects.get(c) == now.subjects[c]) for c in columns)


# ------------------------------------------------------------------------------------------------- counting


def tally(found: Sequence[Answer]) -> Tally:
    """Wins and appearances per method. "None of them" counts as a round that nobody won, "can't say" does not count."""
    said = [one for one in found if one.answer != CANT_SAY]
    shares = {}
    for column in COLUMNS:
        stood = [one for one in said if column in one.order]
        if not stood and not any(column in one.order for one in found):
            continue
        per_voter: dict[str, tuple[int, int]] = {}
        for one in stood:
            wins, rounds = per_voter.get(one.voter, (0, 0))
            per_voter[one.voter] = (wins + (one.pick == column), rounds + 1)
        wins = sum(won for won, _ in per_voter.values())
        low, high = interval(list(per_voter.values()))
        shares[column] = Share(
            wins,
            len(stood),
            wins / len(stood) if stood else None,
            low,
            high,
            sum(1 / len(one.order) for one in stood) / len(stood) if stood else None,
        )
    return Tally(
        voters=len({one.voter for one in found}),
        rounds=len(found),
        none_of_them=sum(one.answer == NONE_OF_THEM for one in found),
        cant_say=sum(one.answer == CANT_SAY for one in found),
        shares=shares,
    )


def interval(per_voter: Sequence[tuple[int, int]]) -> tuple[float | None, float | None]:
    """95% interval of a share from (wins, rounds) of each voter; (None, None) without rounds.

    Wilson's score interval (1927), in which answers of one voter count for less the more alike they are: the number
    of answers is divided by the design effect of the clusters (Kish 1965; Korn & Graubard 1998), at least 1. With one
    voter it is about that voter only.
    """
    groups = [(wins, rounds) for wins, rounds in per_voter if rounds]
    count = sum(rounds for _, rounds in groups)
    if not count:
        return None, None
    share = sum(wins for wins, _ in groups) / count
    effective = float(count)
    if len(groups) > 1 and 0 < share < 1:
        k = len(groups)
        between = k / (k - 1) * sum((wins - share * rounds) ** 2 for wins, rounds in groups) / count**2
        effective = count / max(1.0, between / (share * (1 - share) / count))
    return wilson(share, effective)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% score interval of a share of `count` answers."""
    spread = Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Agreement:
    """How far friends and a judge agree."""

    judge: str
    pairs: int  # of methods that have different shares and different means
    agreeing: int
    rounds: int  # in which a picture was picked and the judge has a favourite
    same_pick: int  # ... and it is the same picture
    by_chance: float  # expected rounds in which random picking gives the same picture


def agreement(
    found: Sequence[Answer], judge: str, similarities: Mapping[str, float | None], means: Mapping[str, float | None]
) -> Agreement:
    """Do friends and a judge put the methods in one order (by `means`), and pick the same pictures?

    `similarities`: by the files that the answers name; None for a picture without a face. Two methods with equal shares
    or equal means are not counted as a pair.
    """
    shares = {c: s.share for c, s in tally(found).shares.items() if s.share is not None}
    both = [(shares[c], mean) for c in shares if (mean := means.get(c)) is not None]
    ordered = [(a - b) * (x - y) > 0 for i, (a, x) in enumerate(both) for b, y in both[i + 1 :] if a != b and x != y]
    rounds = same = 0
    chance = 0.0
    for one in found:
        scored = [(value, column) for column, file in zip(one.order, one.files, strict=True)
                  if (value := similarities.get(file)) is not None]  # fmt: skip
        if one.answer != PICKED or not scored or any(file not in similarities for file in one.files):
            continue
        rounds += 1
        same += max(scored)[1] == one.pick
        chance += 1 / len(one.order)
    return Agreement(judge, len(ordered), sum(ordered), rounds, same, chance)


def told(found: Tally, agreed: Agreement | None, names: Mapping[str, str]) -> list[Said]:
    """The result in a few sentences; [] before the first answer. A method is called ahead beyond chance only where the
    intervals do not overlap. `names`: the columns' titles.
    """
    if not found.rounds:
        return []
    who = Said("1 voter") if found.voters == 1 else Said("{count} voters", count=found.voters)
    rounds = Said("1 round") if found.rounds == 1 else Said("{count} rounds", count=found.rounds)
    said = [Said("{who} answered {rounds}.", who=who, rounds=rounds)]
    if found.none_of_them:
        said.append(Said("'None of them' was said in {count} of them.", count=found.none_of_them))
    if found.cant_say:
        said.append(Said("'Can't say' was said in {count} of them (not counted).", count=found.cant_say))
    known = {column: share for column, share in found.shares.items() if share.share is not None}
    ordered = sorted(known, key=lambda column: -(known[column].share or 0.0))
    if len(ordered) > 1:
        first, second = (known[column] for column in ordered[:2])
        name = names.get(ordered[0], ordered[0])
        if first.wins == second.wins and first.share == second.share:
            said.append(Said("No method is ahead."))
        elif (first.low or 0.0) > (second.high or 1.0):
            said.append(Said("{name} is ahead of the others beyond chance.", name=name))
        else:
            said.append(
                Said(
                    "{name} is ahead, but its interval overlaps the next one's: more votes are needed to be sure.",
                    name=name,
                )
            )
    if agreed is not None and agreed.pairs and agreed.agreeing == agreed.pairs:
        said.append(Said("The friends' order of the methods is that of {judge}.", judge=agreed.judge))
    elif agreed is not None and agreed.pairs:
        said.append(
            Said(
                "Of {pairs} pairs of methods, friends and {judge} order {count} alike.",
                pairs=agreed.pairs,
                judge=agreed.judge,
                count=agreed.agreeing,
            )
        )
    if agreed is not None and agreed.rounds:
        said.append(
            Said(
                "In {count} of {rounds} rounds the picture that {judge} finds most alike was picked (by chance "
                "{chance}).",
                count=agreed.same_pick,
                rounds=agreed.rounds,
                judge=agreed.judge,
                chance=f"{agreed.by_chance:.1f}",
            )
        )
    return said


def summary(run: Run, judge: str | None, means: Mapping[str, float | None]) -> dict[str, object] | None:
    """The `votes` part of report.json; None while nobody has voted. `means` are the judge's, per column."""
    found = answers(run)
    if not found:
        return None
    counted = tally(found)
    agreed = agreement(found, judge, similarities(run, judge), means) if judge else None
    return {
        "voters": counted.voters,
        "rounds": counted.rounds,
        "none_of_them": counted.none_of_them,
        "cant_say": counted.cant_say,
        "methods": {column: _rounded(asdict(share)) for column, share in counted.shares.items()},
        "agreement": _rounded(asdict(agreed)) if agreed else None,
    }


def similarities(run: Run, judge: str) -> dict[str, float | None]:
    """A judge's similarities of the run's pictures, by their path in the run."""
    lines = read_lines(run.scores)
    return {str(line["render"]): line.get("similarity") for line in lines if line.get("judge") == judge}


def _rounded(values: dict[str, object]) -> dict[str, object]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
