"""Judge all pictures of a run: their scores against the held-out photos, and other facts about them.

In: a run, the album of its photos, renders and a loaded base. Out: events; `judge` keeps scores.jsonl and marks.json
and returns `Judged`, `look_closer` keeps closer.json and returns `Closer`. A picture that has not
changed since these judges scored it is not scored again. References are face embeddings: they stay in memory.
Try it: `for event in judge(run, album, renders, family, control=Control()): print(event)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pipelines.core import inscription, presets
from pipelines.core.control import SAVE_EVERY_S, Control
from pipelines.core.files import file_sha256, jsonable, read_json, read_lines, sha, write_json, write_text
from pipelines.core.records import Counted, Event, PhotoSet, Render, Score, UserError, is_instant, title_of
from pipelines.core.run import Run

if TYPE_CHECKING:
    from pipelines.bases.family import Family
    from pipelines.evaluation.facts import Facts, Worth
    from pipelines.evaluation.references import Reference
    from pipelines.evaluation.scale import Scale
    from pipelines.faces.face import Judge
    from pipelines.photos.album import Album

OTHERS = 3  # photos of other people in a heatmap
LOOKS = "2"  # goes up when there is more to see in a picture, so that none is remembered with less


@dataclass(frozen=True)
class Judged:
    """The judges' scores and scales."""

    scores: dict[str, tuple[Score, ...]]  # by path of the render: one per judge
    marks: dict[str, Scale]  # by judge, the report's first judge first
    judges: tuple[Judge, ...]
    notes: tuple[str, ...] = ()  # judges that are missing here, photos that a judge could not use


@dataclass(frozen=True)
class Closer:
    """The pictures' other facts: whether they are usable, as asked, varied, copies, and whether the base drifted."""

    facts: dict[str, Facts]  # by path inside the run
    worth: dict[str, Worth]  # by column
    heat: dict[str, Any]  # {"photos": [{"name", "part"}], "rows": [{"column", "file", "values"}]}
    clip: str | None = None  # name of the CLIP model that was used
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Terms:
    """How pictures are judged."""

    class_word: str = "person"
    stylised: Collection[str] = ()  # prompts whose pictures no recogniser can judge
    others: Sequence[Path] = ()  # photos of other people; empty: those of the sample person
    earlier: Sequence[Render] = ()  # of earlier jobs: scored only where a judge's score is missing, without events
    ask_clip: bool = False  # True: CLIP says how well a picture fits its prompt; False: rules about pixels do
    download: bool = False  # the person agreed that weights may be downloaded


# ------------------------------------------------------------------------------------------------- scores


def judge(
    run: Run, album: Album, renders: Sequence[Render], family: Family, *, terms: Terms = Terms(), control: Control
) -> Generator[Event, None, Judged]:
    """Score every picture by every judge, against the held-out photos. The judge whose descriptor went into pictures of
    methods that train nothing comes last, and where it is the only one, those pictures have no score.

    Raises Stopped between two pictures, and UserError when no judge finds a face in the held-out photos.
    """
    control.check()
    yield Event("phase", text="Comparing the pictures with photos that training never saw")
    references, notes = _references(album, terms.download)
    for sentence in notes:
        yield Event("note", text=sentence)
    if not references:
        raise UserError("No recogniser finds a face in the held-out photos. Replace the photos and start again.")
    references.sort(key=lambda each: each.judge.name == family.row.face_encoder)
    judges = tuple(reference.judge for reference in references)
    shown = (*renders, *terms.earlier)
    if judges[0].name == family.row.face_encoder and (known := {r.method for r in shown if is_instant(r.method)}):
        text = f"{' and '.join(map(title_of, known))} has no score: {judges[0].name} can't judge alone what its own "
        yield Event("note", text=f"{text}descriptor went into. Install requirements.txt whole for another judge.")
        renders, terms = (
            [each for each in renders if each.method not in known],
            replace(terms, earlier=[each for each in terms.earlier if each.method not in known]),
        )
    store = ScoreStore(run, album.photos, judges)
    scores = yield from _scored(renders, terms.earlier, references, store, control)
    control.check()
    marks = _marks(run, album, scores, judges, family, terms.others)
    write_json(run.marks, marks)
    return Judged({str(path): tuple(found) for path, found in scores.items()}, marks, judges, tuple(notes))


