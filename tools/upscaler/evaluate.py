"""The figures of `models/upscale-x2-mini`, measured on the exported folder with the product's own functions.

Enlarging: 40 held-out portraits, shrunk to 113 pixels (bicubic) and enlarged to 226, and the same portraits decoded by
the base's autoencoder. Flaws: these portraits against held-out drawings of the base.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.faces.arcface import ArcFaceJudge
from pipelines.faces.dlib_faces import dlib_detect, dlib_embed
from pipelines.faces.face import PORTRAIT_EYES_APART_PX, PORTRAIT_EYES_MID, PORTRAIT_SIZE_PX, align_by_eyes
from pipelines.finishing import enlarge
from tools.upscaler import critic, data

SAME_PERSON_L2 = 0.6
TIMED = 5


def everything(
    out: Path, portraits: data.Portraits, drawn: np.ndarray, people: Path | None, packs: Path | None
) -> dict[str, float]:
    enlarge.MODEL = out
    enlarge.settings.cache_clear()
    enlarge._critic.cache_clear()
    held = np.flatnonzero(portraits.held_out)
    figures = {"portraits": float(len(held)), **enlarging(portraits, held, packs)}
    figures |= flaws(portraits, held, drawn[data.SAMPLES :], people)
    figures["enlarger_bytes"] = (out / "enlarger.safetensors").stat().st_size
    figures["critic_bytes"] = (out / "critic.safetensors").stat().st_size
    return figures


def enlarging(portraits: data.Portraits, held: np.ndarray, packs: Path | None) -> dict[str, float]:
    photos = portraits.large[held]
    twice = enlarge.load_upscaler().enlarge
    judges = Judges(packs)
    originals = [judges.look(one) for one in photos]
    figures: dict[str, float] = {}
    lanczos, cubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    rebuilt = portraits.rebuilt[held]
    for name, source, kernel in (("clean", photos, lanczos), ("soft", photos, cubic), ("rebuilt", rebuilt, cubic)):
        small = [data.resized(one, data.SMALL_PX, kernel) for one in source]
        for way, make in (("ours", twice), ("bicubic", bicubic)):
            made = np.stack([make(one) for one in small])
            found = fidelity(photos, made) | judges.compare(originals, [judges.look(one) for one in made])
            figures |= {f"{name}_{way}_{k}": v for k, v in found.items()}
    return figures | seconds(twice)


def bicubic(image: np.ndarray) -> np.ndarray:
    return data.resized(image, 2 * image.shape[0], Image.Resampling.BICUBIC)


def fidelity(photos: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """How similar each made picture is to its photo, and its sharpness compared with the photo's."""
    from pipelines.faces import arcface_mini
    from tools.upscaler.features import Features, from_onnx

    true, got = data.tensor(photos), data.tensor(made)
    features = Features(from_onnx(arcface_mini.MODEL)).fit(true)
    return {
        "psnr_db": float(data.psnr(got, true).mean()),
        "sharpness": float((data.gradient_energy(got) / data.gradient_energy(true)).mean()),
        "feature_distance": float(features.distance(got, true)),
    }


class Judges:
    """The embeddings of a picture by each recogniser; the face is found once, by dlib."""

    def __init__(self, packs: Path | None) -> None:
        from pipelines.faces.arcface_mini import ArcFaceMini

        self.mini = ArcFaceMini()
        self.pack = ArcFaceJudge("buffalo_sc", packs / "models" / "buffalo_sc") if packs else None

    def look(self, image: np.ndarray) -> dict[str, np.ndarray | None]:
        found = dlib_detect(image)
        out: dict[str, np.ndarray | None] = {
            "dlib": dlib_embed(image, found[0]) if found else None,
            "arcface_mini": self.mini.embed_face(image, found[0]) if found else None,
        }
        if self.pack is not None:
            out["buffalo_sc"] = self.pack.look(image).vector
        return out

    def compare(self, a: list, b: list) -> dict[str, float]:
        """Means over pictures; a face that is no longer found counts as another person with similarity 0."""
        distances = [float(np.linalg.norm(x["dlib"] - y["dlib"])) for x, y in zip(a, b) if _both(x["dlib"], y["dlib"])]
        out = {
            "same_person": sum(d < SAME_PERSON_L2 for d in distances) / len(a),
            "dlib_distance": float(np.mean(distances)),
        }
        for name in a[0]:
            if name != "dlib":
                alike = [float(np.dot(x[name], y[name])) if _both(x[name], y[name]) else 0.0 for x, y in zip(a, b)]
                out[name] = float(np.mean(alike))
        return out


