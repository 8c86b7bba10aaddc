"""Other people's LoRAs and embeddings as columns of a comparison: check a file against the base, store it, remove it.

In: a `.safetensors` file, which is not trusted, and a run. Out: `methods/imported-<name>/` with a card and the tensors
that were recognised, nothing else of the file. No code in it is run, no other kind of file is opened, and no tensor is
loaded before the header is checked. Light: no torch, so the app can do it while the person waits.
Try it: `python -m pipelines import RUN FILE --name theirs`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.bases.registry import BaseRow
from pipelines.core.files import (
    file_sha256,
    read_json,
    read_lines,
    require_space,
    told_when_full,
    write_folder,
    write_json,
    write_text,
)
from pipelines.core.records import IMPORTED, Recipe, Subject, UserError, is_imported
from pipelines.core.run import Run, imported_columns
from pipelines.core.safety import check_prompt, problem
from pipelines.methods import lora_names
from pipelines.methods.base import Method
from pipelines.methods.lora_names import Entry, Header, Layout

if TYPE_CHECKING:
    import torch

    from pipelines.bases.family import Family, Modules
    from pipelines.methods.lora_files import Layers

LORA_MB, EMBEDDING_MB = 1000.0, 20.0
HOSTED_LORA_MB = 200.0  # on a Space, where strangers share one disk
LIMIT_ENV = "LIKENESS_IMPORT_MB"
MAX_RANK, MAX_VECTORS, MAX_IMPORTED = 512, 75, 8  # a prompt has 75 places
MAX_STRAY = 0.1  # largest share of a LoRA's layers that may be unknown; with more it was made for another base
MAX_SCALE = 1000.0  # largest alpha / rank: no usable LoRA has more
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,23}")
FILE = {"lora": "lora.safetensors", "embedding": "embedding.safetensors"}
PHRASE_LIMIT = 200
# Patterns of tensor names in files that are no plain LoRA -> what such a file is called.
OTHER_KINDS = (
    (re.compile(r"\.hada_"), "a LoHa"),
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.(oft_|boft_)"), "an OFT"),
    (re.compile(r"\.lora_mid\."), "a LoCon with Tucker decomposition"),
    (re.compile(r"\.(diff|diff_b|w_norm|b_norm|on_input|a1\.weight)$"), "more than a LoRA (whole weights or norms)"),
    (re.compile(r"^bundle_emb\."), "a LoRA with an embedding bundled into it"),
    (re.compile(r"lora_B\.bias$"), "a LoRA with biases"),
    (re.compile(r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\."), "a whole checkpoint"),
)


@dataclass(frozen=True)
class Found:
    """What a file holds, under this project's names."""

    kind: str  # "lora" | "embedding"
    parts: dict[str, Entry]  # this project's name of a tensor -> its place in the file
    numbers: dict[str, float] = field(default_factory=dict)  # "<path>.alpha" -> alpha
    rank: int = 0  # the largest; of an embedding the number of vectors
    phrase: str | None = None  # the trigger words in its metadata
    left_out: tuple[str, ...] = ()  # names of tensors that belong to no layer of the base
    idle: int = 0  # layers whose alpha is 0: they change nothing

    @property
    def learned(self) -> int:
        return sum(each.numbers for each in self.parts.values())


def limit_mb(kind: str) -> float:
    """How large a file may be: $LIKENESS_IMPORT_MB, else 1 GB (on a hosted Space 200 MB); an embedding 20 MB."""
    if kind == "embedding":
        return EMBEDDING_MB
    said = os.environ.get(LIMIT_ENV)
    if said:
        if not said.isascii() or not said.isdigit() or not int(said):
            raise SystemExit(f"{LIMIT_ENV} must be a whole number of megabytes, such as 1000.")
        return float(said)
    return HOSTED_LORA_MB if os.environ.get("SPACE_ID") else LORA_MB


# ------------------------------------------------------------------------------------------------- looking


def look(path: Path, row: BaseRow, layout: Layout | None = None, *, called: str | None = None) -> Found:
    """What a file holds, with the base's names of its layers. Raises UserError for a damaged file and an unknown kind.

    `layout`: the base's layers, if they are known already; `called`: the file's name in messages.
    """
    name = called or path.name
    header = lora_names.read_header(path, called=name, size_limit=int(limit_mb("lora") * 1e6))
    layout = layout or lora_names.layout(row)
    if any(role is not None and role[1] in ("down", "up") for role in map(lora_names.role_of, header.tensors)):
        found = _lora(path, header, row, layout, name)
    else:
        _refuse_other_kinds(header, name)
        found = _embedding(path, header, row, layout, name)
    if lora_names.broken_numbers(path, found.parts.values()):
        raise UserError(f"{name} holds numbers that are none (NaN or infinite): its training failed. Use another one.")
    return found


