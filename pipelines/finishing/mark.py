"""Marked as what it is: every finished picture says, three ways, that an AI drew it - and `verify` reads that back.

In: an image. Out: a JPEG, PNG, WebP or AVIF file with content credentials (C2PA, signed), the IPTC field "digital
source type" (XMP), and a watermark in the pixels; or, from any file, what each of the three says.
Try it: `python -m pipelines verify portrait.jpg`.

The first two live beside the pixels: most sites drop them, and anyone can. The watermark lives in the pixels and
survives that, but it says nothing besides. None of the three names a person, a prompt, a path or a machine.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.core import workspace
from pipelines.core.schema import UserError
from pipelines.finishing import credentials, watermark
from pipelines.finishing.credentials import SOURCE_TYPE, Credentials
from pipelines.photos.decode import FORMATS as PHOTO_FORMATS
from pipelines.photos.decode import decode

FORMATS = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",), "AVIF": (".avif",)}
QUALITY = {"JPEG": 92, "WEBP": 90, "AVIF": 80}  # where nothing else is asked for; PNG loses nothing
MARK_NAMES = ("credentials", "field", "watermark")
XMP_LIMIT_BYTES = 1 << 20
# https://cv.iptc.org/newscodes/digitalsourcetype/ - what of it means that a model drew the picture, and in which words.
GENERATED = {
    "trainedAlgorithmicMedia": "an AI model drew this picture",
    "compositeWithTrainedAlgorithmicMedia": "an AI model drew part of this picture",
    "algorithmicMedia": "a program drew this picture",
    "compositeSynthetic": "part of this picture is synthetic",
}


@dataclass(frozen=True)
class Marks:
    """What a file was given. `left_out` holds a sentence for every mark that is not in it."""

    credentials: bool
    field: bool
    watermark: bool
    left_out: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class Mark:
    """One mark as it was found."""

    name: str  # one of MARK_NAMES
    present: bool
    generated: bool  # it says that a model drew the picture, and nothing speaks against believing it
    state: str  # credentials: see `Credentials.state`; else "found" | "none" | "unreadable"
    sentence: str


@dataclass(frozen=True)
class Verification:
    """The three marks of a file, in the order of MARK_NAMES."""

    marks: tuple[Mark, ...]

    @property
    def found(self) -> bool:
        """Whether any mark says that a model drew the picture."""
        return any(mark.generated for mark in self.marks)

    @property
    def tampered(self) -> bool:
        return any(mark.state == "tampered" for mark in self.marks)

    @property
    def sentence(self) -> str:
        """The whole answer in one or two sentences."""
        saying = sum(mark.generated for mark in self.marks)
        changed = " The file was changed after it was signed." if self.tampered else ""
        if not saying:
            return f"No mark says that an AI drew this picture. That does not show that it is a photo.{changed}"
        return f"{saying} of 3 marks say{'s' if saying == 1 else ''} that an AI drew this picture.{changed}"


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

    The format is `format_name`, else what the name of `out` says. `base` is the short name of the model that drew it.
    `in_pixels=False` for an image that went through `watermark.embed` already. Raises UserError for an unknown format
    and a full disk; a mark that can't be made here is left out, with its reason in the result.
    """
    pixels = decode(image) if isinstance(image, Path) else image
    kind = format_name or next((name for name, ends in FORMATS.items() if out.suffix.lower() in ends), "")
    if in_pixels:
        pixels = with_watermark(pixels)
    data = encode(pixels, kind, quality=quality, dpi=dpi, base=base)
    data, marks = seal(data, kind, base=base, watermarked=min(pixels.shape[:2]) >= watermark.MIN_SIDE_PX)
    workspace.write_bytes(out, data)
    return marks


def with_watermark(image: np.ndarray) -> np.ndarray:
    """`image`, uint8 (H, W, 3 or 4), with the mark in its pixels; transparency stays as it is."""
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
        raise ValueError("an image is uint8, (H, W, 3) or (H, W, 4)")
    marked = watermark.embed(np.ascontiguousarray(image[:, :, :3]))
    if image.shape[2] == 4:
        unseen = image[:, :, 3] == 0
        marked[unseen] = image[unseen, :3]
    return np.concatenate([marked, image[:, :, 3:]], axis=2)


