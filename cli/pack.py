"""`edgekd pack`: a bundle of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.cli import bundle_options, options
from edgekd.cli.quantize import numbers
from edgekd.cli.render import Outcome, size, table
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.bundle import BundleManifest, SignFolder

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("pack")(pack)


def pack(
    source: bundle_options.RunOrModel,
    out: bundle_options.BundleOut = None,
    target: bundle_options.BundleTargets = None,
    int8: bundle_options.Int8Files = None,
    data: options.Data = None,
    labels: bundle_options.LabelsFile = None,
    mean: options.Mean = None,
    std: options.Std = None,
    licence: bundle_options.LicenceFile = None,
    sign: bundle_options.SignKey = None,
    sign_certificate: bundle_options.SignCertificate = None,
    sign_chain: bundle_options.SignChain = None,
    overwrite: bundle_options.OverwriteBundle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Put a run's exported models into a bundle that a device can run.

    Models for each target, manifest, golden vectors, a card, and a program that needs numpy and ONNX Runtime only.

    \b
    edgekd pack runs/digits --out digits.zip
    edgekd pack runs/digits --out digits --sign key.pem
    edgekd pack m.onnx --int8 onnxruntime_arm=m.int8.onnx --data s.npz
    """
    from edgekd.cli.progress import watching

    if sign is None and (sign_certificate or sign_chain):
        raise UsageError("--sign-certificate and --sign-chain belong to --sign, which was not given.")
    files = _Files(source, int8, data, labels, mean, std)
    files.check(target)
    place = out or (source.with_suffix(".zip") if files.given else source / f"{source.resolve().name}.zip")
    with watching(quiet=quiet) as watcher:
        from edgekd import pipeline
        from edgekd.bundle import signer

        watcher.stage("bundle", cached=False)
        signing = signer(sign, certificate=sign_certificate, chain=sign_chain or ()) if sign else None
        if files.given:
            written = files.packed(place, licence=licence, overwrite=overwrite, sign=signing)
        else:
            written = pipeline.pack(
                source, place, targets=target or (), licence=licence, overwrite=overwrite, sign=signing
            )
    return Outcome(as_json, lambda: written.model_dump_json(indent=2), lambda: _shown(written, place))


@dataclass(frozen=True)
class _Files:
    """A bundle of ONNX files as the command line asks for it."""

    model: Path
    int8: list[str] | None
    data: Path | None
    labels: Path | None
    mean: str | None
    std: str | None

    @property
    def given(self) -> bool:
        """Whether files are to be packed, and not a run."""
        return self.model.suffix.lower() == ".onnx"

    def check(self, target: list[str] | None) -> None:
        """Refuse what does not go together, before anything is imported."""
        own = {
            "--int8": self.int8,
            "--data": self.data,
            "--labels": self.labels,
            "--mean": self.mean,
            "--std": self.std,
        }
        if not self.given and (names := [name for name, value in own.items() if value is not None]):
            raise UsageError(f"{', '.join(names)} is for ONNX files; a run has its own.")
        if self.given and target:
            raise UsageError("--target is for runs; of ONNX files --int8 TARGET=FILE names the targets.")
        if self.given and (not self.int8 or self.data is None):
            raise UsageError("Packing an ONNX file takes --int8 TARGET=FILE and --data SAMPLES for its golden vectors.")

    def packed(self, place: Path, *, licence: Path | None, overwrite: bool, sign: SignFolder | None) -> BundleManifest:
        """Write the bundle."""
        from edgekd import pipeline

        pairs = [text.partition("=") for text in self.int8 or ()]
        if wrong := ["".join(pair) for pair in pairs if not pair[0] or not pair[2]]:
            raise UsageError(f"--int8 must be TARGET=FILE, got {', '.join(wrong)}.")
        if self.data is None:
            raise UsageError("--data is missing.")
        return pipeline.pack_files(
            self.model,
            {name: Path(file) for name, _, file in pairs},
            self.data,
            place,
            labels=self.labels,
            mean=numbers("--mean", self.mean),
            std=numbers("--std", self.std),
            licence=licence,
            overwrite=overwrite,
            sign=sign,
        )


def _shown(written: BundleManifest, place: Path) -> list[RenderableType]:
    rows = [
        (
            model.file,
            size(sum(written.files[name].bytes for name in model.files)),
            f"{model.runtime}, {' or '.join(model.machines) or 'any processor'}",
            f"{model.golden.samples} samples" if model.golden else "none",
        )
        for model in written.models
    ]
    head = ("model", "size", "runs on", "golden vectors")
    return [table("Models", head, rows), f"Bundle: {place}"]
