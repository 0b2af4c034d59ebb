"""Signatures: a key or certificates, without a network; what was changed, or signed by somebody else, is told."""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle.conftest import MODEL, manifest_of, sources
from bundle.test_open import complaint, hashed

from edgekd._bundle_signature import check, signer
from edgekd.bundle import SIGNATURE, open_bundle, verify_bundle, write_bundle
from edgekd.errors import ArtifactError, BackendMissing, UsageError

pytest.importorskip("model_signing", reason="signatures need the extra 'sign'")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID


def private_pem(key: Any) -> bytes:
    return key.private_bytes(  # type: ignore[no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.pem and a.pub, b.pem and b.pub, an RSA key, and a root with the certificate of a.pem."""
    folder = tmp_path_factory.mktemp("keys")
    made = {name: ec.generate_private_key(ec.SECP256R1()) for name in "ab"}
    for name, key in made.items():
        (folder / f"{name}.pem").write_bytes(private_pem(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub").write_bytes(public)
    (folder / "rsa.pem").write_bytes(private_pem(rsa.generate_private_key(65537, 2048)))
    for root, leaf in (("root", "leaf"), ("other", "nobody")):
        authority = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{root}.crt").write_bytes(certificate(root, root, authority, authority, ca=True))
        (folder / f"{leaf}.crt").write_bytes(certificate(leaf, root, made["a"], authority, ca=False))
    return folder


def certificate(name: str, issuer: str, key: Any, authority: Any, *, ca: bool) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(True, False, False, False, False, ca, ca, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


Signed = Callable[..., Path]


@pytest.fixture
def signed(keys: Path, tmp_path: Path) -> Signed:
    """A signed bundle."""

    def make(name: str = "signed", **how: Any) -> Path:
        write_bundle(manifest_of(), sources(tmp_path / "sources"), tmp_path / name, sign=signer(keys / "a.pem", **how))
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["signed", "signed.zip"])
def test_signature_holds_for_its_key(signed: Signed, keys: Path, name: str) -> None:
    path = signed(name)
    found = verify_bundle(path, device=None, require_signature=True, key=keys / "a.pub")
    assert found.signature == f"holds for the key {keys / 'a.pub'}"
    assert verify_bundle(path, device=None).signature == "not checked"


def test_bundle_signed_by_a_relative_path(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here", "here.zip"):
        write_bundle(manifest_of(), sources(Path("sources")), Path(name), sign=signer(keys / "a.pem"))
        assert verify_bundle(Path(name), device=None, key=keys / "a.pub").signature.startswith("holds for the key ")


def test_other_key_is_told(signed: Signed, keys: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.sig was not made with this key, or was changed"):
        verify_bundle(signed(), device=None, key=keys / "b.pub")


def test_missing_signature_is_told(bundle_folder: Path, keys: Path) -> None:
    with pytest.raises(ArtifactError, match=r"There is no signature: model\.sig is missing"):
        verify_bundle(bundle_folder, device=None, require_signature=True, key=keys / "a.pub")


def test_required_signature_needs_something_to_check_it_with(signed: Signed) -> None:
    with pytest.raises(UsageError, match="Give --key PUB"):
        verify_bundle(signed(), device=None, require_signature=True)


def test_forged_content_is_told(signed: Signed, keys: Path, tmp_path: Path) -> None:
    """Somebody changes a file and the manifest with it: hashes fit, the signature does not."""
    path = signed()
    hashed(path, "README.md", b"# other\n")
    assert verify_bundle(path, device=None).passed
    with pytest.raises(ArtifactError, match=r"model\.sig does not fit the files: .*README\.md"):
        verify_bundle(path, device=None, key=keys / "a.pub")


def test_changed_signature_is_told(signed: Signed, keys: Path) -> None:
    path = signed()
    good = (path / SIGNATURE).read_bytes()
    for place in range(0, len(good), max(1, len(good) // 40)):
        (path / SIGNATURE).write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        # a byte that is not covered, such as a blank, changes nothing that is read
        told = complaint(lambda: verify_bundle(path, device=None, key=keys / "a.pub"), SIGNATURE)
        assert SIGNATURE in told
    (path / SIGNATURE).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.sig is damaged"):
        verify_bundle(path, device=None, key=keys / "a.pub")


def test_signature_of_another_bundle_is_told(signed: Signed, keys: Path, tmp_path: Path) -> None:
    path = signed()
    write_bundle(manifest_of(name="other"), sources(tmp_path / "s2"), tmp_path / "other")
    shutil.copy(path / SIGNATURE, tmp_path / "other" / SIGNATURE)
    with pytest.raises(ArtifactError, match=r"model\.sig does not fit the files"):
        verify_bundle(tmp_path / "other", device=None, key=keys / "a.pub")


def test_certificates(signed: Signed, keys: Path) -> None:
    path = signed(certificate=keys / "leaf.crt")
    found = verify_bundle(path, device=None, certificates=[keys / "root.crt"])
    assert found.signature == f"holds for the certificates {keys / 'root.crt'}"
    with pytest.raises(ArtifactError, match=r"model\.sig is damaged or does not hold"):
        verify_bundle(path, device=None, certificates=[keys / "other.crt"])


@pytest.mark.parametrize("name", ["rsa.pem", "a.pub", "leaf.crt"])
def test_key_that_cannot_sign_is_told(keys: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot sign: .* Give an unencrypted EC private key"):
        signer(keys / name)


def test_missing_key_is_told(keys: Path, bundle_folder: Path, signed: Signed) -> None:
    with pytest.raises(UsageError, match=r"none.pem cannot be read: No such file"):
        signer(keys / "none.pem")
    with pytest.raises(UsageError, match=r"none.pub cannot be read"):
        verify_bundle(signed(), device=None, key=keys / "none.pub")
    with pytest.raises(UsageError, match="is no public EC key or certificate"):
        verify_bundle(signed("again"), device=None, key=keys / "a.pem")


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
    for name in [one for one in sys.modules if one.split(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(BackendMissing, match=r"pip install 'edgekd\[sign\]'"):
        signer(keys / "a.pem")


def test_signature_covers_the_model(signed: Signed, keys: Path) -> None:
    path = signed()
    with open_bundle(path) as bundle:
        assert bundle.signed
    (path / MODEL).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"float32\.onnx"):
        check(path, key=keys / "a.pub")
