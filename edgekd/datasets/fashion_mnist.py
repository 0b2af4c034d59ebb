"""Fashion-MNIST: 60,000 + 10,000 grey 28x28 images of clothes in 10 classes, from IDX files."""

from __future__ import annotations

from pydantic import Field

from edgekd import spec
from edgekd.datasets._arrays import class_names, samples_from_arrays
from edgekd.datasets._base import DataBundle, Dataset, InMemorySamples, Wanted
from edgekd.datasets._bundle import in_memory_bundle
from edgekd.datasets._idx import find_idx, read_idx

__all__ = ["FashionMNIST"]

_DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
_ADVICE = (
    "Install Debian's package (`apt install dataset-fashion-mnist`), or set data.path to the folder with the four files"
    " of https://github.com/zalandoresearch/fashion-mnist."
)
_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class FashionMNIST(Dataset):
    """The official split: validation is cut from the 60,000, the 10,000 are the test split.

    Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", 2017, arXiv:1708.07747.
    """

    class Options(spec.Options):
        """Where the files are."""

        path: str = Field(_DEBIAN_FOLDER, description="folder with the four IDX files, gzip-compressed or not")

    options: Options

    def load(self, wanted: Wanted) -> DataBundle:
        """See `Dataset.load`."""
        pool, test = (self._split(stem, wanted) for stem in ("train", "t10k"))
        source = str(wanted.resolve(self.options.path))
        class_names(_CLASSES, [pool.labels, test.labels], source=source)
        return in_memory_bundle(pool, test, classes=_CLASSES, wanted=wanted, source=source)

    def _split(self, stem: str, wanted: Wanted) -> InMemorySamples:
        folder = wanted.resolve(self.options.path)
        images = find_idx(folder, f"{stem}-images-idx3-ubyte", advice=_ADVICE)
        labels = find_idx(folder, f"{stem}-labels-idx1-ubyte", advice=_ADVICE)
        return samples_from_arrays(
            read_idx(images, dimensions=3), read_idx(labels, dimensions=1), layout="NHWC", source=str(images)
        )
