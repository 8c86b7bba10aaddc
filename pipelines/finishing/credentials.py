"""Content credentials (C2PA): a signed statement inside a file that a generative model drew the picture.

In: the bytes of a finished JPEG, PNG, WebP or AVIF file. Out: the same file with a manifest (`sign`), or what a
manifest says and whether file and signature are unchanged (`read`). Try it: `python -m pipelines verify portrait.jpg`.

The certificate is that of $LIKENESS_C2PA_CERT and $LIKENESS_C2PA_KEY (PEM files), else one that this installation makes
on first use, named "self-signed": it shows that a file was not changed, not who made it.
The network is not used: no time stamp, no remote manifest, no revocation check; and no thumbnail is stored.
A file is read in a process of its own with limits, so that a malicious file can stop only that process.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.files import REPOSITORY, told_when_full
from pipelines.core.records import UserError
from pipelines.core.run import credentials_folder

CERT_VARIABLE, KEY_VARIABLE = "LIKENESS_C2PA_CERT", "LIKENESS_C2PA_KEY"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SELF_SIGNED = "Likeness (self-signed)"  # the issuer's name that C2PA readers show
OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
    "builder": {"thumbnail": {"enabled": False}},
}
MIMES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "AVIF": "image/avif"}
READ_LIMIT_S = 60
READ_LIMIT_BYTES = 3 << 30  # of address space, most of which is never used
CHAIN_FILE, KEY_FILE = "chain.pem", "key.pem"
ADOBE = "com.adobe.generative-ai"  # Adobe's own assertion that a model was used, older than the standard's
# What C2PA's failure codes mean, other than a changed file; the first that applies is used.
DOUBTS = {
    "unbound": r"claim\.hardBindings?\.missing|assertion\.hardBinding\.redacted",
    "revoked": r".*\.revoked",
    "expired": r".*\.(expired|outsideValidity)",
    "certificate": r"signingCredential\..*",
    "malformed": r".*(malformed|invalid|multiple|Parents|unsupported).*",
    "missing": r".*(missing|inaccessible).*",
}


@dataclass(frozen=True)
class Credentials:
    """What a file's content credentials say. Its texts come from an unknown file: shorten and escape them."""

    # "none" | "trusted" | "valid" (but its issuer is unknown here) | "doubtful" (see `doubt`) | "tampered" (a hash or
    # the signature is wrong) | "unreadable"
    state: str
    generator: str = ""  # the program that wrote it
    source_types: tuple[str, ...] = ()  # the last part of each digitalSourceType
    issuer: str = ""
    self_signed: bool = False  # the certificate says that an installation of Likeness made it
    ours: bool = False  # signed with the certificate of this installation
    problems: tuple[str, ...] = ()  # C2PA's failure codes
    parent_types: tuple[str, ...] = ()  # like `source_types`, of the pictures that this one was made from
    doubt: str = ""  # a key of DOUBTS, or "other": what is wrong although the file is unchanged


def version() -> str:
    """The version of Likeness; "" if unknown."""
    from importlib import metadata

    try:
        return metadata.version("likeness")
    except metadata.PackageNotFoundError:
        try:
            text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
            return str(tomllib.loads(text)["project"]["version"])
        except (OSError, KeyError, ValueError):
            return ""


def plain_base(base: str) -> str:
    """`base` if it is a plain name; "" if it could be a path or a sentence."""
    return base if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,59}", base) else ""


# ------------------------------------------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Identity:
    """A certificate chain, leaf first, with the leaf's private key; PEM."""

    chain: bytes
    key: bytes

    def __repr__(self) -> str:  # so that the key is in no log
        return "Identity(...)"


