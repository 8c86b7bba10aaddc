"""Does a judge rank pictures as people do? Export of blind votes, their analysis, and the sample size by simulation.

    python tools/human_study.py power --subjects 8,10,12 --voters 4,8 --rho 0.4 --repeats 200
    python tools/human_study.py export STUDY/p01/RUN STUDY/p02/RUN --out votes.csv
    python tools/human_study.py analyse votes.csv
    python tools/human_study.py simulate --subjects 12 --voters 8 --rho 0.4 --out simulated.csv

In: runs with blind votes (`pipelines.evaluation.votes`). Out: a CSV without names, photos or paths, and per judge a
rank correlation with a 95% interval. The design is in docs/human_study.md. What `simulate` writes says so in every row.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipelines.core.files import read_json, sha, write_text
from pipelines.core.records import UserError
from pipelines.core.run import Run, is_run
from pipelines.evaluation import votes
from pipelines.evaluation.statistics import cluster_bootstrap, known_mean, sign_flip_p

HEADS = ("source", "subject", "voter", "round", "column", "place", "answer", "picked")
VOTES, SIMULATED = "votes", "SIMULATED"
LEAST_ROUNDS = 6  # of a voter who counts
SAME_PLACE = 8  # so many picks, all at one place: nobody looked
NO_FACE = -1.0  # a picture in which a judge sees no face ranks last


@dataclass(frozen=True)
class Vote:
    """One picture in one round of one voter."""

    source: str  # VOTES or SIMULATED
    subject: str  # a pseudonym
    voter: str
    round: str  # the same for everybody who saw these pictures
    column: str
    place: int  # from the left, 0 first
    answer: str
    picked: bool
    similarity: dict[str, float]  # by judge; NO_FACE where it sees none


@dataclass(frozen=True)
class Correlation:
    """Judge and people: mean over subjects of the rank correlation within rounds."""

    judge: str
    correlation: float
    low: float  # 95%, by a bootstrap over subjects
    high: float
    p: float  # sign flips of the subjects, exact
    subjects: int
    shown: bool  # the interval excludes 0 and p < 0.05, for which it takes six subjects


# ------------------------------------------------------------------------------------------------- export


def exported(runs: Sequence[Run]) -> list[Vote]:
    """The votes of finished runs, one subject each. Raises UserError where nobody voted."""
    found = []
    for number, run in enumerate(runs, start=1):
        judges = list(read_json(run.marks) or {})
        known = {judge: votes.similarities(run, judge) for judge in judges}
        answers = votes.answers(run)
        if not answers or not judges:
            raise UserError(f"Nobody has voted about {run.folder.name} yet, or it has no scores. Leave it out.")
        for one in answers:
            for place, (column, file) in enumerate(zip(one.order, one.files, strict=True)):
                alike = {judge: known[judge].get(file) for judge in judges}
                found.append(
                    Vote(
                        VOTES, f"s{number:02}", one.voter, sha(*sorted(one.files))[:8], column, place, one.answer,
                        one.pick == column, {judge: NO_FACE if v is None else v for judge, v in alike.items()},
                    )
                )  # fmt: skip
    return found


def write_votes(found: Sequence[Vote], file: Path) -> None:
    judges = list(found[0].similarity)
    lines = [",".join([*HEADS, *judges])]
    for one in found:
        values = (one.source, one.subject, one.voter, one.round, one.column, one.place, one.answer, int(one.picked))
        lines.append(",".join([*map(str, values), *(f"{one.similarity[judge]:.6f}" for judge in judges)]))
    write_text(file, "\n".join(lines) + "\n")


def read_votes(file: Path) -> list[Vote]:
    """Raises UserError for a file that `write_votes` did not write."""
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        found = [
            Vote(
                row["source"], row["subject"], row["voter"], row["round"], row["column"], int(row["place"]),
                row["answer"], row["picked"] == "1", {judge: float(row[judge]) for judge in row if judge not in HEADS},
            )
            for row in rows
        ]  # fmt: skip
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{file.name} holds no exported votes ({error}). Make it with: export.") from error
    if not found:
        raise UserError(f"{file.name} holds no exported votes. Make it with: export.")
    return found


# ------------------------------------------------------------------------------------------------- analysis


def counted(found: Sequence[Vote]) -> tuple[list[Vote], list[str]]:
    """The votes that count, and a sentence for each voter who was excluded: the rules of docs/human_study.md."""
    said = [one for one in found if one.answer != votes.CANT_SAY]
    by_voter: dict[tuple[str, str], list[Vote]] = {}
    for one in said:
        by_voter.setdefault((one.subject, one.voter), []).append(one)
    kept, out = [], []
    for (subject, voter), theirs in by_voter.items():
        places = [one.place for one in theirs if one.picked]
        rounds = len({one.round for one in theirs})
        if rounds < LEAST_ROUNDS:
            out.append(f"{voter} of {subject} answered {rounds} rounds, fewer than {LEAST_ROUNDS}.")
        elif len(places) >= SAME_PLACE and len(set(places)) == 1:
            out.append(f"{voter} of {subject} picked the same place in all {len(places)} rounds.")
        else:
            kept += theirs
    return kept, out


def analyse(found: Sequence[Vote]) -> list[Correlation]:
    """Per judge, over the subjects whose votes count. Raises UserError where there is none."""
    judges = list(found[0].similarity) if found else [""]
    of_subject = {name: [one for one in found if one.subject == name] for name in sorted({v.subject for v in found})}
    out = []
    for judge in judges:
        known = [value for theirs in of_subject.values() if (value := _within_rounds(theirs, judge)) is not None]
        if not known:
            raise UserError("No subject has votes that count. See the exclusion rules in docs/human_study.md.")
        test, p = cluster_bootstrap(np.array(known)[:, None, None, None], resamples=5000), sign_flip_p(known)
        low, high = (known[0], known[0]) if len(known) == 1 else (test.low, test.high)
        shown = len(known) > 1 and not low <= 0 <= high and p < 0.05
        out.append(Correlation(judge, test.difference, low, high, p, len(known), shown))
    return out


def _within_rounds(found: Sequence[Vote], judge: str) -> float | None:
    """One subject: correlation of both ranks of each picture, each taken within its round; None where all are level.

    A picture's rank among people is that of its share of picks. Ranks are centred in every round, so that what rounds
    have in common (an easy prompt) makes no correlation.
    """
    picks: dict[str, dict[str, list[bool]]] = {}
    alike: dict[str, dict[str, float]] = {}
    for one in found:
        picks.setdefault(one.round, {}).setdefault(one.column, []).append(one.picked)
        alike.setdefault(one.round, {})[one.column] = one.similarity[judge]
    people = [_centred([float(np.mean(each)) for each in shown.values()]) for shown in picks.values()]
    judged = [_centred([alike[name][column] for column in shown]) for name, shown in picks.items()]
    a, b = np.concatenate(people), np.concatenate(judged)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else None


def _centred(values: Sequence[float]) -> np.ndarray:
    from scipy.stats import rankdata

    ranks = rankdata(values)
    return np.asarray(ranks - ranks.mean())


# ------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Design:
    subjects: int = 12
    voters: int = 8  # of each subject
    rounds: int = 12
    columns: int = 5
    rho: float = 0.4  # correlation of a judge's similarity and how alike people find a picture, within a subject
    spread: float = 0.2  # standard deviation of rho between subjects
    agreement: float = 1.0  # how alike people choose: 0 = blindly, 1 = the better of two, one deviation apart, in 73%


def simulated(design: Design, seed: int) -> list[Vote]:
    """Made-up voters. Each picks the picture that it finds most alike: what all see, plus Gumbel noise of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for s in range(design.subjects):
        rho = float(np.clip(rng.normal(design.rho, design.spread), -1, 1))
        judged = rng.normal(size=(design.rounds, design.columns))
        seen = rho * judged + np.sqrt(1 - rho**2) * rng.normal(size=judged.shape)
        noise = rng.gumbel(size=(design.voters, *judged.shape))
        picks = (design.agreement * seen + noise).argmax(2)
        found += [
            Vote(
                SIMULATED, f"s{s + 1:02}", f"voter{s + 1}-{v + 1}", f"round{r + 1}", f"column{c + 1}", (c + v + r) %
                design.columns, votes.PICKED, bool(picks[v, r] == c), {"simulated": round(0.3 + judged[r, c] / 10, 6)},
            )
            for v in range(design.voters)
            for r in range(design.rounds)
            for c in range(design.columns)
        ]  # fmt: skip
    return found


