"""Marks: every finished picture says in three ways that an AI drew it, and `verify` reads them.

In: an image. Out: a JPEG, PNG, WebP or AVIF file with content credentials (C2PA, signed), the IPTC field "digital
source type" (XMP), and a watermark in the pixels; or, from any file, what each of the three says.
Try it: `python -m pipelines verify portrait.jpg`.

The first two are metadata: most sites remove them, and anyone can. The watermark is in the pixels and is not removed
with the metadata, but has no further information. None of the three names a person, a prompt, a path or a machine.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core.files import write_bytes
from pipelines.core.records import UserError
from pipelines.finishing import credentials, watermark
from pipelines.finishing.credentials import SOURCE_TYPE, Credentials
from pipelines.photos.decode import FORMATS as PHOTO_FORMATS
from pipelines.photos.decode import decode

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "AVIF": (".avif",)}
QUALITY = {"JPEG": 92, "WEBP": 90, "AVIF": 80}  # defaults; PNG is lossless
MARK_NAMES = ("credentials", "field", "watermark")
TEXT_LIMIT_BYTES = 1 << 20
# Source types (https://cv.iptc.org/newscodes/digitalsourcetype/, C2PA's own, Adobe's) that mean that a model drew the
# picture -> (words for the picture itself, words for a picture that it was made from).
GENERATED = {
    "trainedAlgorithmicMedia": ("an AI model drew this picture", "made from a picture that an AI drew"),
    "trainedAlgorithmicData": ("an AI model drew this picture", "made from a picture that an AI drew"),
    credentials.ADOBE: (
        "an AI model drew this picture, or a part of it",
        "made from a picture that an AI drew, wholly or in part",
    ),
    "compositeWithTrainedAlgorithmicMedia": (
        "an AI model drew part of this picture",
        "made from a picture that an AI drew in part",
    ),
    "algorithmicMedia": ("a program drew this picture", "made from a picture that a program drew"),
    "compositeSynthetic": ("part of this picture is synthetic", "made from a picture that is partly synthetic"),
}
# What is wrong with credentials although the file is unchanged; the keys are those of `credentials.DOUBTS`.
DOUBTS = {
    "unbound": "they hold no fingerprint of the picture, so they may belong to another one",
    "revoked": "the certificate that signed them was revoked",
    "expired": "the certificate that signed them is not valid at the time that counts: it expired, or begins later",
    "certificate": "the certificate that signed them is not one that content credentials allow",
    "malformed": "a part of them is not written as the standard asks",
    "missing": "a part of them is missing",
    "other": "they could not be checked",
}


_ENCODING = threading.Lock()  # Pillow's buffer size is one setting for the whole process


@dataclass(frozen=True)
class Marks:
    """The marks that were written into a file. `left_out` has a sentence for every mark that is not in it."""

    credentials: bool
    field: bool
    watermark: bool
    left_out: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class Mark:
    """One mark, as found in a file."""

    name: str  # one of MARK_NAMES
    present: bool
    generated: bool  # it says that a model drew the picture, and it is not doubtful
    state: str  # credentials: see `Credentials.state`; else "found" | "none" | "unreadable"
    sentence: str
    by_parent: bool = False  # it says this about a picture that this one was made from


@dataclass(frozen=True)
class Verification:
    """The three marks of a file, in the order of MARK_NAMES, and a further hint."""

    marks: tuple[Mark, ...]
    settings_of: str = ""  # the drawing program whose settings are in the file; "" if none or unknown

    @property
    def found(self) -> bool:
        """Whether any mark or settings in the file say that a model drew the picture."""
        return bool(self.settings_of) or any(mark.generated for mark in self.marks)

    @property
    def tampered(self) -> bool:
        return any(mark.state == "tampered" for mark in self.marks)

    @property
    def sentence(self) -> str:
        """The complete result in one to three sentences."""
        saying = [mark for mark in self.marks if mark.generated]
        count = len(saying)
        if count == 0:
            sentences = ["No mark says that an AI drew this picture."]
        elif count == 1 and saying[0].by_parent:  # watermark and field are always about the picture itself
            sentences = ["1 of 3 marks says that this picture was made from a picture that an AI drew."]
        elif count == 1:
            sentences = ["1 of 3 marks says that an AI drew this picture."]
        else:
            sentences = [f"{count} of 3 marks say that an AI drew this picture."]
        if self.settings_of:
            sentences.append(
                f"The file holds settings of {self.settings_of}, which draws pictures: a hint, neither signed nor hard "
                "to change."
            )
        elif not saying:
            sentences.append("That does not show that it is a photo.")
        if self.tampered:
            sentences.append("The file was changed after it was signed.")
        return " ".join(sentences)


# ------------------------------------------------------------------------------------------------- making


def mark(
    image: Path | np.ndarray,
    out: Path,
    *,
    format_name: str | None = None,
    quality: int | None = None,
    dpi: int = 0,
    base: str = "",
    in_pixels: bool = True,
) -> Marks:
    """Write `image` - a file, or uint8 (H, W, 3 or 4) - to `out` with all three marks.

    The format is `format_name`, else it follows from the suffix of `out`. `base` is the short name of the model that
    drew it. Use `in_pixels=False` for an image that has the watermark already. Raises UserError for an unknown format
    and a full disk; a mark that can't be made on this machine is left out, and the result says why.
    """
    pixels = decode(image) if isinstance(image, Path) else image
    kind = format_name or next((name for name, ends in FORMATS.items() if out.suffix.lower() in ends), "")
    if in_pixels:
        pixels = with_watermark(pixels)
    data = encode(pixels, kind, quality=quality, dpi=dpi, base=base)
    data, marks = seal(data, kind, base=base, watermarked=min(pixels.shape[:2]) >= watermark.MIN_SIDE_PX)
    write_bytes(out, data)
    return marks


def with_watermark(image: np.ndarray) -> np.ndarray:
    """`image`, uint8 (H, W, 3 or 4), with the watermark in its pixels; transparency does not change."""
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
        raise ValueError("an image is uint8, (H, W, 3) or (H, W, 4)")
    marked = watermark.embed(np.ascontiguousarray(image[:, :, :3]))
    if image.shape[2] == 4:
        unseen = image[:, :, 3] == 0
        marked[unseen] = image[unseen, :3]
    return np.concatenate([marked, image[:, :, 3:]], axis=2)


def encode(image: np.ndarray, format_name: str, *, quality: int | None = None, dpi: int = 0, base: str = "") -> bytes:
    """A file of this format (a key of `FORMATS`) from uint8 (H, W, 3 or 4). Its metadata is an sRGB profile and the
    IPTC field.

    `dpi` is written if it is not 0; WebP and AVIF can't store it. Raises UserError when it can't be encoded.
    """
    from PIL import Image

    if format_name not in FORMATS:
        raise UserError(f"A picture can't be saved as {format_name or 'that'}. Choose one of: {', '.join(FORMATS)}.")
    if image.shape[2] == 4 and format_name == "JPEG":
        raise UserError("JPEG knows no transparency. Choose PNG, WebP or AVIF.")
    Image.init()
    if format_name not in Image.SAVE:
        raise UserError(f"This machine's Pillow can't write {format_name}. Choose another format or update Pillow.")
    options: dict[str, Any] = {"icc_profile": srgb_profile()}
    field = xmp_packet(base=base)
    if dpi and format_name in ("JPEG", "PNG"):
        options["dpi"] = (dpi, dpi)
    if format_name == "PNG":
        from PIL import PngImagePlugin

        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", field.decode())
        options |= {"pnginfo": chunks, "optimize": True}
    else:
        options |= {"xmp": field, "quality": QUALITY[format_name] if quality is None else quality}
    if format_name == "JPEG":
        options |= {"optimize": True, "progressive": True}
        if options["quality"] >= 90:
            options["subsampling"] = 0
    if format_name == "WEBP":
        options["method"] = 4
    if format_name == "AVIF":
        options |= {"speed": 6, "max_threads": 1}  # with several threads the bytes depend on their number
    packed = io.BytesIO()
    with _roomy_encoder(image.shape[0] * image.shape[1]) if format_name == "JPEG" else contextlib.nullcontext():
        Image.fromarray(np.ascontiguousarray(image)).save(packed, format=format_name, **options)
    return packed.getvalue()


@contextlib.contextmanager
def _roomy_encoder(pixels: int) -> Iterator[None]:
    """Context in which Pillow's buffer is large enough for any progressive JPEG of so many pixels.

    Pillow gives libjpeg one buffer of 1 or 2 bytes per pixel; a larger file fails with "Suspension not allowed here".
    A JPEG with three channels has at most 27 bits for each of its 3 coefficients per pixel. Memory pages of the buffer
    that are not used cost no memory.
    """
    from PIL import ImageFile

    with _ENCODING:
        usual = ImageFile.MAXBLOCK
        ImageFile.MAXBLOCK = max(usual, 11 * pixels + (1 << 20))
        try:
            yield
        finally:
            ImageFile.MAXBLOCK = usual


def seal(data: bytes, format_name: str, *, base: str = "", watermarked: bool = True) -> tuple[bytes, Marks]:
    """Add content credentials to a file that `encode` made. The last step: later changes of the file are detected."""
    left_out = []
    if not watermarked:
        side = watermark.MIN_SIDE_PX
        left_out.append(f"No watermark: a picture with sides below {side} pixels has no room for one.")
    try:
        data = credentials.sign(data, format_name, base=base, watermarked=watermarked)
        signed = True
    except UserError as problem:
        left_out.append(str(problem))
        signed = False
    return data, Marks(signed, True, watermarked, tuple(left_out), len(data))


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, with a fixed date."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))  # header: always 2000-01-01
    return bytes(profile)


def xmp_packet(*, base: str = "") -> bytes:
    """An XMP packet with the IPTC fields "digital source type" and "AI system used"."""
    software = f"Likeness {credentials.version()}".strip()
    named = credentials.plain_base(base)
    system = f"Likeness, {named}" if named else "Likeness"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}" Iptc4xmpExt:AISystemUsed="{system}" '
        f'xmp:CreatorTool="{software}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


# ------------------------------------------------------------------------------------------------- reading back


def verify(path: Path) -> Verification:
    """Read the three marks of any picture file. Raises UserError for a file that is no picture."""
    image = decode(path)  # refuses a picture that is too large, before it is decoded
    xmp, texts = _texts_of(path)
    marks = (_credentials_mark(credentials.read(path)), _field_mark(xmp), _watermark_mark(image))
    return Verification(marks, settings_of(texts))


def _credentials_mark(found: Credentials) -> Mark:
    name = "credentials"
    if found.state == "none":
        return Mark(name, False, False, "none", "Content credentials: none in this file.")
    if found.state == "unreadable":
        return Mark(name, True, False, "unreadable", "Content credentials: there are some, but they can't be read.")
    says = next((GENERATED[each][0] for each in found.source_types if each in GENERATED), "")
    before = next((GENERATED[each][1] for each in found.parent_types if each in GENERATED), "")
    about = says or before
    about = f" They say: {about}." if about else " They do not say that an AI drew the picture."
    wrote = f" Written by {found.generator}." if found.generator else ""
    if found.state == "tampered":
        return Mark(
            name, True, False, "tampered",
            "Content credentials: the file or its credentials were changed after signing, so they prove nothing."
            f"{about}{wrote}",
        )  # fmt: skip
    if found.state == "doubtful":
        code = found.problems[0] if found.problems else "no code"
        sentence = f"Content credentials: nothing shows a change, but {DOUBTS[found.doubt]} ({code}).{about}{wrote}"
        return Mark(name, True, bool(says or before), "doubtful", sentence, by_parent=not says)
    if found.ours:
        who = "this copy of Likeness, self-signed" if found.self_signed else f"this copy's certificate ({found.issuer})"
    elif found.self_signed:
        who = "a copy of Likeness, self-signed: that shows the file is unchanged, not who made it"
    else:
        who = f"{found.issuer or 'an issuer without a name'}, which this copy has no means to check"
    return Mark(
        name, True, bool(says or before), found.state,
        f"Content credentials: valid, the file is unchanged since it was signed by {who}.{about}{wrote}",
        by_parent=not says,
    )  # fmt: skip


def _field_mark(packet: bytes) -> Mark:
    """The mark of the IPTC field in an XMP packet."""
    name = "field"
    found = re.search(
        rb"DigitalSourceType\b[^<]{0,300}?https?://cv\.iptc\.org/newscodes/digitalsourcetype/([A-Za-z]{1,60})", packet
    ) or re.search(rb"DigitalSourceType>\s*https?://cv\.iptc\.org/newscodes/digitalsourcetype/([A-Za-z]{1,60})", packet)
    if found is None:
        return Mark(name, False, False, "none", "IPTC field: the file does not say how the picture came about.")
    value = found[1].decode("ascii")
    says = f" - {GENERATED[value][0]}" if value in GENERATED else ""
    return Mark(
        name, True, value in GENERATED, "found",
        f"IPTC field: {value}{says}. Such a field is neither signed nor hard to change.",
    )  # fmt: skip


def settings_of(texts: dict[str, str]) -> str:
    """The drawing program whose settings are in these texts of a file, {name: text}; "" if none or unknown."""
    settings = texts.get("parameters", "") or texts.get("UserComment", "")
    if "sui_image_params" in settings:
        return "SwarmUI"
    if "fooocus" in (settings + texts.get("fooocus_scheme", "")).lower():
        return "Fooocus"
    if re.search(r"\bSteps: \d+, (?:[^\n]{0,200}, )?Sampler: ", settings):
        return "Stable Diffusion web UI (A1111) or a program that writes as it does"
    if '"class_type"' in texts.get("prompt", "") or '"nodes"' in texts.get("workflow", ""):
        return "ComfyUI"
    if any(name.startswith("invokeai_") for name in texts) or "sd-metadata" in texts or "Dream" in texts:
        return "InvokeAI"
    if "NovelAI" in texts.get("Software", "") + texts.get("Title", "") + texts.get("Source", ""):
        return "NovelAI"
    if "likeness" in texts:
        return "Likeness"
    return ""


def _texts_of(path: Path) -> tuple[bytes, dict[str, str]]:
    """The XMP packet of a picture (b"" if it has none) and its other texts by name, both cut to `TEXT_LIMIT_BYTES`.
    XML and JSON of unknown files are read as plain text, never parsed.
    """
    from PIL import Image

    packet, texts, formats = b"", {}, [name for name in PHOTO_FORMATS if name in Image.OPEN]
    # `decode` could read the picture, but its metadata may be damaged
    with contextlib.suppress(Exception), Image.open(path, formats=formats) as image:
        told = {**getattr(image, "text", {}), **image.info}  # PNG: also texts after the pixel data
        for name in ("xmp", "XML:com.adobe.xmp"):
            found = told.get(name) or b""
            packet = packet or (found.encode("utf-8", "replace") if isinstance(found, str) else bytes(found))
        texts = {name: str(text)[:TEXT_LIMIT_BYTES] for name, text in told.items() if isinstance(text, str)}
        exif = image.getexif()
        for text in (exif.get(0x010F), exif.get(0x0110)):  # maker and model: ComfyUI writes here in WebP
            name, _, value = str(text or "").partition(":")
            texts.setdefault(name, value[:TEXT_LIMIT_BYTES])
        comment = exif.get_ifd(0x8769).get(0x9286, b"")  # "user comment": 8 bytes name the encoding, then the text
        if isinstance(comment, bytes):
            comment = comment[8 : TEXT_LIMIT_BYTES + 8].replace(b"\0", b"").decode("latin-1")
        texts.setdefault("UserComment", str(comment)[:TEXT_LIMIT_BYTES])
    return packet[:TEXT_LIMIT_BYTES], texts


def _watermark_mark(image: np.ndarray) -> Mark:
    name = "watermark"
    found = watermark.read(image)
    if found.reason:
        return Mark(name, False, False, "unreadable", f"Watermark: {found.reason}.")
    if not found.present:
        return Mark(name, False, False, "none", "Watermark: none was found in the pixels.")
    odds = watermark.false_alarm_bound()
    return Mark(
        name, True, True, "found",
        f"Watermark: found in the pixels (strength {found.strength:.1f}, needed {watermark.THRESHOLD:g}); by chance "
        f"that happens less than once in {10 ** int(-np.log10(odds)):,} pictures. It says: an AI model drew this "
        "picture.",
    )  # fmt: skip
