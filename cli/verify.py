"""`edgekd verify`: whether a run or a bundle is what was written, and whether its answers are right on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.cli import bench_options, bundle_options, options
from edgekd.cli.device_options import device_options as read_options
from edgekd.cli.render import Outcome, table
from edgekd.errors import UsageError

if TYPE_CHECKING:
    import typer
    from rich.console import RenderableType

    from edgekd.bundle import Verification

__all__ = ["as_text", "register", "shown"]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("verify")(verify)


def verify(
    path: bundle_options.RunOrBundle,
    device: bundle_options.Place = None,
    device_option: bench_options.DeviceOptions = None,
    no_run: bundle_options.NoRun = False,
    require_signature: bundle_options.RequireSignature = False,
    key: bundle_options.PublicKey = None,
    certificate: bundle_options.RootCertificates = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> Outcome:
    """Check that every file of a run or a bundle is what was written.

    Of a run: the hash of each file, and that what an artifact was made from is there. Of a bundle: every file, then
    its golden vectors, replayed here or on a device. Exit code 3 if anything is damaged, 1 if an answer differs.

    \b
    edgekd verify runs/digits
    edgekd verify digits.zip --device ssh:pi@raspberrypi
    """
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        from edgekd.bundle import is_bundle, verify_bundle

        bundle = is_bundle(path)
    if not bundle:
        _refuse(path, device, device_option, no_run, require_signature, key, certificate)
        return _run(path, as_json)
    with watching(quiet=quiet) as watcher:
        watcher.stage(path.name, cached=False)
        found = verify_bundle(
            path,
            device=None if no_run else device or "cpu",
            options=read_options(device_option),
            require_signature=require_signature,
            key=key,
            certificates=certificate or (),
        )
    return Outcome(as_json, lambda: as_text(found), lambda: shown(found), 0 if found.passed else 1)


def as_text(found: Verification) -> str:
    """The JSON form: the fields, whether everything holds, and a sentence for each answer that differs."""
    values = {**found.model_dump(mode="json"), "ok": found.passed}
    values["problems"] = found.replay.problems() if found.replay else []
    return json.dumps(values, indent=2)


def shown(found: Verification) -> list[RenderableType]:
    """The form for people: what was replayed, what differs, and one line at the end."""
    parts: list[RenderableType] = []
    if (replay := found.replay) is not None:
        where = f"{replay.runtime} {replay.runtime_version} on {replay.device}, {replay.machine}"
        parts.append(f"Golden vectors: {where}")
        parts += [
            f"  {'ok' if output.within else 'DIFFERS'}: {model.file} {output.output}: largest difference"
            f" {'not finite' if output.max_abs_error is None else f'{output.max_abs_error:.4g}'}, {output.allowed:.4g}"
            f" allowed at the worst place; top-1 equal for {output.same_top1} of {output.n} samples"
            for model in replay.models
            for output in model.outputs
        ]
        parts += [f"  left out: {model.file}: {model.left_out}." for model in replay.models if model.left_out]
        parts += [f"DIFFERS: {problem}" for problem in replay.problems()]
        if replay.emulated:
            parts.append("The processor is emulated: its answers count, its times do not.")
    if found.folder is not None:
        parts.append(f"Files: {found.folder}")
    state = "PASS" if found.passed else "FAIL"
    parts.append(
        f"{state}: {found.path}: {found.files} files, {found.bytes} bytes, as they were packed; signature:"
        f" {found.signature}; id {found.id[:16]}."
    )
    return parts


def _run(run: Path, as_json: bool) -> Outcome:
    from edgekd.cli.progress import watching

    with watching(quiet=True):
        from edgekd import pipeline

        rows = pipeline.verify(run)
    sound = all(row["ok"] for row in rows)
    cells = [
        (str(row["path"]), str(row["kind"] or "?"), "ok" if row["ok"] else "DAMAGED", str(row["problem"] or ""))
        for row in rows
    ]
    return Outcome(
        as_json,
        lambda: json.dumps({"ok": sound, "artifacts": rows}, indent=2),
        lambda: [table("Artifacts", ("artifact", "kind", "state", "problem"), cells)],
        0 if sound else 3,
    )


def _refuse(
    path: Path,
    device: str | None,
    device_options: list[str] | None,
    no_run: bool,
    require: bool,
    key: Path | None,
    certificates: list[Path] | None,
) -> None:
    given = {
        "--device": device,
        "--device-option": device_options,
        "--no-run": no_run,
        "--require-signature": require,
        "--key": key,
        "--certificate": certificates,
    }
    if names := [name for name, value in given.items() if value]:
        raise UsageError(f"{', '.join(names)} belongs to bundles, and {path} is none. Make one with `edgekd pack`.")