def _refuse_other_kinds(header: Header, name: str) -> None:
    for pattern, kind in OTHER_KINDS:
        if any(pattern.search(each) for each in header.tensors):
            raise UserError(f"{name} is {kind}, which can't be compared here yet. Plain LoRA, LoCon and DoRA can.")


def _wrong_base(header: Header, row: BaseRow, name: str) -> UserError:
    made, own = lora_names.made_for(header), lora_names.kind_of(row)
    if made is not None and made != own:
        return UserError(f"{name} was made for {made}, not for {row.title}. Choose that base, or another file.")
    return UserError(
        f"{name} does not fit {row.title}: it changes layers that are not there or have another shape. Choose the base "
        "it belongs to."
    )


def _lora(path: Path, header: Header, row: BaseRow, layout: Layout, name: str) -> Found:
    _refuse_other_kinds(header, name)
    layers: dict[str, dict[str, Entry]] = {}
    stray: dict[str, str] = {}  # a tensor of no layer -> what its layer is called
    for key, entry in _unfused(header.tensors, layout).items():
        role = lora_names.role_of(key)
        place = layout.names.get(role[0]) if role else None
        if role is None or place is None or ".embeddings." in place:
            stray[key] = role[0] if role else key
            continue
        if role[1] in layers.setdefault(place, {}):
            raise UserError(f"{name} changes one layer twice ({place}). Get it again.")
        if entry.dtype not in (lora_names.SCALARS if role[1] == "alpha" else lora_names.NUMBERS):
            raise UserError(f"{name} stores numbers as {entry.dtype}. Use a version in float32, float16 or bfloat16.")
        layers[place][role[1]] = entry
    made = lora_names.made_for(header)
    foreign = made is not None and made != lora_names.kind_of(row)
    if not layers or (stray and (foreign or len(set(stray.values())) > max(1.0, MAX_STRAY * len(layers)))):
        raise _wrong_base(header, row, name)
    stated = _Stated(header, name)
    parts: dict[str, Entry] = {}
    numbers: dict[str, float] = {}
    ranks = []
    for place, tensors in layers.items():
        if not {"down", "up"} <= set(tensors):
            if stray:  # the other factor has a shape that no layer of this base has
                raise _wrong_base(header, row, name)
            raise UserError(f"{name} is not whole: {place} has only one of its two factors. Get it again.")
        down, up = tensors["down"], tensors["up"]
        rank = down.shape[0] if down.shape else 0
        if not _fits(down, up, layout.weights[place]):
            raise _wrong_base(header, row, name)
        if not 1 <= rank <= MAX_RANK:
            raise UserError(f"{name} has rank {rank}; at most {MAX_RANK} are taken. Use a smaller version.")
        ranks.append(rank)
        own = tensors.get("alpha")
        alpha = stated.alpha(place, rank) if own is None or own.numbers != 1 else lora_names.number(path, own)
        if not abs(alpha) <= MAX_SCALE * rank:  # NaN fails this as well
            raise UserError(f"{name} has an alpha of {alpha:g}, which can't be. Get it again.")
        parts |= {f"{place}.down": down, f"{place}.up": up}
        numbers[f"{place}.alpha"] = alpha
        lengths = [tensors[each] for each in ("magnitude", "scale") if each in tensors]
        if lengths:
            parts[_length(place, lengths, layout.weights[place], "magnitude" in tensors, name)] = lengths[0]
    idle = sum(alpha == 0 for alpha in numbers.values())
    return Found("lora", parts, numbers, max(ranks), _phrase(header), tuple(stray), idle)


