"""Content credentials of other programs: chains of pictures, old labels, and what is wrong without a change."""

from __future__ import annotations

import datetime
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

c2pa = pytest.importorskip("c2pa")

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402

from pipelines.finishing import credentials, mark  # noqa: E402

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
C2PA_TYPE = "http://c2pa.org/digitalsourcetype/trainedAlgorithmicData"
DRAWN = {"action": "c2pa.created", "digitalSourceType": f"{IPTC}trainedAlgorithmicMedia"}
PHOTO = {"action": "c2pa.created", "digitalSourceType": f"{IPTC}digitalCapture"}
OPENED = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["p"]}}
SETTINGS = {**credentials.OFFLINE, "verify": {**credentials.OFFLINE["verify"], "verify_after_sign": False}}
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKENESS_HOME", str(tmp_path / "home"))
    for name in (credentials.CERT_VARIABLE, credentials.KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def other_maker(last: datetime.datetime = datetime.datetime(2060, 1, 1)) -> credentials.Identity:
    """A certificate of somebody else, valid until `last` (UTC)."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(common: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Maker")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def builder(common: str, public: ec.EllipticCurvePublicKey, is_root: bool) -> x509.CertificateBuilder:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        return (
            x509.CertificateBuilder()
            .subject_name(name(common)).issuer_name(name("Root")).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime(2020, 1, 1)).not_valid_after(last)
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not is_root, key_cert_sign=is_root, crl_sign=is_root, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )  # fmt: skip

    root = builder("Root", root_key.public_key(), True).sign(root_key, hashes.SHA256())
    leaf = (
        builder("Signer", key.public_key(), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return credentials.Identity(
        leaf.public_bytes(pem) + root.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


MAKER = other_maker()


def plain(seed: int = 0) -> bytes:
    """A JPEG without any mark."""
    out = io.BytesIO()
    blocks = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((160, 160)).save(out, "JPEG", quality=90)
    return out.getvalue()


def signed(
    data: bytes, actions: list[dict[str, object]], *, label: str = "c2pa.actions.v2", parent: bytes | None = None,
    relationship: str = "parentOf", more: tuple[dict[str, object], ...] = (), who: credentials.Identity = MAKER,
) -> bytes:  # fmt: skip
    """`data` as another program would sign it; `parent` is the file that it was made from."""
    manifest = {
        "claim_generator_info": [{"name": "Maker", "version": "1"}],
        "format": "image/jpeg",
        "assertions": [{"label": label, "data": {"actions": actions}}, *more] if actions else list(more),
    }
    out = io.BytesIO()
    info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, who.chain, who.key, None)
    with (
        c2pa.Context.from_dict(SETTINGS) as context,
        c2pa.Signer.from_info(info) as signer,
        c2pa.Builder.from_json(json.dumps(manifest), context) as builder,
    ):
        if parent is not None:
            ingredient = {"title": "a picture", "relationship": relationship, "instance_id": "p", "label": "p"}
            builder.add_ingredient(json.dumps(ingredient), "image/jpeg", io.BytesIO(parent))
        builder.sign(signer, "image/jpeg", io.BytesIO(data), out)
    return out.getvalue()


def verified(data: bytes, tmp_path: Path) -> tuple[mark.Verification, mark.Mark]:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    found = mark.verify(path)
    return found, found.marks[0]


# ------------------------------------------------------------------------------------------------- chains


@pytest.mark.parametrize("relationship", ["parentOf", "componentOf"])
def test_what_an_editor_made_of_a_drawn_picture_says_what_it_was_made_from(tmp_path, relationship):
    action = OPENED if relationship == "parentOf" else {**OPENED, "action": "c2pa.placed"}
    first = [] if relationship == "parentOf" else [PHOTO]
    drawn = signed(plain(), [DRAWN])
    edited = signed(plain(1), [*first, action], parent=drawn, relationship=relationship)
    found, said = verified(edited, tmp_path)
    assert said.state == "valid" and said.generated and said.by_parent and found.found and not found.tampered
    assert "made from a picture that an AI drew." in said.sentence
    assert found.sentence == "1 of 3 marks says that this picture was made from a picture that an AI drew."


def test_the_chain_is_followed_to_its_beginning_and_a_photo_at_its_end_is_no_drawing(tmp_path):
    once = signed(plain(1), [OPENED], parent=signed(plain(), [DRAWN]))
    twice = signed(plain(2), [OPENED], parent=signed(once, [OPENED], parent=once))
    assert verified(twice, tmp_path)[1].by_parent
    found, said = verified(signed(plain(3), [OPENED], parent=signed(plain(), [PHOTO])), tmp_path)
    assert not found.found and not said.generated and "do not say that an AI drew" in said.sentence


def test_what_a_picture_says_of_itself_comes_before_its_parents(tmp_path):
    filled = {**OPENED, "digitalSourceType": f"{IPTC}compositeWithTrainedAlgorithmicMedia"}
    found, said = verified(signed(plain(1), [filled], parent=signed(plain(), [DRAWN])), tmp_path)
    assert said.generated and not said.by_parent and "an AI model drew part of this picture" in said.sentence
    assert found.sentence == "1 of 3 marks says that an AI drew this picture."


def test_a_parent_that_was_changed_before_it_was_opened_is_not_believed(tmp_path):
    drawn = bytearray(signed(plain(), [DRAWN]))
    drawn[-20] ^= 1
    found, said = verified(signed(plain(1), [OPENED], parent=bytes(drawn)), tmp_path)
    assert not said.generated and not found.found


# ------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("label", "actions", "more"),
    [
        ("c2pa.actions", [DRAWN], ()),
        ("c2pa.actions.v2", [{**DRAWN, "digitalSourceType": "https" + DRAWN["digitalSourceType"][4:]}], ()),
        ("c2pa.actions.v2", [{**DRAWN, "digitalSourceType": C2PA_TYPE}], ()),
        ("c2pa.actions", [{"action": "c2pa.created"}],
         ({"label": "com.adobe.generative-ai", "data": {"description": "AI Generated Image", "version": "1"}},)),
        ("c2pa.actions", [{"action": "c2pa.created"}],
         ({"label": "stds.iptc", "data": {"@context": {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"},
                                          "Iptc4xmpExt:DigitalSourceType": f"{IPTC}trainedAlgorithmicMedia"}},)),
    ],
    ids=["version 1", "https", "C2PA's own type", "Adobe", "IPTC"],
)  # fmt: skip
def test_every_label_that_says_a_model_was_at_work_is_read(tmp_path, label, actions, more):
    found, said = verified(signed(plain(), actions, label=label, more=more), tmp_path)
    assert found.found and said.generated and "an AI model drew this picture" in said.sentence


def test_assertions_of_any_form_are_no_crash(tmp_path):
    odd = ({"label": "com.example.odd", "data": ["x", 1, None]}, {"label": "stds.iptc", "data": {"a": {"b": []}}})
    found, said = verified(signed(plain(), [DRAWN], more=odd), tmp_path)
    assert found.found and said.generated
    messy = [
        {"label": "c2pa.actions", "data": data} for data in ([], "x", {"actions": 3}, {"actions": [None, "a", {}]})
    ]
    assert credentials._source_types([{"assertions": messy}]) == []


# ------------------------------------------------------------------------------------------------- what is no change


def test_a_certificate_that_expired_is_told_as_that(tmp_path):
    last = datetime.datetime.now(datetime.UTC).replace(tzinfo=None, microsecond=0) + datetime.timedelta(seconds=4)
    data = signed(plain(), [DRAWN], who=other_maker(last))  # nobody signs with one that has expired
    time.sleep(max(0.0, (last - datetime.datetime.now(datetime.UTC).replace(tzinfo=None)).total_seconds() + 1))
    found, said = verified(data, tmp_path)
    assert said.state == "doubtful" and not found.tampered and found.found
    assert "certificate" in said.sentence and "expired, or begins later" in said.sentence
    assert "an AI model drew this picture" in said.sentence and "Written by Maker 1" in said.sentence


def test_a_malformed_list_is_told_as_that_and_what_the_parent_says_stays(tmp_path):
    cropped = [{"action": "c2pa.cropped"}]
    found, said = verified(signed(plain(1), cropped, parent=signed(plain(), [DRAWN])), tmp_path)
    assert said.state == "doubtful" and not found.tampered and found.found
    assert "not written as the standard asks (assertion.action.malformed)" in said.sentence
    assert "made from a picture that an AI drew" in said.sentence


def test_an_unknown_signer_is_told_as_that(tmp_path):
    found, said = verified(signed(plain(), [DRAWN]), tmp_path)
    assert said.state == "valid" and "Maker, which this copy has no means to check" in said.sentence
    assert found.found and not found.tampered


def test_one_changed_byte_is_a_change(tmp_path):
    data = bytearray(signed(plain(), [DRAWN]))
    data[-20] ^= 1
    found, said = verified(bytes(data), tmp_path)
    assert said.state == "tampered" and found.tampered and not said.generated
    assert "They say: an AI model drew this picture" in said.sentence, "what it says of itself stays readable"


@pytest.mark.parametrize(
    ("code", "doubt"),
    [
        ("claim.hardBindings.missing", "unbound"), ("signingCredential.ocsp.revoked", "revoked"),
        ("signingCredential.expired", "expired"), ("claimSignature.outsideValidity", "expired"),
        ("signingCredential.invalid", "certificate"), ("assertion.action.malformed", "malformed"),
        ("assertion.cbor.invalid", "malformed"), ("claim.multiple", "malformed"), ("assertion.missing", "missing"),
        ("general.error", "other"),
    ],
)  # fmt: skip
def test_every_code_has_its_sentence(code, doubt):
    assert credentials._doubt([code]) == doubt and mark.DOUBTS[doubt]
    assert not credentials._is_mismatch(code)


def test_only_what_does_not_fit_is_a_change():
    for code in ("claimSignature.mismatch", "assertion.hashedURI.mismatch", "assertion.bmffHash.mismatch"):
        assert credentials._is_mismatch(code)
    assert not credentials._is_mismatch("timeStamp.mismatch")


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")
@pytest.mark.parametrize(
    ("name", "state", "says"),
    [
        ("ai.jpeg", "valid", "an AI model drew this picture"),
        ("opened.jpeg", "valid", "made from a picture that an AI drew"),
        ("edited.jpeg", "doubtful", "made from a picture that an AI drew"),
        ("ai_tampered.jpeg", "tampered", "an AI model drew this picture"),
        ("camera.jpg", "valid", "They do not say that an AI drew the picture"),
    ],
)
def test_the_cases(name, state, says):
    found = mark.verify(CASES / name)
    assert found.marks[0].state == state and says in found.marks[0].sentence
    assert found.found is (name in ("ai.jpeg", "opened.jpeg", "edited.jpeg"))
