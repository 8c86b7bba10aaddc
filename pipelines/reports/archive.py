"""The files that explain a download: settings.json and README.txt.

In: a run. Out: all its settings, and a sentence about every file. Light: reads only JSON and the texts inside PNGs.
Try it: `print(readme(run, files))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.core import inscription
from pipelines.core.files import read_json
from pipelines.core.records import ALL_METHODS, title_of
from pipelines.core.run import Run, columns_of, load_photo_set

# (end of a file's name, sentence about the file); the first that fits is used.
SENTENCES = (
    ("methods/zero_shot/learned_embeds.safetensors",
     "words made of the photos without training. diffusers: pipe.load_textual_inversion(FOLDER)."),
    ("methods/zero_shot/image_embeds.safetensors",
     "what an IP-Adapter's encoder sees in pictures of the face. diffusers: pass it as ip_adapter_image_embeds."),
    ("methods/zero_shot/likeness.safetensors", "the same words under the name that web UIs read."),
    ("methods/textual_inversion/learned_embeds.safetensors",
     "the learned words. diffusers: pipe.load_textual_inversion(FOLDER)."),
    ("methods/textual_inversion/learned_embeds_2.safetensors", "the same for SDXL's second text encoder."),
    ("methods/textual_inversion/likeness.safetensors",
     "the learned words for A1111 and InvokeAI (embeddings folder; write: likeness) and ComfyUI (embedding:likeness)."),
    ("methods/dreambooth/unet/diffusion_pytorch_model.safetensors",
     "the whole network that draws, taught. diffusers: UNet2DConditionModel.from_pretrained(FOLDER/unet)."),
    ("methods/pivotal/learned_embeds.safetensors",
     "the words of pivotal tuning; load the LoRA beside it too. diffusers: pipe.load_textual_inversion(FOLDER)."),
    ("methods/pivotal/learned_embeds_2.safetensors", "the same for SDXL's second text encoder."),
    ("methods/pivotal/likeness.safetensors", "the same words for A1111, ComfyUI and InvokeAI."),
    ("methods/pivotal/pytorch_lora_weights.safetensors",
     "the LoRA of pivotal tuning; it works with its words. diffusers: pipe.load_lora_weights(FOLDER)."),
    ("config.json", "describes the weights beside it."),
    ("methods/lora/pytorch_lora_weights.safetensors",
     "the LoRA. diffusers: pipe.load_lora_weights(FOLDER)."),
    ("methods/lora/likeness_lora.safetensors",
     "the same LoRA for A1111 (models/Lora; write: <lora:likeness_lora:1>), ComfyUI (models/loras), InvokeAI and "
     "sd-scripts. One with DoRA is for diffusers and LyCORIS only."),
    ("methods/dreambooth/likeness_dreambooth_lora.safetensors",
     "DreamBooth as a LoRA for A1111, ComfyUI, InvokeAI and diffusers; its metadata say how much of it that misses."),
    ("methods/dreambooth/likeness_dreambooth_lora_diffusers.safetensors", "the same under diffusers' names."),
    ("lora.safetensors", "what was understood of an imported LoRA; it was not trained here."),
    ("embedding.safetensors", "what was understood of an imported embedding; it was not trained here."),
    ("subject.json", "a method's card: base, phrase that stands for the person, recipe, time, checksum."),
    ("README.md", "how to load what this method learned."),
    ("watch.json", "what was seen of the checkpoints on the way: likeness, prompt-following, seconds."),
    ("strengths.json", "the LoRA strengths that were tried, and the one that was kept."),
    (".safetensors", "learned weights; a safetensors file holds numbers and no program."),
    (".bin", "learned weights."),
    ("report.html", "the report: open it in a browser. Pictures are inside, nothing is fetched."),
    ("report.json", "the report's figures for programs, the blind votes included."),
    ("cells.csv", "one row per picture for a spreadsheet: prompt, seed, every judge's similarity."),
    ("figures.json", "the numbers behind the report's drawings."),
    ("grid.png", "all pictures side by side, a held-out photo beside them."),
    ("scores.jsonl", "one line per picture and judge: similarity, verdict, reason where there is none."),
    ("marks.json", "the marks of each judge's scale: different people, untrained base, own photos."),
    ("votes.jsonl", "one line per answer of a blind vote; voters are random names."),
    ("manifest.json", "everything that is needed to repeat it: versions, seeds, checksums of photos and weights."),
)  # fmt: skip


def settings(run: Run) -> dict[str, object]:
    """Base, recipes and the settings of every picture, JSON-able; without what the run has not done yet."""
    cards = {m: card for m in ALL_METHODS if (card := read_json(run.method(m) / "subject.json"))}
    pictures = {
        run.relative(path): saved.get("sampling")
        for column in columns_of(run)
        for path in sorted(run.pictures(column))
        if (saved := inscription.fields_in(path)) is not None
    }
    photos = load_photo_set(run)
    return {
        "schema": 1,
        "base": next((_base(card.get("base")) for card in cards.values()), None),
        "photos": {
            "learned_from": len(photos.train), "watched": len(photos.validation), "held_out": len(photos.held_out)
        } if photos else None,
        "methods": {
            m: {name: card.get(name) for name in ("phrase", "class_word", "steps", "train_s", "artifact")}
            | {"recipe": {k: _base(v) if k == "base" else v for k, v in (card.get("recipe") or {}).items()}}
            for m, card in cards.items()
        },
        "pictures": pictures,
    }  # fmt: skip


def _base(name: object) -> str | None:
    """A base's name, without private data: for a local base the name of its folder, never its path."""
    return None if name is None else Path(str(name)).name


def readme(run: Run, files: Sequence[Path]) -> str:
    """README.txt: a sentence about each of `files`."""
    names = [run.relative(path) for path in files]
    lines = [
        "Likeness: what was learned of one person, and the pictures made with it",
        "",
        "No photo as it was uploaded is in here. The report and the grid show the person as the base sees them,",
        "so treat this archive like photos of them, and what was learned like a portrait: share it only as they wish.",
        "Every picture in renders/ is generated; its PNG says so inside, with the settings that made it.",
        "",
        "settings.json: base, recipes, and prompt, seed and dials of every picture, in one place.",
    ]
    for column in columns_of(run):
        count = sum(name.startswith(f"renders/{column}/") for name in names)
        if count:
            who = "the untrained base" if column == "none" else title_of(column)
            plural = "s" if count != 1 else ""
            lines.append(f"renders/{column}/: {count} picture{plural} drawn by {who}.")
    for name in names:
        if not name.startswith("renders/"):
            said = next((text for end, text in SENTENCES if name.endswith(end)), "kept as it was made.")
            lines.append(f"{name}: {said}")
    return "\r\n".join([*lines, ""])  # for the editor of Windows