def _references(album: Album, download: bool) -> tuple[list[Reference], list[str]]:
    """A reference of the held-out photos per judge of this machine, and sentences about judges that can't be used."""
    from pipelines.evaluation.references import reference
    from pipelines.faces.judges import available_judges

    said: list[str] = []
    references = []
    for one in available_judges(allow_download=download, on_problem=said.append):
        try:
            references.append(reference(one, album.photos.held_out, album))
        except UserError as problem:
            said.append(f"{one.name} does not judge: {problem}")
    return references, said


def _scored(
    renders: Sequence[Render],
    earlier: Sequence[Render],
    references: Sequence[Reference],
    store: ScoreStore,
    control: Control,
) -> Generator[Event, None, dict[Path, list[Score]]]:
    from pipelines.evaluation.references import score_renders

    todo = [Path(render.path) for render in renders]
    before = [Path(render.path) for render in earlier]
    for path in before:
        scored_by = {score.judge for score in store.known.get(path, ())}
        if path not in todo and any(reference.judge.name not in scored_by for reference in references):
            todo.append(path)
    scores = {path: found for path in before if (found := store.known.get(path)) and path not in todo}
    try:
        for index, path in enumerate(todo):
            control.check()
            scores[path] = store.current(path)
            if not scores[path]:
                scores[path] = [score_renders([path], reference)[0] for reference in references]
                store.saw(path)
                control.keep()
                if control.clock.save(every_s=SAVE_EVERY_S):
                    store.save(scores)
            for score in scores[path]:
                yield Event("score", path.parent.name, index + 1, len(todo), path=str(path), data=score)
    finally:
        store.save(scores)
    return scores


def _marks(
    run: Run,
    album: Album,
    scores: dict[Path, list[Score]],
    judges: Sequence[Judge],
    family: Family,
    others: Sequence[Path],
) -> dict[str, Scale]:
    """{judge: Scale}, from the untrained base's pictures, the photos, and the photos through the base's autoencoder."""
    from pipelines.evaluation.scale import measure_scale

    rebuilt = family.decode(family.encode_images(album.frames(album.photos.held_out, family.row)).latents(None))
    drawn = {path: inscription.read(path, whole=True) for path in scores if path.parent == run.renders("none")}
    # a variation by the untrained base looks like its source, so it does not count for the floor
    untrained = {path for path, saved in drawn.items() if saved is None or saved.sampling.source is None}
    floor = [each for path, found in scores.items() if path in untrained for each in found]
    return {
        one.name: measure_scale(
            one,
            album.photos,
            floor_scores=[score for score in floor if score.judge == one.name],
            rebuilt_images=list(rebuilt),
            album=album,
            others=others,
        )
        for one in judges
    }


class ScoreStore:
    """scores.jsonl of a run, and in scored_with.json what they were measured with: photos, judges, pictures."""

    def __init__(self, run: Run, photos: PhotoSet, judges: Sequence[Judge]) -> None:
        self._run, self._digest = run, photos.digest
        self._judges = sha(*([each.name, each.weights_sha256, jsonable(each.calibration)] for each in judges))
        self._file = run.folder / "scored_with.json"
        self.known = self._read()  # scores against these photos, by whichever judges
        saved = read_json(self._file) or {}
        same = bool(self.known) and saved.get("judges") == self._judges
        self._seen: dict[str, str] = dict(saved.get("pictures", {})) if same else {}  # picture -> sha256 of its file

    def current(self, path: Path) -> list[Score]:
        """The picture's scores by these judges; [] when it changed, or was not scored by them yet."""
        return self.known.get(path, []) if self._seen.get(self._run.relative(path)) == _picture_sha(path) else []

    def saw(self, path: Path) -> None:
        """Note that these judges have scored the picture in its present state."""
        self._seen[self._run.relative(path)] = _picture_sha(path)

    def save(self, scores: dict[Path, list[Score]]) -> None:
        merged = {path: found for path, found in self._read().items() if path.exists()} | scores
        rows = [
            {**asdict(score), "render": self._run.relative(path)} for path, found in merged.items() for score in found
        ]
        write_text(self._run.scores, "".join(json.dumps(jsonable(row)) + "\n" for row in rows))
        with_what = {"photo_digest": self._digest, "judges": self._judges, "pictures": self._seen}
        write_json(self._file, with_what)

    def _read(self) -> dict[Path, list[Score]]:
        if (read_json(self._file) or {}).get("photo_digest") != self._digest:
            return {}
        known: dict[Path, list[Score]] = {}
        for line in read_lines(self._run.scores):
            path = self._run.folder / line["render"]
            known.setdefault(path, []).append(Score(**{**line, "render": str(path)}))
        return known


