"""An IP-Adapter (Ye et al. 2023): weights beside a base, through which it draws a face from pictures of it.

In: what the hub calls them. Out: where they lie on this machine, or the command that fetches them. Light: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOCAL = "ip_adapter"  # in a local base's folder: the weights, and the encoder in image_encoder/


@dataclass(frozen=True)
class FaceAdapter:
    """Files of one repository of the hub, at one commit."""

    repo: str
    revision: str
    weights: str
    encoder: str  # folder of the CLIP encoder that reads the pictures
    licence: str

    @property
    def files(self) -> tuple[str, ...]:
        return (self.weights, f"{self.encoder}/config.json", f"{self.encoder}/model.safetensors")

    @property
    def fetch(self) -> str:
        """The command that brings them onto this machine."""
        return f"hf download {self.repo} {' '.join(self.files)} --revision {self.revision}"

    def find(self, base: Path | None = None) -> tuple[Path, Path] | None:
        """(weights, encoder's folder): of a local `base` folder's `ip_adapter/`, else in the hub's cache. None where
        they are not whole. The hub itself is not asked.
        """
        from huggingface_hub import try_to_load_from_cache

        own = base / LOCAL if base is not None else None
        if own is not None and own.is_dir():
            encoder = own / "image_encoder"
            found = [own / Path(self.weights).name, encoder / "config.json", encoder / "model.safetensors"]
        else:
            cached = [try_to_load_from_cache(self.repo, name, revision=self.revision) for name in self.files]
            found = [Path(each) for each in cached if isinstance(each, str)]
        whole = len(found) == len(self.files) and all(path.is_file() for path in found)
        return (found[0], found[1].parent) if whole else None


# The commit as many people's lock files and published hub caches name it, the licence as they state it; the hub itself
# was not asked. They read CLIP's view of a face and no recogniser's, so every judge is independent of them.
def plus_face(weights: str) -> FaceAdapter:
    return FaceAdapter(
        "h94/IP-Adapter",
        "018e402774aeeddd60609b4ecdb7e298259dc729",
        weights,
        "models/image_encoder",
        "Apache-2.0",
    )


SD15 = plus_face("models/ip-adapter-plus-face_sd15.safetensors")
SDXL = plus_face("sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors")