def _unfused(tensors: dict[str, Entry], layout: Layout) -> dict[str, Entry]:
    """Split each LoRA of a fused query-key-value layer into three. They share `down` and alpha; each gets a third of
    the rows of `up`.
    """
    found: dict[str, Entry] = {}
    for key, entry in tensors.items():
        role = lora_names.role_of(key)
        paths = layout.fused.get(role[0]) if role else None
        shared = role is not None and role[1] in ("down", "alpha")
        if role is None or paths is None or not (shared or (entry.shape and entry.shape[0] % 3 == 0)):
            found[key] = entry
            continue
        for index, path in enumerate(paths):
            third = (entry.end - entry.start) // 3
            begin = entry.start + index * third
            rows = (entry.shape[0] // 3, *entry.shape[1:]) if entry.shape else ()
            own = entry if shared else Entry(entry.dtype, rows, begin, begin + third)
            found[f"{path}{_ENDING[role[1]]}"] = own
    return found


_ENDING = {"down": ".lora_down.weight", "up": ".lora_up.weight", "alpha": ".alpha", "scale": ".dora_scale",
           "magnitude": ".lora_magnitude_vector"}  # fmt: skip


def _fits(down: Entry, up: Entry, weight: tuple[int, ...]) -> bool:
    """(rank, in[, height, width]) and (out, rank[, 1, 1]) against (out, in[, height, width])."""
    if len(down.shape) not in (2, 4) or len(up.shape) not in (2, 4):
        return False
    kernel = weight[2:] or (1, 1)
    inside = down.shape[1:] == weight[1:] or (down.shape[1] == weight[1] and (down.shape[2:] or (1, 1)) == kernel)
    return inside and up.shape[:2] == (weight[0], down.shape[0]) and set(up.shape[2:]) <= {1}


def _length(place: str, lengths: list[Entry], weight: tuple[int, ...], by_peft: bool, name: str) -> str:
    """This project's name of a DoRA's magnitudes: `<place>.outputs` (one per output) or `<place>.inputs`."""
    (entry,) = lengths[:1]
    per_input = not by_peft and len(entry.shape) > 1 and entry.shape[0] == 1 and entry.shape[1] == weight[1]
    if len(lengths) > 1 or entry.numbers != weight[1 if per_input else 0]:
        raise UserError(f"{name} is a DoRA whose lengths do not fit {place}. Get it again.")
    return f"{place}.{'inputs' if per_input else 'outputs'}"


class _Stated:
    """The alphas in the metadata of diffusers' files. Where there is none, alpha is the rank, as in every loader."""

    def __init__(self, header: Header, name: str) -> None:
        self._name = name
        try:
            saved = json.loads(header.metadata.get("lora_adapter_metadata") or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} has metadata that can't be read. Get it again.") from error
        self._said = saved if isinstance(saved, dict) else {}

    def alpha(self, place: str, rank: int) -> float:
        part, _, module = place.partition(".")
        own = self._said.get(f"{part}.lora_alpha", rank)
        patterns = self._said.get(f"{part}.alpha_pattern") or {}
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            # PEFT reads these as regular expressions. Here only plain names are read: the file is not trusted
            plain = str(pattern).removeprefix("^").removesuffix("$").replace("\\", "")
            if module == plain or module.endswith(f".{plain}"):
                own = value
        if isinstance(own, bool) or not isinstance(own, int | float):
            raise UserError(f"{self._name} has metadata that can't be read. Get it again.")
        return float(own) * (rank**0.5 if self._said.get(f"{part}.use_rslora") is True else 1.0)


def _embedding(path: Path, header: Header, row: BaseRow, layout: Layout, name: str) -> Found:
    tensors = {key: each for key, each in header.tensors.items() if len(each.shape) in (1, 2)}
    two = {"clip_l", "clip_g"} <= set(tensors)
    if len(header.tensors) != (2 if two else 1) or not tensors:
        raise UserError(f"{name} holds neither a LoRA nor an embedding that is known here. Use another file.")
    if not any(place.startswith("text_encoder.") for place in layout.weights):
        raise UserError(f"{row.title} is told by a chat model and reads no embeddings. Import a LoRA instead.")
    size = path.stat().st_size
    if size > EMBEDDING_MB * 1e6:
        raise UserError(f"{name} has {size / 1e6:,.0f} MB; an embedding has at most {EMBEDDING_MB:g} MB.")
    parts = ("text_encoder", "text_encoder_2") if layout.second_encoder else ("text_encoder",)
    found = [tensors["clip_l"], tensors["clip_g"]] if two else list(tensors.values())
    widths = [layout.weights[f"{part}.embeddings.token_embedding"][1] for part in parts]
    if len(found) != len(parts) or [each.shape[-1] for each in found] != widths:
        if layout.second_encoder and not two:
            raise UserError(
                f"{name} has no clip_l and clip_g: an embedding for {row.title} has one part for each of its two "
                "encoders. Use the file that was made for A1111 or ComfyUI."
            )
        raise UserError(
            f"{name} has vectors of {' and '.join(str(each.shape[-1]) for each in found)} numbers, {row.title} has "
            f"{' and '.join(map(str, widths))}. Choose the base it was made for."
        )
    counts = {each.shape[0] if len(each.shape) == 2 else 1 for each in found}
    if len(counts) > 1 or not 1 <= max(counts) <= MAX_VECTORS:
        raise UserError(f"{name} has {max(counts)} vectors; 1 to {MAX_VECTORS} fit into a prompt. Use another one.")
    if any(each.dtype not in lora_names.NUMBERS for each in found):
        raise UserError(f"{name} stores numbers in a format that is not taken. Use float32, float16 or bfloat16.")
    return Found("embedding", dict(zip(parts, found, strict=True)), {}, max(counts))


def _phrase(header: Header) -> str | None:
    """The trigger words in a LoRA's metadata, if they can be used in a prompt."""
    said = header.metadata.get("modelspec.trigger_phrase", "").strip()
    return said if said and _plain_phrase(said) and problem(said) is None else None


def _plain_phrase(text: str) -> bool:
    return len(text) <= PHRASE_LIMIT and text.isprintable() and not re.search(r"[{}]", text)


# ------------------------------------------------------------------------------------------------- storing


def slug(text: str) -> str:
    """A column's name from a file's: small letters, digits and dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].strip("-")
    return plain or "imported"


def add(
    run: Run, path: Path, row: BaseRow, *, name: str, class_word: str, phrase: str = "", called: str | None = None
) -> Subject:
    """Take a file in as the column `imported-<name>`; returns its card.

    `phrase` is what `{subject}` becomes with it: of a LoRA its trigger words (else those in its metadata, else the
    class word); an embedding's own vectors are always said, and `phrase` after them (else the class word). Raises
    UserError, and leaves the run as it was, for a file that is refused (see `look`) and a name or phrase that can't be.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name[:40]} can't name a column. Use up to 24 small letters, digits and dashes.")
    if phrase and not _plain_phrase(phrase):
        raise UserError(f"Trigger words are one line of at most {PHRASE_LIMIT} characters without braces.")
    check_prompt(phrase)
    column = IMPORTED + name
    there = imported_columns(run)
    if column in there:
        raise UserError(f"There is a column {name} already. Choose another name, or remove that one first.")
    if len(there) >= MAX_IMPORTED:
        raise UserError(f"At most {MAX_IMPORTED} files can be compared in one run. Remove one first.")
    found = look(path, row, called=called)
    require_space(run.folder, 2 * path.stat().st_size, purpose="The file")

    def fill(partial: Path) -> Subject:
        partial.mkdir()
        learned = partial / FILE[found.kind]
        lora_names.write(learned, path, found.parts, found.numbers)
        card = _card(column, learned, found, row, class_word, phrase)
        said = asdict(card) | {"schema": 1, "learned": [card.artifact]}
        said["imported"] = {
            "kind": found.kind,
            "rank": found.rank,
            "layers": len(found.numbers),
            "left_out": list(found.left_out),
            "idle": found.idle,
        }
        write_json(partial / "subject.json", said)
        return card

    with told_when_full():
        return write_folder(run.method(column), fill)


def remarks(run: Run, column: str) -> list[str]:
    """Sentences about parts of an imported file that have no effect; [] when all have."""
    about = (read_json(run.method(column) / "subject.json") or {}).get("imported", {})
    said = []
    if left := about.get("left_out"):
        names = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
        said.append(f"Left out, because the base has no such layer: {names} (tensors: {len(left)}).")
    if idle := about.get("idle"):
        said.append(f"Layers with an alpha of 0, which change nothing: {idle} of {about['layers']}.")
    return said


def _card(column: str, learned: Path, found: Found, row: BaseRow, class_word: str, phrase: str) -> Subject:
    sha = file_sha256(learned)
    if found.kind == "embedding":
        said = " ".join([*tokens(column, found.rank), phrase or class_word])
    else:
        said = phrase or found.phrase or class_word
    return Subject(
        id=f"{column}-{sha[:12]}",
        method=f"imported {found.kind}",
        base=row.name,
        base_revision=row.revision,
        class_word=class_word,
        phrase=said,
        recipe=Recipe(base=row.name, method="imported", class_word=class_word, steps=0),
        photo_digest="",  # its photos are not known
        artifact=learned.name,
        sha256=sha,
        steps=0,  # nor how long
        train_s=0.0,
        peak_mem_mb=None,
        artifact_bytes=learned.stat().st_size,
        trainable_params=found.learned,
    )


def tokens(column: str, count: int) -> tuple[str, ...]:
    """The words of an embedding: "<imported-name>", "<imported-name>_1", ..."""
    return (f"<{column}>", *(f"<{column}>_{index}" for index in range(1, count)))


def remove(run: Run, column: str) -> None:
    """Remove an imported column from a run: its file, its pictures and their scores, and the report with them.

    Raises UserError when there is no such column.
    """
    if not is_imported(column) or column not in imported_columns(run):
        raise UserError(f"There is no imported column {column} in this run.")
    for folder in (run.method(column), run.renders(column)):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise UserError(f"{folder.name} could not be removed. Delete it by hand.")
    lines = [line for line in read_lines(run.scores) if not _of(column, line)]
    if run.scores.exists():
        write_text(run.scores, "".join(json.dumps(line) + "\n" for line in lines))
    for stale in (run.manifest, run.report, run.page, run.cells, run.figures, run.grid):
        stale.unlink(missing_ok=True)


def _of(column: str, line: dict[str, object]) -> bool:
    return str(line.get("render", "")).startswith(f"renders/{column}/")


# ------------------------------------------------------------------------------------------------- putting it on


class _Imported(Method):
    """An imported file can be applied, but not trained."""

    def phrase(self, row: BaseRow, recipe: Recipe) -> str:
        raise UserError("What stands for the person in an imported file is noted on its card.")


class ImportedLoRA(_Imported):
    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        from pipelines.bases.family import PARKED, Modules, moved
        from pipelines.methods import lora_files

        layers = _layers(folder)
        where = PARKED if family.parked else None  # float32 copies need twice the memory
        names = [name for _, name in family.architecture.text_parts]
        changes_text = any(path.partition(".")[0] in names for path in layers)
        unet = family.new_unet(trainable=True, device=where).requires_grad_(False)
        modules = Modules(unet, family.new_text(device=where) if changes_text else family.text)
        parts = {family.architecture.denoiser: modules.unet} | dict(zip(names, modules.text.encoders, strict=True))
        try:
            lora_files.merge(parts, layers, strength=strength)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{folder.name} was not made for {family.row.title}. Choose its base.") from error
        moved(modules.unet, family.device.name, family.device.torch_dtype).requires_grad_(False).eval()
        for encoder in modules.text.encoders if changes_text else ():
            moved(encoder, family.device.name, family.text_dtype).requires_grad_(False).eval()
        return modules


class ImportedEmbedding(_Imported):
    def apply(self, family: Family, folder: Path, recipe: Recipe, *, strength: float = 1.0) -> Modules:
        """`strength` is ignored: word vectors can't be applied in part."""
        import torch

        from pipelines.bases.family import Modules
        from pipelines.bases.text import LearnedRows

        saved = _load(folder, "embedding")
        rows = []
        for (_, name), encoder in zip(family.architecture.text_parts, family.text.encoders, strict=True):
            row = saved.get(name)
            if row is None or row.shape[-1] != encoder.get_input_embeddings().weight.shape[1]:  # type: ignore[operator]
                raise UserError(f"{folder.name} was not made for {family.row.title}. Choose its base.")
            rows.append(row.reshape(-1, row.shape[-1]).to(family.device.name, torch.float32))
        first_ids = tuple(len(tokenizer) for tokenizer in family.text.tokenizers)
        learned = LearnedRows(tokens(folder.name, len(rows[0])), tuple(rows), first_ids)
        return Modules(family.shared().unet, family.text_with(learned))


def _layers(folder: Path) -> Layers:
    from pipelines.methods.lora_files import Layer

    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _load(folder, "lora").items():
        path, _, role = name.rpartition(".")
        found.setdefault(path, {})[role] = tensor
    layers = {}
    for path, each in found.items():
        lengths = each.get("inputs", each.get("outputs"))
        lengths = None if lengths is None else lengths.reshape(-1)
        layers[path] = Layer(each["down"], each["up"], float(each["alpha"]), lengths, "inputs" in each)
    return layers


def _load(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / FILE[kind]))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{FILE[kind]} is missing or damaged in {folder.name}. Import it again.") from error