def _picture_sha(path: Path) -> str:
    return file_sha256(path) if path.is_file() else ""


# ------------------------------------------------------------------------------------------------- other facts


def look_closer(
    run: Run, album: Album, renders: Sequence[Render], judged: Judged, *, terms: Terms, control: Control
) -> Generator[Event, None, Closer]:
    """Measure what a similarity does not say about every picture of `renders`. Raises Stopped between two pictures."""
    from pipelines.evaluation.facts import is_counted, worth_of

    control.check()
    yield Event("phase", text="Looking for copies and slips")
    eye = _Eye(album, judged.judges[0], others_of(album.photos, terms.others))
    seen = _SeenBefore(run, eye.stamp)
    looked: list[_Looked] = []  # what is remembered of each render
    facts: dict[str, Facts] = {}  # by path inside the run
    try:
        for render in renders:
            control.check()
            name = run.relative(render.path)
            facts[name], remembered, is_new = seen.look(eye, render, name)
            looked.append(remembered)
            if is_new:
                control.keep()
                if control.clock.save(every_s=SAVE_EVERY_S):
                    seen.save()
            yield Event("note", render.method, len(looked), len(renders), data=Counted("pictures"))
        clip, notes = _ask_clip(run, renders, facts, looked, terms, control)
        seen.forget_gone()
    finally:
        seen.save()
    pictures: dict[str, list[tuple[Any, Facts, tuple[Score, ...]]]] = {}
    trained: dict[str, list[float | None]] = {}
    rows = []
    for render, found in zip(renders, looked, strict=True):
        name = run.relative(render.path)
        pictures.setdefault(render.method, []).append(
            (render.sampling, facts[name], judged.scores.get(render.path, ()))
        )
        trained.setdefault(render.method, []).append(found["trained"])
        if is_counted(render.sampling, terms.stylised):
            rows.append({"column": render.method, "file": name, "values": found["values"]})
    worth = {
        column: worth_of(shown, pictures.get("none", []), to_training=trained[column], stylised=terms.stylised)
        for column, shown in pictures.items()
    }
    beside = [{"name": name, "part": part} for part, name, _ in eye.beside]
    return Closer(facts, worth, {"photos": beside, "rows": rows}, clip, tuple(notes))


class _Eye:
    """Measures one picture: its facts, and its similarity to the person's photos and to other people's."""

    def __init__(self, album: Album, judge: Judge, others: Sequence[Path]) -> None:
        from pipelines.evaluation import facts, references

        self._judge, photos = judge, album.photos
        shown = album.aligned_frames(photos.train, facts.FRAME_PX)
        self._training = {photo.name: facts.structure(frame) for photo, frame in zip(photos.train, shown, strict=True)}
        try:
            self._learned_from: Reference | None = references.reference(judge, photos.train, album)
        except UserError:
            self._learned_from = None
        self.beside = references.vectors_of(judge, album, others)
        self._vectors = {
            part: [vector for of, _, vector in self.beside if of == part] for part in ("train", "held_out", "other")
        }
        self.stamp = sha(LOOKS, photos.digest, judge.name, judge.weights_sha256, [name for _, name, _ in self.beside])

    def look(self, image: Any, render: Render) -> tuple[Facts, float | None, list[float | None]]:
        """(facts, similarity to the training photos, similarity to each photo of `beside`) of a picture (H, W, 3)."""
        from pipelines.evaluation.facts import copy_paste, facts_of
        from pipelines.evaluation.statistics import known_mean

        facts = facts_of(image, render.sampling, self._training)
        vector = self._judge.look(image).vector
        if vector is None:
            return facts, None, [None] * len(self.beside)
        alike = None if self._learned_from is None else round(self._learned_from.similarity(vector), 6)
        own = self._vectors
        facts = replace(
            facts,
            copy_paste=copy_paste(vector, own["held_out"], own["train"]),
            others=known_mean(self._judge.similarity(vector, other) for other in own["other"]),
        )
        return facts, alike, [round(self._judge.similarity(vector, other), 4) for _, _, other in self.beside]


