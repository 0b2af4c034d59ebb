"""Arguments and options of the verbs that pack, verify and deploy bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BundleOption",
    "BundleOut",
    "BundlePath",
    "BundleTargets",
    "DeviceFolder",
    "Int8Files",
    "LabelsFile",
    "LicenceFile",
    "NoRun",
    "OverwriteBundle",
    "Place",
    "PublicKey",
    "RequireSignature",
    "RequiredPlace",
    "RootCertificates",
    "RunOrBundle",
    "RunOrModel",
    "SignCertificate",
    "SignChain",
    "SignKey",
]

RunOrBundle = Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="The folder of a run, or a bundle.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: its folder, or its .zip.")]
BundleOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR|ZIP", help="A folder, or a file ending with .zip; RUN/NAME.zip unless given."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR|ZIP", help="Pack what was exported into a bundle: a folder, or a .zip."),
]
BundleTargets = Annotated[
    list[str] | None,
    typer.Option("--target", metavar="NAME", help="Put in this target of the run only; repeatable."),
]
RunOrModel = Annotated[
    Path, typer.Argument(metavar="RUN|MODEL", help="The folder of a run, or a float ONNX file with --int8 and --data.")
]
Int8Files = Annotated[
    list[str] | None,
    typer.Option("--int8", metavar="TARGET=FILE", help="The int8 file of an ONNX file for a target; repeatable."),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="Names of an ONNX file's classes, one a line, in its order."),
]
LicenceFile = Annotated[
    Path | None, typer.Option("--licence", metavar="FILE", help="A text that goes into the bundle as LICENSE.")
]
OverwriteBundle = Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")]
SignKey = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY", help="Sign with this private key (EC, PEM); extra 'sign'.")
]
SignCertificate = Annotated[
    Path | None, typer.Option("--sign-certificate", metavar="PEM", help="The certificate of the signing key.")
]
SignChain = Annotated[
    list[Path] | None,
    typer.Option("--sign-chain", metavar="PEM", help="Certificates between it and a root; repeatable."),
]
RequireSignature = Annotated[
    bool, typer.Option("--require-signature", help="Refuse a bundle without a signature that holds.")
]
PublicKey = Annotated[
    Path | None, typer.Option("--key", metavar="PUB", help="Public key that the signature must be of (PEM).")
]
RootCertificates = Annotated[
    list[Path] | None,
    typer.Option("--certificate", metavar="PEM", help="Root that the signer's certificate must lead to; repeatable."),
]
NoRun = Annotated[bool, typer.Option("--no-run", help="Check the files, and run nothing.")]
Place = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Where to run: cpu, ssh:USER@HOST, emulated_arm64; cpu by default."),
]
RequiredPlace = Annotated[str, typer.Option("--device", metavar="NAME", help="Where the files go: ssh:USER@HOST.")]
DeviceFolder = Annotated[
    str | None,
    typer.Option("--folder", metavar="DIR", help="Folder on the device; ~/edgekd/NAME unless given."),
]
