"""`edgekd deploy`: the files of a bundle, on a device, checked there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.cli import bench_options, bundle_options, options
from edgekd.cli.device_options import device_options as read_options
from edgekd.cli.render import Outcome
from edgekd.cli.verify import as_text, shown

if TYPE_CHECKING:
    import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("deploy")(deploy)


def deploy(
    bundle: bundle_options.BundlePath,
    device: bundle_options.RequiredPlace,
    folder: bundle_options.DeviceFolder = None,
    device_option: bench_options.DeviceOptions = None,
    require_signature: bundle_options.RequireSignature = False,
    key: bundle_options.PublicKey = None,
    certificate: bundle_options.RootCertificates = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Put a bundle's models onto a device and check their answers there.

    Only what runs on that processor is copied. Each file arrives beside its place, is checked by its hash and renamed:
    a connection that breaks leaves the old file or the new one. Exit code 1 if an answer differs there.

    \b
    edgekd deploy digits.zip --device ssh:pi@raspberrypi --folder /opt/digits
    """
    from edgekd.cli.progress import watching

    with watching(quiet=quiet) as watcher:
        from edgekd.bundle import deploy_bundle

        watcher.stage(f"deploy to {device}", cached=False)
        found = deploy_bundle(
            bundle,
            device,
            folder or f"~/edgekd/{bundle.stem}",
            options=read_options(device_option),
            require_signature=require_signature,
            key=key,
            certificates=certificate or (),
        )
    return Outcome(as_json, lambda: as_text(found), lambda: shown(found), 0 if found.passed else 1)
