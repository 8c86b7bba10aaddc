"""Laws of blind votes: nothing gives a method away, nothing counts twice, and the tally is what people said."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.core import presets
from pipelines.core.files import read_json, write_json, write_text
from pipelines.core.records import METHODS, UserError
from pipelines.core.run import Run, forget, load_photo_set, save_photo_set
from pipelines.evaluation import votes
from tests.runs import make_run

COLUMNS = ("none", *METHODS)
NOW = votes.Standing("d" * 64, "portrait-128", {m: f"{m}-1" for m in METHODS})


def teach(run: Run, method: str, *, digest: str, name: str = "1") -> None:
    card = {"id": f"{method}-{name}", "method": method, "base": "portrait-128", "photo_digest": digest}
    write_json(run.method(method) / "subject.json", card)


def draw(run: Run, column: str, seed: int, subject: str | None, prompt: str = "photo of {subject}") -> Path:
    about = {"sampling": {"prompt": prompt, "seed": seed}, "base": "portrait-128", "subject": subject}
    text = PngInfo()
    text.add_text("likeness", json.dumps(about))
    folder = run.renders(column)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(prompt)}-{seed}.png"
    noise = np.random.default_rng((seed, len(column))).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(path, pnginfo=text)
    return path


@pytest.fixture
def run(tmp_path) -> Run:
    """Three methods and the base, drawn with three seeds each."""
    made = make_run(tmp_path / "run")
    photos = load_photo_set(made)
    assert photos is not None
    for column in COLUMNS:
        if column != "none":
            teach(made, column, digest=photos.digest)
        for seed in range(3):
            draw(made, column, seed, None if column == "none" else f"{column}-1")
    return made


def in_english(*counted) -> str:
    return " ".join(map(str, votes.told(*counted)))


def said(voter: str, number: int, pick: str | None, *, answer: str = "", order=METHODS, standing=NOW) -> votes.Answer:
    answer = answer or (votes.PICKED if pick else votes.NONE_OF_THEM)
    files = tuple(f"{column}/{number}.png" for column in order)
    return votes.Answer(voter, number, tuple(order), files, answer, pick, standing, "2026-01-01T00:00:00Z")


# ------------------------------------------------------------------------------------------------- ballots


def test_rounds_are_pictures_of_one_prompt_and_seed_by_every_method(run):
    asked = votes.start(run)
    assert len(asked.rounds) == 3 and {frozenset(r.order) for r in asked.rounds} == {frozenset(METHODS)}
    for one in asked.rounds:
        assert len({Path(file).name for file in one.files}) == 1, "one prompt, one seed"
        assert all(file.startswith(f"renders/{column}/") for column, file in zip(one.order, one.files, strict=True))
        assert one.photo in [run.relative(photo.path) for photo in load_photo_set(run).held_out]
    assert {c for r in votes.start(run, with_base=True).rounds for c in r.order} == set(COLUMNS)
    assert votes.ballot(run, asked.voter) == asked, "a ballot survives a restart"


def test_what_one_method_lacks_is_no_round(run):
    draw(run, "lora", 7, "lora-1")  # nobody else drew it
    draw(run, "lora", 0, "lora-0", "photo of {subject}, old")  # of an earlier training
    for column in METHODS:
        draw(run, column, 0, f"{column}-1", "photo of a man")  # shows nobody in particular
        draw(run, column, 0, f"{column}-1", presets.stylised()[0])  # no judge says a thing about it
    assert len(votes.pairs(run, votes.standing(run))) == 3


def test_the_order_is_random_and_stays_on_the_server(run):
    orders = {one.order for _ in range(40) for one in votes.start(run).rounds}
    assert len(orders) == 6, "every order of three turns up in 120 rounds"
    firsts = [votes.start(run).rounds[0].files[0] for _ in range(30)]
    assert len(set(firsts)) > 3, "and so does every round"


def test_nothing_to_choose_between_is_a_sentence(tmp_path):
    made = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="nothing to vote about"):
        votes.start(made)
    teach(made, "lora", digest=load_photo_set(made).digest)
    draw(made, "lora", 0, "lora-1")
    with pytest.raises(UserError, match="two methods"):
        votes.start(made)
    draw(made, "none", 0, None)
    assert votes.start(made, with_base=True).rounds[0].order in (("none", "lora"), ("lora", "none"))


# ------------------------------------------------------------------------------------------------- answers


def test_a_vote_is_saved_as_it_was_given(run):
    asked = votes.start(run)
    assert votes.answer(run, asked.voter, round=0, pick=1)
    assert votes.answer(run, asked.voter, round=1, pick=votes.NONE_OF_THEM)
    assert votes.answer(run, asked.voter, round=2, pick=votes.CANT_SAY)
    first, second, third = votes.answers(run)
    assert (first.answer, first.pick) == (votes.PICKED, asked.rounds[0].order[1])
    assert (second.answer, second.pick, third.answer) == (votes.NONE_OF_THEM, None, votes.CANT_SAY)
    assert votes.started(run) == [(asked.voter, 3, 3)]


@pytest.mark.parametrize("pick", [3, -1, 99, True, "lora", "", None, 0.0, "none"])
def test_forged_picks_are_refused(run, pick):
    asked = votes.start(run)
    with pytest.raises(UserError, match="no such picture"):
        votes.answer(run, asked.voter, round=0, pick=pick)
    assert votes.answers(run) == []


def test_a_round_counts_once_and_in_turn(run):
    asked = votes.start(run)
    assert votes.answer(run, asked.voter, round=0, pick=0)
    assert not votes.answer(run, asked.voter, round=0, pick=1), "a double click"
    with pytest.raises(UserError, match="not open"):
        votes.answer(run, asked.voter, round=2, pick=0)
    with pytest.raises(UserError, match="not open"):
        votes.answer(run, asked.voter, round=-1, pick=0)
    for number in (1, 2):
        votes.answer(run, asked.voter, round=number, pick=0)
    with pytest.raises(UserError, match="not open"):
        votes.answer(run, asked.voter, round=3, pick=0)
    assert len(votes.answers(run)) == 3 and votes.answers(run)[0].pick == asked.rounds[0].order[0]
    lines = run.votes.read_text()
    run.votes.write_text(lines + lines)  # whatever wrote it twice
    assert len(votes.answers(run)) == 3


@pytest.mark.parametrize("voter", ["", "x", "../../photos", "a" * 22, "a" * 21 + "/", "a" * 22 + "\n"])
def test_a_vote_that_was_never_started_takes_no_answer(run, voter):
    with pytest.raises(UserError, match="no such vote"):
        votes.answer(run, voter, round=0, pick=0)


def test_votes_about_an_earlier_training_or_other_photos_do_not_count(run):
    asked = votes.start(run)
    votes.answer(run, asked.voter, round=0, pick=0)
    assert len(votes.answers(run)) == 1
    photos = load_photo_set(run)
    teach(run, "lora", digest=photos.digest, name="2")
    assert votes.answers(run) == [] and votes.started(run) == []
    with pytest.raises(UserError, match="over"):
        votes.answer(run, asked.voter, round=1, pick=0)
    teach(run, "lora", digest=photos.digest)
    assert len(votes.answers(run)) == 1, "nothing was lost"
    save_photo_set(run, replace(photos, train=photos.train[1:]))
    assert votes.answers(run) == [] and votes.standing(run) is None


def test_a_new_training_of_a_method_that_did_not_stand_changes_nothing(run):
    (run.method("dreambooth") / "subject.json").unlink()
    asked = votes.start(run)
    votes.answer(run, asked.voter, round=0, pick=0)
    teach(run, "dreambooth", digest=load_photo_set(run).digest, name="9")
    assert len(votes.answers(run)) == 1


# ------------------------------------------------------------------------------------------------- counting


def test_the_tally_is_what_was_planted_whatever_the_order():
    planted = [said("a", 0, "lora"), said("a", 1, "lora"), said("a", 2, "dreambooth"), said("a", 3, None),
               said("b", 0, "lora"), said("b", 1, None, answer=votes.CANT_SAY)]  # fmt: skip
    counted = votes.tally(planted)
    assert (counted.voters, counted.rounds, counted.none_of_them, counted.cant_say) == (2, 6, 1, 1)
    assert {m: (s.wins, s.appearances) for m, s in counted.shares.items()} == {
        "textual_inversion": (0, 5), "dreambooth": (1, 5), "lora": (3, 5),
    }  # fmt: skip
    assert counted.shares["lora"].share == pytest.approx(0.6) and counted.shares["lora"].chance == pytest.approx(1 / 3)
    for seed in range(5):
        mixed = list(planted)
        random.Random(seed).shuffle(mixed)
        assert votes.tally(mixed) == counted


def test_where_a_picture_stood_does_not_matter():
    one = [said("a", n, "lora", order=METHODS) for n in range(4)]
    other = [said("a", n, "lora", order=tuple(METHODS)[::-1]) for n in range(4)]
    assert votes.tally(one) == votes.tally(other)


def test_no_votes_and_only_cant_say():
    assert votes.tally([]) == votes.Tally(0, 0, 0, 0, {})
    counted = votes.tally([said("a", 0, None, answer=votes.CANT_SAY)])
    assert counted.shares["lora"] == votes.Share(0, 0, None, None, None, None)
    assert votes.told(votes.tally([]), None, {}) == []
    assert votes.interval([]) == (None, None) and votes.interval([(0, 0)]) == (None, None)


def test_level_methods_are_not_called_ahead():
    level = votes.tally([said("a", 0, "lora"), said("a", 1, "dreambooth")])
    assert "No method is ahead" in in_english(level, None, {})
    close = votes.tally([said("a", 0, "lora"), said("a", 1, "lora"), said("a", 2, "dreambooth")])
    assert "more votes are needed" in in_english(close, None, {"lora": "LoRA"})
    clear = votes.tally([said(f"v{v}", n, "lora") for v in range(5) for n in range(12)])
    assert "LoRA is ahead of the others beyond chance" in in_english(clear, None, {"lora": "LoRA"})


def test_wilson_is_wilsons():
    low, high = votes.wilson(0.5, 10)  # Wilson's interval of 5 of 10, as every table has it
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)
    assert votes.wilson(0.0, 10)[0] == 0.0 and votes.wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_the_interval_covers_independent_votes_and_clustered_ones():
    """95% intervals of a known share hold it at least 90% of the time, also when friends have tastes of their own."""
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.25):
        held = naive = 0
        for _ in range(400):
            tastes = np.clip(rng.normal(0.4, spread, 12), 0, 1) if spread else np.full(12, 0.4)
            groups = [(int(rng.binomial(12, taste)), 12) for taste in tastes]
            low, high = votes.interval(groups)
            held += low <= 0.4 <= high
            wins = sum(won for won, _ in groups)
            plain = votes.wilson(wins / 144, 144)
            naive += plain[0] <= 0.4 <= plain[1]
        assert held >= 0.9 * 400
        if spread:
            assert held > naive, "answers of one voter are no independent witnesses"


def test_more_of_the_same_votes_narrow_the_interval():
    wide = [np.subtract(*votes.interval([(4 * k, 10 * k)])[::-1]) for k in (1, 3, 9)]
    assert wide[0] > wide[1] > wide[2]


def test_friends_and_judge_agree_or_not():
    found = [said("a", n, "lora") for n in range(3)] + [said("a", 3, "dreambooth")]
    means = {"textual_inversion": 0.1, "dreambooth": 0.3, "lora": 0.5}
    scores = {f"{m}/{n}.png": means[m] for m in METHODS for n in range(4)}
    same = votes.agreement(found, "judge", scores, means)
    assert (same.pairs, same.agreeing, same.rounds, same.same_pick) == (3, 3, 4, 3)
    assert same.by_chance == pytest.approx(4 / 3)
    flipped = votes.agreement(found, "judge", scores, {m: -v for m, v in means.items()})
    assert (flipped.pairs, flipped.agreeing) == (3, 0)
    level = votes.agreement(found, "judge", scores, dict.fromkeys(METHODS, 0.3))
    assert level.pairs == 0, "a judge that finds all alike has no order"
    assert votes.agreement(found, "judge", {}, means).rounds == 0, "no scores, no favourites"
    words = in_english(votes.tally(found), same, {})
    assert "order of the methods is that of judge" in words and "In 3 of 4 rounds" in words


# ------------------------------------------------------------------------------------------------- the page


GIVEAWAYS = re.compile(
    r"lora|dreambooth|textual|inversion|untrained|renders|subject|portrait-128|likeness|seed|score|simil|[0-9]\.png",
    re.IGNORECASE,
)


def words_of(page: str) -> str:
    """A page without the pictures inside it."""
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def walk(run, voter, picks=("0",)):
    from ui.web import ballot

    pages = []
    for number, pick in enumerate(picks):
        pages.append(ballot.show(run.folder.parent, f"{run.id}/{voter}").body.decode())
        ballot.take(run.folder.parent, f"{run.id}/{voter}", f"round={number}&pick={pick}".encode())
    pages.append(ballot.show(run.folder.parent, f"{run.id}/{voter}").body.decode())
    return pages


def test_the_page_gives_no_method_away(run):
    asked = votes.start(run, with_base=True)
    pages = walk(run, asked.voter, ("0", "3", votes.NONE_OF_THEM))
    assert "Thank you" in pages[-1] and len(votes.answers(run)) == 3
    for page in pages:
        assert not GIVEAWAYS.search(words_of(page)), GIVEAWAYS.search(words_of(page))
        assert run.id not in page, "no path, not even the page's own"
    for page, one in zip(pages, asked.rounds):
        assert page.count("<img") == 1 + len(one.order) and page.count("<button") == len(one.order) + 2
        for packed in re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page):
            image = Image.open(io.BytesIO(base64.b64decode(packed)))
            assert image.format == "JPEG" and set(image.info) <= {
                "jfif", "jfif_version", "jfif_unit", "jfif_density", "progressive",
            }, "pixels, nothing else"  # fmt: skip


def test_the_page_shows_the_pictures_in_the_order_on_the_server(run):
    from ui.web import ballot

    asked = votes.start(run)
    (page, _) = walk(run, asked.voter)
    shown = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)[1:]
    wanted = [ballot.picture(run.folder / file).partition("base64,")[2] for file in asked.rounds[0].files]
    assert shown == wanted and len(set(shown)) == 3


@pytest.mark.parametrize(
    "body",
    [b"", b"round=0", b"round=x&pick=0", b"round=0&pick=9", b"round=0&pick=lora", b"round=5&pick=0", b"\xff" * 9000],
)
def test_a_forged_answer_is_a_sentence_and_no_vote(run, body):
    from ui.web import ballot

    asked = votes.start(run)
    response = ballot.take(run.folder.parent, f"{run.id}/{asked.voter}", body)
    assert response.status_code == 400 and b"Reload the page" in response.body
    assert votes.answers(run) == []


def test_addresses_of_no_vote_show_nothing(run, tmp_path):
    from ui.web import ballot

    asked = votes.start(run)
    for address in (
        "",
        "x",
        f"../{run.id}/{asked.voter}",
        f"{run.id}/{'a' * 22}",
        f"{run.id}/",
        f"photos/{asked.voter}",
    ):
        assert ballot.show(run.folder.parent, address).status_code == 404, address
    (tmp_path / "linked").symlink_to(run.folder)
    assert ballot.show(run.folder.parent, f"linked/{asked.voter}").status_code == 404
    for file in asked.rounds[0].files:
        (run.folder / file).unlink()
    assert b"This vote is over" in ballot.show(run.folder.parent, f"{run.id}/{asked.voter}").body


def test_a_deleted_run_takes_its_votes_along(run):
    asked = votes.start(run)
    votes.answer(run, asked.voter, round=0, pick=0)
    assert forget(run.folder)["remaining_files"] == 0
    assert not run.folder.exists()


# ------------------------------------------------------------------------------------------------- the report


def test_the_report_is_brought_up_to_date_with_the_votes(run):
    from pipelines.reports.page import VOTES_BEGIN, VOTES_END, refresh_votes

    assert refresh_votes(run) is None, "no report, nothing to add to"
    means = {"textual_inversion": 0.1, "dreambooth": 0.3, "lora": 0.5}
    saved = {"judges": {"dlib": {}}, "methods": {m: {"identity": {"dlib": {"mean": v}}} for m, v in means.items()}}
    write_json(run.report, saved)
    write_text(run.page, f"<p>before</p>{VOTES_BEGIN}{VOTES_END}<p>after</p>")
    assert refresh_votes(run) == saved, "without votes nothing is added"
    asked = votes.start(run)
    for number in range(3):
        place = asked.rounds[number].order.index("lora")
        votes.answer(run, asked.voter, round=number, pick=place)
    for _ in range(2):  # again changes nothing
        found = refresh_votes(run)["votes"]
        assert found == read_json(run.report)["votes"]
        assert (found["voters"], found["rounds"]) == (1, 3) and found["methods"]["lora"]["wins"] == 3
        assert found["agreement"]["judge"] == "dlib" and found["agreement"]["pairs"] == 2
        page = run.page.read_text()
        assert page.count("Blind votes") == 1 and page.startswith("<p>before</p>") and page.endswith("<p>after</p>")
    teach(run, "lora", digest=load_photo_set(run).digest, name="2")
    assert "votes" not in refresh_votes(run) and "Blind votes" not in run.page.read_text(), "of another training"
