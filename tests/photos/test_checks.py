"""Laws of the photo check: the right reason for each fault, the person found among others, nobody accused lightly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from pipelines.cli.entry import main
from pipelines.core.records import LEAVE_OUT, REASONS, REMARKS, UserError
from pipelines.faces.calibration import Calibration, Comparisons
from pipelines.faces.face import Face
from pipelines.photos import checks, gather, intake

SHARED = Path(__file__).resolve().parents[3] / "shared"
PEOPLE = SHARED / "data" / "people"
needs_people = pytest.mark.skipif(not PEOPLE.is_dir(), reason="needs ../shared/data/people")

FINE = checks.Measures(200.0, 120.0, 40.0, 0.0, 0.0, 0.0, 0.0, False)


def figures(references: int, loose: float, strict: float) -> Comparisons:
    quantiles = {"0.5": 0.0, "0.999": strict}
    return Comparisons(
        references,
        9999,
        99,
        quantiles,
        {"0.05": 0.6, "0.5": 0.8},
        {"0.01": loose, "0.001": strict},
        {},
        9.0,
        -3.0,
        0.1,
        0.98,
    )


KNOWN = Calibration("test", "0" * 64, "dlib", "made up", (figures(1, 0.3, 0.4), figures(3, 0.4, 0.5)))


def face(x: float = 100.0, size: float = 60.0) -> Face:
    eyes = np.array([(x - size / 4, 90.0), (x + size / 4, 90.0)])
    return Face((x - size / 2, 70.0, x + size / 2, 70.0 + size), eyes, eyes, np.array([x, 110.0]), 1.0)


def somebody(seed: int, spread: float = 0.4, dimensions: int = 32) -> np.ndarray:
    """A unit vector near person `seed // 100`'s."""
    centre = np.random.default_rng(seed // 100).normal(size=dimensions)
    vector = centre + spread * np.random.default_rng(seed).normal(size=dimensions)
    return vector / np.linalg.norm(vector)


def picture(*people: int, measures: checks.Measures = FINE) -> checks.Examined:
    """One picture with these faces in it, largest first."""
    found = tuple(face(60.0 + 70 * k, 60.0 - 5 * k) for k in range(len(people)))
    vectors = np.stack([somebody(seed) for seed in people]) if people else np.zeros((0, 1))
    return checks.Examined((200, 400), found, (measures,) * len(people), vectors)


def judged(*examined: checks.Examined | None, **options):
    names = [f"{k}.jpg" for k in range(len(examined))]
    options = {"min_eye_distance_px": 10.0, "known": KNOWN} | options
    return checks.check_set(names, list(examined), {}, **options)


def test_one_person_is_accused_of_nothing():
    found, report, who = judged(*(picture(100 + k) for k in range(8)))
    assert [check.verdict for check in found] == ["good"] * 8 and who == [0] * 8
    assert report.good == 8 and report.left_out == 0 and report.ceiling is not None and report.ceiling > 0.8
    assert not report.ceiling_low


def test_one_or_two_strangers_are_found_and_do_not_excuse_each_other():
    for strangers in ((900,), (900, 901), (900, 700)):
        found, _, _ = judged(*(picture(100 + k) for k in range(6)), *(picture(seed) for seed in strangers))
        codes = [check.reasons for check in found]
        assert codes == [()] * 6 + [("another_person",)] * len(strangers)
        assert all(check.verdict == "leave_out" and "another person" in check.text for check in found[6:])


def test_where_nobody_is_the_majority_nobody_is_accused():
    found, _, _ = judged(*(picture(100 * k) for k in range(1, 7)))
    assert all("another_person" not in check.reasons for check in found)
    found, _, _ = judged(*(picture(100 + k) for k in range(6)), picture(900), known=None)
    assert all("another_person" not in check.reasons for check in found), "no threshold, no claim"


def test_among_several_faces_the_one_that_agrees_with_the_others_is_the_person():
    others = [picture(100 + k) for k in range(5)]
    found, _, who = judged(*others, picture(900, 106), picture(107, 901))
    assert who == [0, 0, 0, 0, 0, 1, 0]
    assert [check.reasons for check in found[5:]] == [("several_faces",)] * 2
    assert all(check.verdict == "usable" for check in found[5:])
    found, _, _ = judged(*others, picture(900, 901))
    assert "another_person" in found[5].reasons


def test_a_person_may_overrule_but_not_without_a_face():
    pictures = [*(picture(100 + k) for k in range(6)), picture(900), picture()]
    found, report, _ = judged(*pictures, keep=["6.jpg", "7.jpg"])
    assert found[6].verdict == "leave_out" and found[6].kept
    assert found[7].reasons == ("no_face",) and not found[7].kept
    assert len(report.angles) == 7


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sharpness": 9.0}, "blurred"),
        ({"luma": 30.0}, "dark"),
        ({"luma": 235.0}, "bright"),
        ({"contrast": 6.0}, "low_contrast"),
        ({"yaw": -0.4}, "turned"),
        ({"tilt_degrees": 40.0}, "tilted"),
        ({"cropped": True}, "cropped_head"),
    ],
)
def test_each_fault_has_its_code_and_lets_the_photo_pass(changes, code):
    from dataclasses import replace

    found, _, _ = judged(*(picture(100 + k) for k in range(4)), picture(105, measures=replace(FINE, **changes)))
    assert found[4].reasons == (code,) and found[4].verdict == "usable" and found[4].text == REASONS[code]
    assert code in REMARKS


