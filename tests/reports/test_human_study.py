"""The human study's analysis on made-up voters: it finds a correlation that is known, and none where there is none."""

from __future__ import annotations

from dataclasses import replace
from math import asin, pi

import pytest

from pipelines.core.files import append_line, write_json, write_text
from pipelines.core.records import UserError
from pipelines.core.run import load_photo_set
from pipelines.evaluation import votes
from tests.runs import make_run
from tools import human_study
from tools.human_study import Design, Vote, analyse, counted, exported, read_votes, simulated, write_votes


def by_hand(similarities: list[float], picks: list[int], subject: str = "s01") -> list[Vote]:
    """One round of pictures; `picks` says how many of ten voters picked each."""
    out = []
    picker = [column for column, count in enumerate(picks) for _ in range(count)]
    for voter, pick in enumerate(picker):
        out += [
            Vote("votes", subject, f"v{voter}", "r", f"c{k}", k, votes.PICKED, k == pick, {"j": value})
            for k, value in enumerate(similarities)
        ]
    return out


def test_the_correlation_by_hand():
    (same,) = analyse(by_hand([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]))
    (other,) = analyse(by_hand([0.4, 0.3, 0.2, 0.1], [1, 2, 3, 4]))
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    (between,) = analyse(by_hand([0.1, 0.3, 0.2, 0.4], [1, 2, 3, 4]))
    assert (same.correlation, other.correlation) == (pytest.approx(1), pytest.approx(-1))
    assert between.correlation == pytest.approx(0.8) and not between.shown and between.low == between.high
    with pytest.raises(UserError, match="No subject has votes"):
        analyse(by_hand([0.1, 0.1], [2, 3]))


def test_five_subjects_show_nothing_and_six_do():
    five = [one for k in range(5) for one in by_hand([0.1, 0.2, 0.3], [1, 2, 4], f"s{k}")]
    assert not analyse(five)[0].shown and "six are needed" in human_study.said(analyse(five)[0])
    six = analyse([*five, *by_hand([0.1, 0.2, 0.3], [1, 2, 4], "s5")])[0]
    assert six.shown and "ranks pictures as people do" in human_study.said(six)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_a_known_correlation_is_recovered(rho):
    """With very many voters a share orders pictures as people see them; then the expected rank correlation of n
    normal pairs is known (Moran 1948): 6 / (pi (n + 1)) * (asin rho + (n - 2) asin(rho / 2)).
    """
    n = 5
    expected = 6 / (pi * (n + 1)) * (asin(rho) + (n - 2) * asin(rho / 2))
    (found,) = analyse(simulated(Design(12, 150, 12, n, rho, spread=0.0, agreement=2.0), seed=3))
    assert found.correlation == pytest.approx(expected, abs=0.08) and found.shown
    assert found.low <= expected <= found.high


def test_nothing_is_found_where_nothing_is():
    none = [analyse(simulated(Design(8, 4, 6, 4, rho=0.0, spread=0.0), seed))[0] for seed in range(60)]
    assert sum(each.shown for each in none) <= 7, "3 of 60 are expected"
    assert abs(sum(each.correlation for each in none) / 60) < 0.05


def test_noisy_voters_lower_the_correlation():
    clear, noisy = (analyse(simulated(Design(6, 4, 8, 4, 0.7, 0.0, a), 1))[0].correlation for a in (5.0, 0.2))
    assert noisy < clear


def test_voters_who_did_not_look_do_not_count():
    design = Design(1, 2, 10, 4)
    votes_of = simulated(design, 0)
    first, second = sorted({one.voter for one in votes_of})
    same_place = [replace(one, picked=one.place == 0) if one.voter == first else one for one in votes_of]
    kept, out = counted(same_place)
    assert {one.voter for one in kept} == {second} and "same place in all 10 rounds" in out[0]
    early = [one for one in votes_of if one.voter == second or one.round in ("round1", "round2")]
    assert "answered 2 rounds" in counted(early)[1][0]
    unsure = [replace(one, answer=votes.CANT_SAY) if one.round == "round1" else one for one in votes_of]
    assert "round1" not in {one.round for one in counted(unsure)[0]}


def test_votes_are_written_and_read_back_and_simulated_ones_say_so(tmp_path, capsys):
    file = tmp_path / "votes.csv"
    assert human_study.main(["simulate", "--subjects", "7", "--voters", "3", "--rho", "0.9", "--out", str(file)]) == 0
    design = Design(7, 3, rho=0.9)
    assert read_votes(file) == simulated(design, 0)
    assert all(line.startswith("SIMULATED,") for line in file.read_text().splitlines()[1:])
    assert human_study.main(["analyse", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("SIMULATED VOTERS: these are no data.") and "ranks pictures as people do" in said
    file.write_text("nothing")
    assert human_study.main(["analyse", str(file)]) == 1
    assert "holds no exported votes" in capsys.readouterr().err


def test_an_export_names_nobody(tmp_path):
    run = make_run(tmp_path / "anna")
    photos = load_photo_set(run)
    for method in ("lora", "dreambooth"):
        card = {"id": f"{method}-1", "method": method, "base": "portrait-128", "photo_digest": photos.digest}
        write_json(run.method(method) / "subject.json", card)
    with pytest.raises(UserError, match="Nobody has voted"):
        exported([run])
    files = {"lora": "renders/lora/a.png", "dreambooth": "renders/dreambooth/a.png"}
    rows = [{"render": files["lora"], "judge": "j", "similarity": 0.5},
            {"render": files["dreambooth"], "judge": "j", "similarity": None}]  # fmt: skip
    write_text(run.scores, "".join(human_study.json.dumps(row) + "\n" for row in rows))
    write_json(run.marks, {"j": {}})
    now = votes.standing(run)
    for voter, order, pick in (("v1", ("lora", "dreambooth"), "lora"), ("v2", ("dreambooth", "lora"), None)):
        answer = votes.PICKED if pick else votes.NONE_OF_THEM
        shown = tuple(files[column] for column in order)
        append_line(run.votes, votes.Answer(voter, 0, order, shown, answer, pick, now, "2026-01-01T00:00:00Z"))
    found = exported([run])
    assert len({one.round for one in found}) == 1, "one round, whatever the order"
    assert [(one.column, one.place, one.picked) for one in found] == [
        ("lora", 0, True), ("dreambooth", 1, False), ("dreambooth", 0, False), ("lora", 1, False)
    ]  # fmt: skip
    assert {one.column: one.similarity["j"] for one in found} == {"lora": 0.5, "dreambooth": human_study.NO_FACE}
    write_votes(found, tmp_path / "votes.csv")
    text = (tmp_path / "votes.csv").read_text()
    assert "anna" not in text and ".png" not in text and read_votes(tmp_path / "votes.csv") == found