def _both(x: np.ndarray | None, y: np.ndarray | None) -> bool:
    return x is not None and y is not None


def seconds(twice: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Seconds to enlarge a 128-pixel picture to 256 after a first one: wall time and CPU time (independent of other
    load).
    """
    import torch

    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    twice(image)
    wall, work = [], []
    for _ in range(TIMED):
        started, used = time.perf_counter(), time.process_time()
        twice(image)
        wall.append(time.perf_counter() - started)
        work.append(time.process_time() - used)
    return {
        "seconds": float(np.median(wall)),
        "processor_seconds": float(np.median(work)),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
    }


def flaws(portraits: data.Portraits, held: np.ndarray, drawn: np.ndarray, people: Path | None) -> dict[str, float]:
    """How well the map's score separates photos from drawings, and how well simpler measures do on them."""
    import torch

    twice = enlarge.load_upscaler().enlarge

    def net(x: torch.Tensor) -> torch.Tensor:
        return data.tensor(
            np.stack([twice((one * 255).round().byte().permute(1, 2, 0).contiguous().numpy()) for one in x])
        )

    def pictures(kind: str, indices: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng([17, seed])
        return [
            critic.example(kind, portraits.large[i], portraits.rebuilt[i], drawn[k % len(drawn)], net, rng)
            for k, i in enumerate(indices)
        ]

    def rights(images: list[np.ndarray]) -> np.ndarray:
        return np.array([1 - enlarge.flaw_map(image).score for image in images])

    def cue(images: list[np.ndarray], measure: Callable[[np.ndarray], float]) -> np.ndarray:
        return np.array([measure(image) for image in images])

    photo = [p for p, _ in pictures(critic.PHOTO, held, 0)]
    made = [p for p, _ in pictures(critic.DRAWN, np.resize(held, len(drawn)), 1)]
    again = [p for p, _ in pictures(critic.REBUILT, held, 2)]
    good, bad = rights(photo), rights(made)
    out = {
        "drawings": len(drawn),
        "auc_drawn": critic.auc(good, bad),
        "auc_rebuilt": critic.auc(good, rights(again)),
        # as in the product: photos only shrunk, drawings only enlarged
        "auc_drawn_plain": critic.auc(
            rights([twice(data.resized(p, 128)) for p in portraits.large[held]]), rights([twice(d) for d in drawn])
        ),
        "score_photo": float(1 - good.mean()),
        "score_drawn": float(1 - bad.mean()),
    }
    for name, measure in (("sharpness", _sharpness), ("saturation", _saturation), ("brightness", _brightness)):
        value = critic.auc(cue(photo, measure), cue(made, measure))
        out[f"auc_by_{name}"] = max(value, 1 - value)
    places = []
    for picture, right in pictures(critic.SPLICED, held, 3):
        values = 1 - enlarge.flaw_map(picture).values
        cells = critic.on_cells(torch.tensor(right)[None, None], torch.Size(values.shape)).numpy()[0, 0]
        places.append(critic.auc(values[cells > 0.9], values[cells < 0.1]))
    out["auc_place"] = float(np.mean(places))
    if people is not None:
        rng = np.random.default_rng([17, 4])
        found = [critic.finished(critic.enlarged(net, frame, rng), rng) for frame in people_frames(people)]
        out |= {"people": len(found), "auc_people_drawn": critic.auc(rights(found), bad)}
    return out


def _sharpness(image: np.ndarray) -> float:
    return float(data.gradient_energy(data.tensor(image[None]))[0])


def _saturation(image: np.ndarray) -> float:
    return float(np.ptp(image.astype(np.float32), axis=2).mean())


def _brightness(image: np.ndarray) -> float:
    return float(image.mean())


def people_frames(folder: Path) -> list[np.ndarray]:
    """Photos that are no studio portraits, in the base's framing at the large size."""
    scale = data.LARGE_PX / PORTRAIT_SIZE_PX
    mid = (PORTRAIT_EYES_MID[0] * scale, PORTRAIT_EYES_MID[1] * scale)
    apart = PORTRAIT_EYES_APART_PX * scale
    frames = []
    for row in csv.DictReader((folder / "people.csv").open()):
        for path in sorted((folder / row["person"]).glob("*.jpg"))[:5]:
            image = np.array(Image.open(path).convert("RGB"))
            found = dlib_detect(image)
            if found:
                frames.append(align_by_eyes(image, found[0].eyes, size_px=data.LARGE_PX, midpoint=mid, apart_px=apart))
    return frames