def test_small_faces_copies_and_unreadable_files():
    pictures = [picture(100 + k) for k in range(5)]
    small, _, _ = judged(*pictures, min_eye_distance_px=60.0)
    assert all(check.reasons == ("face_too_small",) and check.verdict == "leave_out" for check in small)
    found, _, _ = judged(*pictures, None, near=[[0, 1], [2]], same={4: 3})
    assert found[0].reasons == found[1].reasons == ("near_duplicate",) and "1.jpg" in found[0].text
    assert found[4].reasons == ("same_picture",) and "3.jpg" in found[4].text
    assert found[5].reasons == ("unreadable",)
    assert {code for check in found for code in check.reasons} <= set(REASONS) == set(LEAVE_OUT) | set(REMARKS)


def test_the_report_asks_for_what_is_missing():
    from dataclasses import replace

    few = judged(*(picture(100 + k) for k in range(3)))[1]
    assert "at least 5" in str(few.next_photo)
    frontal = judged(*(picture(100 + k) for k in range(6)))[1]
    assert frontal.checklist["a frontal photo"] and not frontal.checklist["turned to the left"]
    assert "to the left" in str(frontal.next_photo)
    angles = [
        replace(FINE, yaw=yaw, luma=luma) for yaw, luma in ((0, 90), (0, 160), (-0.15, 120), (0.15, 120), (0, 120))
    ]
    varied = judged(*(picture(100 + k, measures=m) for k, m in enumerate(angles * 2)))[1]
    assert all(varied.checklist.values()) and varied.next_photo is None
    assert not any("mouth" in what for what in varied.checklist)  # not measured, so nothing is said
    for there, missing in (("open", "mouth closed"), ("closed", "mouth open or teeth showing")):
        same = [replace(m, mouth=there) for m in angles[:4]] + [replace(FINE, mouth=None)]
        told = judged(*(picture(100 + k, measures=m) for k, m in enumerate(same * 2)))[1]
        assert [what for what, has in told.checklist.items() if not has] == [missing]
        assert ("closed" if there == "open" else "teeth") in str(told.next_photo)
    profile = judged(*(picture(100 + k, measures=replace(FINE, yaw=0.2)) for k in range(6)))[1]
    assert "straight" in str(profile.next_photo)


def test_a_set_that_hardly_agrees_is_told():
    spread = [checks.Examined((200, 400), (face(),), (FINE,), somebody(100 + k, 1.0)[None]) for k in range(8)]
    assert judged(*spread)[1].ceiling_low