def power(design: Design, repeats: int, seed: int = 0) -> tuple[float, float]:
    """(share of simulated studies that show a correlation, mean width of the interval)."""
    found = [analyse(simulated(design, seed + k))[0] for k in range(repeats)]
    return sum(each.shown for each in found) / repeats, known_mean(each.high - each.low for each in found) or 0.0


# ------------------------------------------------------------------------------------------------- commands


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True)
    usual = Design()
    for name, text in (("power", "sample size by simulation"), ("simulate", "votes of simulated voters")):
        each = commands.add_parser(name, help=text)
        one = name == "simulate"
        each.add_argument("--subjects", type=int if one else _numbers, default=12 if one else [8, 12, 16])
        each.add_argument("--voters", type=int if one else _numbers, default=8 if one else [4, 8])
        each.add_argument("--rounds", type=int, default=usual.rounds)
        each.add_argument("--columns", type=int, default=usual.columns)
        each.add_argument("--rho", type=float, default=usual.rho)
        each.add_argument("--spread", type=float, default=usual.spread)
        each.add_argument("--agreement", type=float, default=usual.agreement)
        each.add_argument("--seed", type=int, default=0)
        if one:
            each.add_argument("--out", type=Path, required=True)
        else:
            each.add_argument("--repeats", type=int, default=200)
    export = commands.add_parser("export", help="votes of finished runs as a CSV, one run per subject")
    export.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    export.add_argument("--out", type=Path, required=True)
    analysis = commands.add_parser("analyse", help="rank correlation of each judge with the votes")
    analysis.add_argument("votes", metavar="FILE", type=Path)
    analysis.add_argument("--json", action="store_true")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    try:
        {"power": _power, "simulate": _simulate, "export": _export, "analyse": _analyse}[asked.command](asked)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