def identity() -> Identity:
    """The certificate and key to sign with: the files in the environment variables, else its own, made on first use.

    Raises UserError when only one of the two variables is set, or a file can't be read.
    """
    given = [os.environ.get(name, "").strip() for name in (CERT_VARIABLE, KEY_VARIABLE)]
    if any(given):
        if not all(given):
            raise UserError(f"Set both {CERT_VARIABLE} and {KEY_VARIABLE}, or neither.")
        try:
            return Identity(*(Path(each).expanduser().read_bytes() for each in given))
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise UserError(
                f"The file that {CERT_VARIABLE} or {KEY_VARIABLE} names can't be read ({reason}). Correct the path."
            ) from error
    folder = credentials_folder()
    if not (folder / KEY_FILE).is_file():
        _make_own(folder)
    return _own(folder)


def _own(folder: Path) -> Identity:
    try:
        return Identity((folder / CHAIN_FILE).read_bytes(), (folder / KEY_FILE).read_bytes())
    except OSError as error:
        raise UserError(
            f"The certificate in {folder.name} can't be read. Delete that folder; a new one is made."
        ) from (error)


def _make_own(folder: Path) -> None:
    """Write certificate and key into `folder`, both or none. If two processes do it at once, the first one's stay."""
    made = self_signed()
    with told_when_full():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))  # mode 0700
        try:
            for name, content in ((CHAIN_FILE, made.chain), (KEY_FILE, made.key)):
                file = os.open(partial / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(file, "wb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
            try:
                os.rename(partial, folder)
            except OSError:
                if not (folder / KEY_FILE).is_file():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def self_signed() -> Identity:
    """A new root and a certificate issued by it. They name only the program: no person, no machine, no date."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    start, end = datetime.datetime(2020, 1, 1), datetime.datetime(2060, 1, 1)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(common: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, SELF_SIGNED),
                x509.NameAttribute(NameOID.COMMON_NAME, common),
            ]
        )

    def usage(*, signs: bool) -> x509.KeyUsage:  # as C2PA's certificate profile requires for a root and a leaf
        return x509.KeyUsage(
            digital_signature=signs, key_cert_sign=not signs, crl_sign=not signs, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
            decipher_only=False,
        )  # fmt: skip

    def certificate(common: str, public: ec.EllipticCurvePublicKey, *, is_root: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(common))
            .issuer_name(name("Root of one copy of Likeness"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=0 if is_root else None), critical=True)
            .add_extension(usage(signs=not is_root), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    root = certificate("Root of one copy of Likeness", root_key.public_key(), is_root=True).sign(
        root_key, hashes.SHA256()
    )
    leaf = (
        certificate("Self-signed by one copy of Likeness", key.public_key(), is_root=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )  # the root's key is not stored, so that no other certificate can be issued with it
    pem = serialization.Encoding.PEM
    return Identity(
        leaf.public_bytes(pem) + root.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _algorithm(key: bytes) -> Any:
    """C2PA's name of the signature algorithm for this key."""
    import c2pa
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    names = c2pa.C2paSigningAlg
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{KEY_VARIABLE} names no private key without a password, in PEM. Correct it.") from error
    if isinstance(private, ec.EllipticCurvePrivateKey):
        found = {256: names.ES256, 384: names.ES384, 521: names.ES512}.get(private.curve.key_size)
        if found is not None:
            return found
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return names.ED25519
    if isinstance(private, rsa.RSAPrivateKey):
        return names.PS256
    raise UserError(f"{KEY_VARIABLE} names a kind of key that C2PA does not sign with. Use an EC key (P-256).")


# ------------------------------------------------------------------------------------------------- signing


def sign(data: bytes, format_name: str, *, base: str = "", watermarked: bool = False) -> bytes:
    """Returns the file `data` of this format (a key of `MIMES`) with a manifest inside it.

    Raises UserError when it is not possible with this format or certificate, or on this machine.
    """
    mime = MIMES.get(format_name)
    if mime is None:
        raise UserError(f"{format_name} files can't hold content credentials. Choose one of: {', '.join(MIMES)}.")
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError("Content credentials need c2pa-python. Run: pip install -r requirements.txt.") from error
    who = identity()
    software = {"name": "Likeness", **({"version": known} if (known := version()) else {})}
    drawn_by = (
        f"Drawn by a generative model ({plain_base(base)})" if plain_base(base) else "Drawn by a generative model"
    )
    actions = [
        {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": software, "description": drawn_by}
    ]
    if watermarked:
        actions.append({"action": "c2pa.watermarked.unbound", "softwareAgent": software})
    manifest = {
        "claim_generator_info": [software],
        "format": mime,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    out = io.BytesIO()
    try:
        with (
            c2pa.Context.from_dict(OFFLINE) as context,
            c2pa.Signer.from_info(c2pa.C2paSignerInfo(_algorithm(who.key), who.chain, who.key, None)) as signer,
            c2pa.Builder.from_json(json.dumps(manifest), context) as builder,
        ):
            builder.sign(signer, mime, io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise UserError(
            f"The content credentials could not be written ({_one_line(str(error), 120)}). If you set {CERT_VARIABLE}, "
            "check that the certificate is meant for C2PA and fits the key."
        ) from error
    return out.getvalue()


# ------------------------------------------------------------------------------------------------- reading


def read(path: Path, *, timeout_s: float = READ_LIMIT_S) -> Credentials:
    """Read the content credentials of a file. No content of the file makes it raise an error."""
    order = json.dumps({"path": str(path.resolve()), "anchors": _anchors()})
    root = str(REPOSITORY)
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.finishing.credentials"],
            input=order, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout_s, cwd=root,
            env={**kept, "PYTHONPATH": os.pathsep.join(each for each in (root, *sys.path) if each)},
        )  # fmt: skip
        found = json.loads(done.stdout)
        return Credentials(
            state=str(found["state"]),
            generator=str(found["generator"]),
            source_types=tuple(map(str, found["source_types"])),
            parent_types=tuple(map(str, found["parent_types"])),
            doubt=str(found["doubt"]),
            issuer=str(found["issuer"]),
            self_signed=bool(found["self_signed"]),
            ours=bool(found["ours"]),
            problems=tuple(map(str, found["problems"])),
        )
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError):
        return Credentials("unreadable", problems=("the reader gave up",))


def _anchors() -> str:
    """The certificates of this installation, PEM; "" if there are none yet (reading does not make them)."""
    try:
        if os.environ.get(CERT_VARIABLE, "").strip() or (credentials_folder() / CHAIN_FILE).is_file():
            return identity().chain.decode("ascii")
    except (UserError, UnicodeDecodeError):
        pass
    return ""


def _read_here(path: Path, anchors: str) -> dict[str, object]:
    """`read`, in this process."""
    import c2pa

    nothing: dict[str, Any] = {
        "state": "none", "generator": "", "source_types": [], "parent_types": [], "doubt": "", "issuer": "",
        "self_signed": False, "ours": False, "problems": [],
    }  # fmt: skip
    with path.open("rb") as file:
        mime = _mime(file.read(32))
    if mime is None:
        return nothing
    settings: dict[str, Any] = dict(OFFLINE)
    if anchors:
        settings["trust"] = {"user_anchors": anchors}
    try:
        with (
            path.open("rb") as file,
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(mime, file, context=context) as reader,
        ):
            store = json.loads(reader.json())
            state = str(reader.get_validation_state())
    except c2pa.C2paError as error:
        text = str(error)
        if "ManifestNotFound" in text:
            return nothing
        return {**nothing, "state": "unreadable", "problems": [_one_line(text)]}
    manifests = store.get("manifests") or {}
    manifest = manifests.get(store.get("active_manifest")) or {}
    codes = [_one_line(status.get("code", "")) for status in store.get("validation_status") or ()]
    problems = [code for code in codes if code and code != "signingCredential.untrusted"]
    generators = manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator") or ""}]
    signature = manifest.get("signature_info") or {}
    doubt = ""
    if any(map(_is_mismatch, problems)):
        state = "Tampered"
    elif state not in ("Trusted", "Valid"):
        state, doubt = "Doubtful", _doubt(problems)
    return {
        "state": state.lower(),
        "generator": _one_line(f"{generators[0].get('name', '')} {generators[0].get('version', '')}"),
        "source_types": _source_types([manifest]),
        "parent_types": _source_types(_parents(manifests, store.get("active_manifest"))),
        "doubt": doubt,
        "issuer": _one_line(signature.get("issuer") or signature.get("common_name") or ""),
        "self_signed": signature.get("issuer") == SELF_SIGNED,
        "ours": bool(anchors) and state == "Trusted",
        "problems": problems[:10],
    }


def _is_mismatch(code: str) -> bool:
    """True for a code that means that a hash or a signature is wrong: only then the file was changed. A wrong time
    stamp does not count: it concerns the time, not the content.
    """
    return "mismatch" in code.lower() and not code.startswith("timeStamp")


def _doubt(problems: list[str]) -> str:
    for name, pattern in DOUBTS.items():
        if any(re.fullmatch(pattern, code) for code in problems):
            return name
    return "other"


def _parents(manifests: dict[str, Any], active: str) -> list[dict[str, Any]]:
    """The manifests of all pictures that this one was made from, the nearest first. One that did not match its picture
    when it was used is left out, with its own parents.
    """
    names = [active]
    for name in names:  # the loop itself appends to it
        for ingredient in (manifests.get(name) or {}).get("ingredients") or ():
            parent = ingredient.get("active_manifest")
            failed = [
                *(ingredient.get("validation_status") or ()),  # the form of ingredient version 1
                *(((ingredient.get("validation_results") or {}).get("activeManifest") or {}).get("failure") or ()),
            ]
            if (
                parent in manifests
                and parent not in names
                and ingredient.get("relationship") in ("parentOf", "componentOf")
                and not any(_is_mismatch(str(status.get("code", ""))) for status in failed)
            ):
                names.append(parent)
    return [manifests[name] for name in names[1:]]


def _source_types(manifests: list[dict[str, Any]]) -> list[str]:
    """The last part of every digital source type in these manifests, in assertions of any label. Any program may have
    written an assertion, so its content may have any form.
    """
    found: list[object] = []
    for assertion in (each for manifest in manifests for each in manifest.get("assertions") or ()):
        label, data = str(assertion.get("label", "")), assertion.get("data")
        if label.startswith(ADOBE):
            found.append(ADOBE)
        if not isinstance(data, dict):
            continue
        if label.startswith("c2pa.actions"):
            for key in ("actions", "templates"):
                listed = data.get(key)
                for action in listed if isinstance(listed, list) else ():
                    if isinstance(action, dict):
                        more = action.get("parameters")
                        found.append(action.get("digitalSourceType"))
                        found.append(more.get("digitalSourceType") if isinstance(more, dict) else None)
        elif label.startswith(("stds.iptc", "c2pa.metadata", "cawg.metadata")):
            found += [value for key, value in data.items() if str(key).endswith("DigitalSourceType")]
    types = [_one_line(each.rstrip("/").rsplit("/", 1)[-1]) for each in found if isinstance(each, str) and each]
    return list(dict.fromkeys(types))[:10]


def _one_line(text: object, at_most: int = 80) -> str:
    """A text from an unknown file as one short line."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)[:2000]).split())[:at_most]


def _mime(head: bytes) -> str | None:
    """The MIME type by the first bytes, because a file name may be wrong; None if unknown."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"II*\0", b"MM\0*")):
        return "image/tiff"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[4:8] == b"ftyp":
        return "image/avif" if head[8:12] in (b"avif", b"avis") else "image/heic"
    return None


def _limit() -> None:
    """Set the limits of this process."""
    try:
        import resource
    except ImportError:  # Windows: only the caller's time limit remains
        return
    resource.setrlimit(resource.RLIMIT_AS, (READ_LIMIT_BYTES, READ_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (READ_LIMIT_S, READ_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump: it would contain the picture
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    order = json.loads(sys.stdin.read())
    _limit()
    print(json.dumps(_read_here(Path(order["path"]), order["anchors"])))