def test_embeddings_are_not_printed():
    assert "vectors" not in repr(picture(1)) and str(round(float(somebody(1)[0]), 4)) not in repr(picture(1))


# ------------------------------------------------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(np.ascontiguousarray(data.astronaut()[:, :, :3])).crop((60, 0, 390, 330))


def reasons_of(image: Image.Image) -> tuple[str, ...]:
    one = checks.examine(np.asarray(image.convert("RGB")), None)
    return checks.check_set(["a"], [one], {}, min_eye_distance_px=20.0)[0][0].reasons


def test_real_pictures_get_the_reasons_that_were_made(astronaut):
    assert reasons_of(astronaut) == ()
    assert reasons_of(astronaut.filter(ImageFilter.GaussianBlur(3))) == ("blurred",)
    assert "dark" in reasons_of(ImageEnhance.Brightness(astronaut).enhance(0.2))
    washed = Image.blend(astronaut, Image.new("RGB", astronaut.size, "white"), 0.8)
    assert {"bright", "low_contrast"} & set(reasons_of(washed))
    assert reasons_of(astronaut.resize((90, 90))) == ("face_too_small",)
    assert reasons_of(Image.new("RGB", (200, 200), "grey")) == ("no_face",)
    assert reasons_of(Image.new("RGB", (40, 40), "grey")) == ("picture_too_small",)
    left, top, right, bottom = (int(v) for v in checks.examine(np.asarray(astronaut), None).faces[0].box)
    assert "cropped_head" in reasons_of(astronaut.crop((left - 20, top + 4, right + 20, bottom + 20)))