def _power(asked: argparse.Namespace) -> None:
    print("| subjects | voters of each | a correlation is shown in | mean width of the interval |\n|---|---|---|---|")
    for subjects in asked.subjects:
        for voters in asked.voters:
            design = Design(
                subjects, voters, asked.rounds, asked.columns, asked.rho, asked.spread, asked.agreement
            )  # fmt: skip
            shown, width = power(design, asked.repeats, asked.seed)
            print(f"| {subjects} | {voters} | {shown:.0%} | {width:.2f} |", flush=True)


def _simulate(asked: argparse.Namespace) -> None:
    design = Design(
        asked.subjects, asked.voters, asked.rounds, asked.columns, asked.rho, asked.spread, asked.agreement
    )  # fmt: skip
    write_votes(simulated(design, asked.seed), asked.out)


def _export(asked: argparse.Namespace) -> None:
    if missing := [folder.name for folder in asked.runs if not is_run(folder)]:
        raise UserError(f"{', '.join(missing)} is no folder of a run. Check the path.")
    write_votes(exported([Run(folder) for folder in asked.runs]), asked.out)


def _analyse(asked: argparse.Namespace) -> None:
    every = read_votes(asked.votes)
    kept, excluded = counted(every)
    found = analyse(kept)
    made_up = any(one.source == SIMULATED for one in every)
    if asked.json:
        print(json.dumps({"simulated": made_up, "excluded": excluded, "judges": [asdict(each) for each in found]}))
        return
    if made_up:
        print("SIMULATED VOTERS: these are no data.")
    for sentence in excluded:
        print(f"Excluded: {sentence}")
    for each in found:
        print(said(each))


def said(found: Correlation) -> str:
    figures = f"{found.correlation:+.2f} ({found.low:+.2f} to {found.high:+.2f}), {found.subjects} subjects"
    if not found.shown:
        few = "; six are needed to show any" if found.subjects < 6 else ""
        return f"{found.judge}: no correlation with people is shown: {figures}{few}."
    how = "as people do" if found.correlation > 0 else "against people"
    return f"{found.judge} ranks pictures {how}: {figures}."


if __name__ == "__main__":
    sys.exit(main())
