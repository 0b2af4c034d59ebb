"""Signatures of bundles, in the format of OpenSSF Model Signing: a file `model.sig` that covers every other file.

With a key or with certificates; both work without a network. Sigstore's signatures without a key need its servers and
are not offered here; the tool `model_signing` makes and checks them on the same folder.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd._bundle_manifest import SIGNATURE
from edgekd.errors import ArtifactError, BackendMissing, UsageError

__all__ = ["check", "signer"]

_INSTALL = "pip install 'edgekd[sign]'"


def signer(key: Path, *, certificate: Path | None = None, chain: Sequence[Path] = ()) -> Callable[[Path], None]:
    """What signs a finished folder.

    Args:
        key: private key, PEM, on the curve P-256, P-384 or P-521, without a password.
        certificate: of that key, PEM; None to sign with the key alone.
        chain: certificates between it and a root, PEM.

    Raises:
        BackendMissing: the extra `sign` is not installed.
        UsageError: a file is missing or is no such key or certificate.
    """
    signing = _library("signing")
    config = signing.Config()
    for file in (key, *([certificate] if certificate else []), *chain):
        _readable(file)
    try:
        if certificate is None:
            config.use_elliptic_key_signer(private_key=key)
        else:
            # the library cannot read an empty chain; the certificate itself adds nothing to trust
            config.use_certificate_signer(
                private_key=key, signing_certificate=certificate, certificate_chain=chain or [certificate]
            )
    except Exception as error:  # the library lets through whatever its parsers raise
        raise UsageError(
            f"{key} cannot sign: {_first(error)}. Give an unencrypted EC private key (P-256, P-384 or P-521) in PEM"
            " form, and with --sign-certificate the certificate of that key."
        ) from error
    return lambda folder: _sign(config, folder)


def check(folder: Path, *, key: Path | None = None, chain: Sequence[Path] = ()) -> str:
    """Check a folder's signature.

    Args:
        folder: a bundle's files.
        key: the public key that it must have been made with, PEM.
        chain: without `key`: root certificates that the signer's certificate must lead to, PEM.

    Returns:
        By what it holds, for people.

    Raises:
        BackendMissing: the extra `sign` is not installed.
        UsageError: neither key nor certificates, or a file that is none.
        ArtifactError: there is no signature, it was made with another key, or a file is not what was signed.
    """
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise ArtifactError(f"There is no signature: {SIGNATURE} is missing. Pack the bundle with --sign KEY.")
    if key is None and not chain:
        raise UsageError("A signature is checked with a public key or with certificates. Give --key or --certificate.")
    config = _library("verifying").Config()
    for file in (*([key] if key else []), *chain):
        _readable(file)
    try:
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=chain)
    except Exception as error:
        raise UsageError(
            f"{key or chain[0]} is no public EC key or certificate in PEM form: {_first(error)}."
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints warnings there
            config.verify(folder.resolve(), signature.resolve())
    except Exception as error:
        raise ArtifactError(_refused(error)) from error
    return f"the key {key}" if key else f"the certificates {', '.join(map(str, chain))}"


def _sign(config: Any, folder: Path) -> None:
    folder = folder.resolve()  # the library loses the path of the signature where the folder's is relative
    hashing = _library("hashing").Config()
    # the default leaves out git's own files; here every file counts
    hashing.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)
    config.set_hashing_config(hashing).sign(folder, folder / SIGNATURE)


def _library(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise BackendMissing(f"Signatures need the extra 'sign': {_INSTALL} ({_first(error)}).") from error


def _readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}. Give a key or certificate in PEM form.") from error


def _refused(error: Exception) -> str:
    text = _first(error)
    if "Key mismatch" in text or type(error).__name__ == "InvalidSignature":
        return (
            f"{SIGNATURE} was not made with this key, or was changed. Ask who signed the bundle for the public key, or"
            " copy the bundle again."
        )
    if "mismatch" in text:
        return f"{SIGNATURE} does not fit the files: {text}. Do not use the bundle."
    return f"{SIGNATURE} is damaged or does not hold: {text or type(error).__name__}. Copy the bundle again."


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