def encode(image: np.ndarray, format_name: str, *, quality: int | None = None, dpi: int = 0, base: str = "") -> bytes:
    """A file of this format (a key of `FORMATS`) from uint8 (H, W, 3 or 4): sRGB profile, the IPTC field, nothing else.

    `dpi` 0 says nothing about a printed size; WebP and AVIF have no place for it. Raises UserError.
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
        options |= {"speed": 6, "max_threads": 1}  # several threads cut the picture into tiles: other bits elsewhere
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(packed, format=format_name, **options)
    return packed.getvalue()


def seal(data: bytes, format_name: str, *, base: str = "", watermarked: bool = True) -> tuple[bytes, Marks]:
    """What `encode` made, with content credentials around it. The last step: any change afterwards shows."""
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
    """The ICC profile of sRGB, without the day on which it was made."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes((7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0))  # header: 2000-01-01, so that bytes repeat
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
    """What the three marks of a picture of any origin say. Raises UserError for what is no picture."""
    image = decode(path)  # refuses what is too large before a pixel is decoded
    return Verification((_credentials_mark(credentials.read(path)), _field_mark(path), _watermark_mark(image)))


def _credentials_mark(found: Credentials) -> Mark:
    name = "credentials"
    if found.state == "none":
        return Mark(name, False, False, "none", "Content credentials: none in this file.")
    if found.state == "unreadable":
        return Mark(name, True, False, "unreadable", "Content credentials: there are some, but they can't be read.")
    says = next((GENERATED[each] for each in found.source_types if each in GENERATED), "")
    about = f" They say: {says}." if says else " They do not say that an AI drew the picture."
    wrote = f" Written by {found.generator}." if found.generator else ""
    if found.state == "tampered":
        return Mark(
            name, True, False, "tampered",
            "Content credentials: the file or its credentials were changed after signing, so they prove nothing."
            f"{about}{wrote}",
        )  # fmt: skip
    if found.ours:
        who = "this copy of Likeness, self-signed" if found.self_signed else f"this copy's certificate ({found.issuer})"
    elif found.self_signed:
        who = "a copy of Likeness, self-signed: that shows the file is unchanged, not who made it"
    else:
        who = f"{found.issuer or 'an issuer without a name'}, which this copy has no means to check"
    return Mark(
        name, True, bool(says), found.state,
        f"Content credentials: valid, the file is unchanged since it was signed by {who}.{about}{wrote}",
    )  # fmt: skip


def _field_mark(path: Path) -> Mark:
    name = "field"
    packet = _xmp_of(path)
    found = re.search(
        rb"DigitalSourceType\b[^<]{0,300}?https?://cv\.iptc\.org/newscodes/digitalsourcetype/([A-Za-z]{1,60})", packet
    ) or re.search(rb"DigitalSourceType>\s*https?://cv\.iptc\.org/newscodes/digitalsourcetype/([A-Za-z]{1,60})", packet)
    if found is None:
        return Mark(name, False, False, "none", "IPTC field: the file does not say how the picture came about.")
    value = found[1].decode("ascii")
    says = GENERATED.get(value)
    return Mark(
        name, True, says is not None, "found",
        f"IPTC field: {value}{f' - {says}' if says else ''}. Such a field is neither signed nor hard to change.",
    )  # fmt: skip


def _xmp_of(path: Path) -> bytes:
    """The XMP packet of a picture; b"" where there is none. Read as text: a stranger's XML is never interpreted."""
    from PIL import Image

    try:
        with Image.open(path, formats=[name for name in PHOTO_FORMATS if name in Image.OPEN]) as image:
            for key in ("xmp", "XML:com.adobe.xmp"):
                packet = image.info.get(key)
                if packet:
                    data = packet.encode("utf-8", "replace") if isinstance(packet, str) else bytes(packet)
                    return data[:XMP_LIMIT_BYTES]
    except Exception:  # `decode` has read the picture; what is around it may be broken in any way
        pass
    return b""


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