@needs_people
def test_the_command_says_what_the_app_says(tmp_path, capsys):
    import shutil

    for index, path in enumerate(gather.photo_files(PEOPLE / "p03")[:6]):
        shutil.copy(path, tmp_path / f"me{index}.jpg")
    shutil.copy(gather.photo_files(PEOPLE / "p10")[0], tmp_path / "stranger.jpg")
    shutil.copy(tmp_path / "me0.jpg", tmp_path / "twice.jpg")
    (tmp_path / "broken.png").write_text("<html></html>")
    assert main(["check", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    verdicts = {name: (one["verdict"], one["reasons"]) for name, one in said["photos"].items()}
    assert verdicts["stranger.jpg"] == ("leave_out", ["another_person"])
    assert verdicts["twice.jpg"] == ("leave_out", ["same_picture"])
    assert verdicts["broken.png"] == ("leave_out", ["unreadable"])
    assert all(verdicts[f"me{index}.jpg"][0] != "leave_out" for index in range(6))
    assert 0 < said["set"]["ceiling"] <= 1 and said["set"]["left_out"] == 3
    with pytest.raises(UserError, match=r"stranger.jpg: this is probably another person"):
        intake.intake([tmp_path / "stranger.jpg", *(tmp_path / f"me{k}.jpg" for k in range(4))], tmp_path / "set")
    kept = intake.intake(
        [tmp_path / "stranger.jpg", *(tmp_path / f"me{k}.jpg" for k in range(4))],
        tmp_path / "set",
        keep=["stranger.jpg"],
    )
    assert len(kept.photos) == 5 and not kept.rejected


def test_help_lists_every_code(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    said = capsys.readouterr().out
    assert all(code in said for code in REASONS)


def test_a_corpus_of_files_gets_the_expected_verdicts(tmp_path, astronaut):
    """Every format with the same face is one picture; what can't be read is told; nothing spoils anything."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    expected: dict[str, str] = {}

    def save(name: str, image: Image.Image, expect: str, **options) -> None:
        image.save(tmp_path / name, **options)
        expected[name] = expect

    save("a.png", astronaut, "good")
    save("b.jpg", astronaut, "near_duplicate", quality=92)
    save("c.webp", astronaut, "near_duplicate", quality=90)
    save("d.avif", astronaut, "near_duplicate", quality=80)
    save("e.heic", astronaut, "near_duplicate", quality=80)
    save("f.mpo", astronaut, "near_duplicate", save_all=True, append_images=[astronaut.rotate(90)])
    save("g.gif", astronaut, "near_duplicate", save_all=True, append_images=[Image.new("RGB", astronaut.size)])
    save("h.tif", astronaut.convert("CMYK"), "same_picture")  # and back without loss
    save("i.png", astronaut.convert("L"), "near_duplicate")
    deep = np.asarray(astronaut.convert("L")).astype(np.uint16) * 257
    save("j.png", Image.fromarray(deep), "same_picture")  # 16 bits of the very same greys as i.png
    clear = astronaut.convert("RGBA")
    save("k.png", clear, "same_picture")
    turned = Image.Exif()
    turned[274], turned[271] = 6, "SECRETCAMERA"
    save("l.jpg", astronaut.transpose(Image.Transpose.ROTATE_90), "near_duplicate", quality=92, exif=turned.tobytes())
    save("🙂" * 20 + ".jpg", astronaut, "near_duplicate", quality=85)
    save("n" * 240 + ".jpg", astronaut, "near_duplicate", quality=80)
    save("no face.png", Image.new("RGB", (300, 300), "teal"), "no_face")
    save("tiny.png", astronaut.resize((40, 40)), "picture_too_small")
    save("bomb.png", Image.new("1", (12_000, 12_000)), "unreadable")
    for name, data in {
        "page.png": b"<!doctype html><html><body>not found</body></html>",
        "empty.jpg": b"",
        "cut.jpg": (tmp_path / "b.jpg").read_bytes()[:4000],
        "cut.heic": (tmp_path / "e.heic").read_bytes()[:2000],
        "text.webp": b"RIFF\x00\x00\x00\x00WEBP",
    }.items():
        (tmp_path / name).write_bytes(data)
        expected[name] = "unreadable"
    found, report = intake.check([tmp_path / name for name in expected])
    got = {check.name: check.reasons[0] if check.reasons else "good" for check in found}
    wanted = {name: "near_duplicate" if code == "good" else code for name, code in expected.items()}
    assert got == wanted
    assert all(check.text for check in found) and report.left_out == 11
    assert {check.verdict for check in found if check.reasons == ("near_duplicate",)} == {"usable"}


@pytest.mark.parametrize(("quarters", "code"), [(-1, "rotated_left"), (1, "rotated_right"), (2, "rotated_half")])
def test_a_photo_that_lies_on_its_side_is_turned_and_that_is_said(tmp_path, astronaut, quarters, code):
    lying = np.ascontiguousarray(np.rot90(np.asarray(astronaut.convert("RGB")), quarters))
    Image.fromarray(lying).save(tmp_path / "lying.png")
    (found,), _ = intake.check([tmp_path / "lying.png"])
    assert found.reasons == (code,) and found.verdict == "usable" and found.text == REASONS[code]
    stored = intake.store_copy(lying, tmp_path / "copy")
    assert (np.asarray(Image.open(stored)) == np.asarray(astronaut.convert("RGB"))).all(), "what is kept is upright"


def test_made_copies_of_a_photo_are_one_moment(tmp_path, astronaut):
    """Mirrored, cropped, turned and covered in a corner."""
    width, height = astronaut.size
    covered = astronaut.copy()
    covered.paste((250, 210, 40), (width * 3 // 4, height * 3 // 4, width, height))
    pictures = {
        "a.png": astronaut,
        "mirrored.png": astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "cropped.png": astronaut.crop((width // 5, 0, width * 4 // 5, height * 3 // 5)),
        "turned.png": astronaut.rotate(10, Image.Resampling.BICUBIC),
        "covered.png": covered,
    }
    for name, image in pictures.items():
        image.save(tmp_path / name)
    found, _ = intake.check([tmp_path / name for name in pictures])
    assert all("near_duplicate" in check.reasons for check in found)
    assert all(check.text.count(".png") == len(pictures) - 1 for check in found)
