"""What other layers say in English - worked out from numbers, or stored in a run's files - in the reader's language.

In: their text. Out: the same, told in the language of who asks, sentence by sentence. Those
layers know no language, so what they say is found again by its form. A sentence that is not listed here - an error, a
licence, what the worker noted - stays as it is. Try it: `with speaking("de"): retell("no face found")`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ui.words.words import ENGLISH, spoken, translate

# What a sentence holds that is told too; other parts are figures, and names that somebody gave.
HELD = ("who", "says", "issuer", "why", "bases")
# Of two that fit the first counts.
SENTENCES = (
    # judges (pipelines.evaluation.references, pipelines.faces)
    "no face found",
    "the recogniser gave no answer for this face",
    "{value} - this recogniser is uncalibrated here, so the number has no scale",
    "{value} - like most different-person pairs",
    "{value} - higher than all measured of different-person pairs",
    "{value} - higher than {share} of different-person pairs",
    "{count} faces are in the picture; the largest was judged.",
    "The face is {size} px high, too small to judge: below {least} px even real photos score low.",
    "this judge does not see this face",
    # what an AI drew (pipelines.finishing.mark)
    "No mark says that an AI drew this picture.",
    "That does not show that it is a photo.",
    "The file was changed after it was signed.",
    "1 of 3 marks says that an AI drew this picture.",
    "{count} of 3 marks say that an AI drew this picture.",
    "1 of 3 marks says that this picture was made from a picture that an AI drew.",
    "The file holds settings of {program}, which draws pictures: a hint, neither signed nor hard to change.",
    "Content credentials: none in this file.",
    "Content credentials: there are some, but they can't be read.",
    "Content credentials: the file or its credentials were changed after signing, so they prove nothing.",
    "Content credentials: nothing shows a change, but {why} ({code}).",
    "they hold no fingerprint of the picture, so they may belong to another one",
    "the certificate that signed them was revoked",
    "the certificate that signed them is not valid at the time that counts: it expired, or begins later",
    "the certificate that signed them is not one that content credentials allow",
    "a part of them is not written as the standard asks",
    "a part of them is missing",
    "they could not be checked",
    "Content credentials: valid, the file is unchanged since it was signed by {who}.",
    "this copy of Likeness, self-signed",
    "this copy's certificate ({issuer})",
    "a copy of Likeness, self-signed: that shows the file is unchanged, not who made it",
    "{issuer}, which this copy has no means to check",
    "an issuer without a name",
    "They say: {says}.",
    "They do not say that an AI drew the picture.",
    "Written by {program}.",
    "IPTC field: the file does not say how the picture came about.",
    "IPTC field: {value} - {says}.",
    "IPTC field: {value}.",
    "Such a field is neither signed nor hard to change.",
    "an AI model drew this picture",
    "an AI model drew part of this picture",
    "a program drew this picture",
    "part of this picture is synthetic",
    "made from a picture that an AI drew",
    "made from a picture that an AI drew, wholly or in part",
    "made from a picture that an AI drew in part",
    "made from a picture that a program drew",
    "made from a picture that is partly synthetic",
    "an AI model drew this picture, or a part of it",
    "Watermark: the picture is too small to read one from.",
    "Watermark: none was found in the pixels.",
    "Watermark: found in the pixels (strength {strength}, needed {needed}); by chance that happens less than once in "
    "{pictures} pictures.",
    "It says: an AI model drew this picture.",
    "No watermark: a picture with sides below {side} pixels has no room for one.",
    # finishing (pipelines.finishing.refine, matting, delivery)
    "White balance and exposure",
    "Denoise",
    "Super-resolution",
    "Face restoration",
    "Gentle sharpening",
    "Background",
    "kept",
    "dropped",
    "not needed",
    "blur",
    "studio",
    "white",
    "light grey",
    "charcoal",
    "navy",
    "teal",
    "sand",
    "Who it is did not change ({figures}).",
    "{judge} finds no face in it any more.",
    "{judge} finds no face in the raw picture.",
    "{judge} finds less of the person in it: {now} instead of {raw}, and at most {allowed} may be lost.",
    "{judge} finds less of the raw picture in it: {now} instead of {raw}, and at most {allowed} may be lost.",
    "No recogniser finds a face in the raw picture, so nothing can watch over it.",
    "The picture has {size} px already, so nothing had to be drawn.",
    "No face restorer is installed here, so nothing was redrawn.",
    "Colours and light are balanced already, as far as the skin tone lets them be.",
    "There is no grain worth removing ({level} grey levels).",
    "No face was found to restore.",
    "No face was found, so the person could not be told from the background.",
    "The background stays as it is: {why}.",
    "the outline found covers {share} of the picture, which no portrait's does",
    "the outline found cuts into the face",
    "the outline found cuts off part of the hair",
    "the outline found cuts off part of the clothes",
    "the background could not be told from the head: both reach the upper corners",
    "hair or clothes and the background have nearly one colour, so the outline would be a guess",
    "The picture ends close to the head, so the head fills more of this size than usual.",
    "Enlarged {times} times: the picture has fewer pixels than this size, so it looks soft.",
    "The picture is too narrow for this size: its backdrop was continued at the sides and above.",
    "The picture is too narrow for this size: its backdrop was continued at the sides.",
    "The picture is too narrow for this size: its backdrop was continued above.",
    "{width} x {height} pixels: more would not have fitted into {size} kB.",
    "At this quality the watermark can't be read any more; the other marks are in the file.",
    # a training's memory (pipelines.bases.memory)
    "Gradient checkpointing is off: memory is enough without",
    "Gradient checkpointing is on: without it {size} GB would be needed",
    "{size} GB are needed and {free} GB are free",
    "what a step does not need waits outside the GPU",
    "that will probably not fit: choose a smaller batch or another method",
    # bases of one's own (pipelines.bases.registry)
    "A local portrait model.",
    "A local model of the family of {base}.",
    "see its card",
    "as its author states",
    # styles (pipelines.core.presets)
    "{style} is not written for {base}.",
    "{base} does not know: {words}.",
    # a deletion (pipelines.core.run)
    "the folder and every listed file were looked for afterwards and are not there",
    "Backups and the disk's own unused blocks are outside this program's reach.",
)


def retell(text: str) -> str:
    """`text` in the language of who asks, as far as its sentences are known."""
    return text if spoken() == ENGLISH else _retold(text, spoken())


@lru_cache(maxsize=4096)  # the same few sentences every second
def _retold(text: str, language: str) -> str:
    told = []
    for sentence in re.split(r"(?<=[.!?]) ", text):
        found = _found(sentence, language)
        # what is not known as a whole may be clauses
        parts = [sentence] if found else sentence.rstrip(".").split("; ")
        end = "." if not found and sentence.endswith(".") else ""
        told.append(found or "; ".join(_found(part, language) or part for part in parts) + end)
    return " ".join(told)


def _found(sentence: str, language: str) -> str | None:
    """A sentence's translation; None where it is not known."""
    for template, pattern in _patterns():
        if match := pattern.fullmatch(sentence):
            parts = match.groupdict()
            parts |= {name: _found(parts[name], language) or parts[name] for name in HELD if name in parts}
            said = translate(template, language)
            return said.format(**parts) if parts else said
    return None


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (template, re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template)), re.DOTALL))
        for template in SENTENCES
    )