class _Clip(TypedDict):
    """What CLIP found in a picture."""

    stamp: str  # of the model and the prompts
    cosine: float
    rank: float | None  # None when there is no other prompt


class _Looked(TypedDict):
    """A picture's entry in closer.json."""

    facts: dict[str, object]
    trained: float | None
    values: list[float | None]
    clip: NotRequired[_Clip]


class _SeenBefore:
    """closer.json of a run: keeps what was measured, since in the app every click adds a few pictures to many."""

    def __init__(self, run: Run, stamp: str) -> None:
        self._run, self._file, self._stamp = run, run.folder / "closer.json", stamp
        saved = read_json(self._file)
        same = isinstance(saved, dict) and saved.get("stamp") == stamp
        self._known: dict[str, _Looked] = saved["pictures"] if same else {}
        self._now: dict[str, _Looked] = {}

    def look(self, eye: _Eye, render: Render, name: str) -> tuple[Facts, _Looked, bool]:
        """(facts, the picture's entry in closer.json, whether it was measured now)."""
        from pipelines.evaluation.facts import facts_from_json, facts_to_json
        from pipelines.photos.decode import decode

        image = decode(Path(render.path))
        key = f"{name} {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"
        known = self._known.get(key)
        if known is not None:
            facts, trained, values = facts_from_json(known["facts"], image), known["trained"], known["values"]
        else:
            facts, trained, values = eye.look(image, render)
        entry: _Looked = {"facts": facts_to_json(facts), "trained": trained, "values": values}
        if known is not None and "clip" in known:
            entry["clip"] = known["clip"]
        self._now[key] = entry
        return facts, self._now[key], known is None

    def forget_gone(self) -> None:
        """Drop the entries of pictures that are no longer in the run."""
        self._known = {}

    def save(self) -> None:
        write_json(self._file, {"stamp": self._stamp, "pictures": self._known | self._now})


def _ask_clip(
    run: Run, renders: Sequence[Render], facts: dict[str, Facts], looked: Sequence[_Looked], terms: Terms,
    control: Control,
) -> tuple[str | None, list[str]]:  # fmt: skip
    """Put CLIP's results into `facts` and into each picture's entry; returns (name of the CLIP model, problems)."""
    from pipelines.evaluation import clip as clip_text
    from pipelines.evaluation.facts import is_subject
    from pipelines.photos.decode import decode

    asked = [render.sampling for render in renders if render.sampling.prompt]
    if not terms.ask_clip or not asked:
        return None, []
    try:
        clip = clip_text.ClipText(allow_download=terms.download)
    except UserError as problem:
        return None, [str(problem)]
    prompts = list(dict.fromkeys(sampling.prompt for sampling in asked if is_subject(sampling)))
    if not prompts:
        return None, []
    words = [prompt.replace("{subject}", terms.class_word) for prompt in prompts]
    stamp, texts = sha(clip.name, words), clip.texts(words)
    for render, known in zip(renders, looked, strict=True):
        if render.sampling.prompt not in prompts:
            continue
        control.check()
        answer = known.get("clip")
        if answer is None or answer["stamp"] != stamp:
            cosines = texts @ clip.images([decode(Path(render.path))])[0]
            own = prompts.index(render.sampling.prompt)
            # the rank is None when there is no other prompt
            answer = {"stamp": stamp, "cosine": float(cosines[own]), "rank": clip_text.rank(cosines, own)}
            known["clip"] = answer
            control.keep()
        name = run.relative(render.path)
        seen, rank = facts[name], answer["rank"]
        following = seen.following if rank is None else rank if seen.faces else 0.0
        facts[name] = replace(seen, clip_t=answer["cosine"], following=following)
    return clip.name, []


def others_of(photos: PhotoSet, named: Sequence[Path] = ()) -> list[Path]:
    """Photos of other people: the `named` ones, else the sample person's, except where she is the person herself."""
    own = {photo.name for photo in photos.photos}
    sample = sorted((presets.PRESETS / "sample_person").glob("*.png"))[:OTHERS]
    found = list(named) or [path for path in sample if path.name not in own]
    return [path for path in found if path.is_file()]
