"""Any classifier of the torchvision package: `torchvision:NAME`."""

from __future__ import annotations

from typing import Any, cast

from pydantic import Field
from torch import nn

from edgekd import spec
from edgekd.errors import MismatchError, UsageError, did_you_mean
from edgekd.models._base import ModelFactory
from edgekd.models._external import out_of_place, package

__all__ = ["Torchvision"]


class Torchvision(ModelFactory):
    """Builds `torchvision.models.get_model(NAME)` for the data's classes.

    These networks take three channels.
    """

    takes_argument = True

    class Options(spec.Options):
        """Options of `torchvision`."""

        pretrained: bool = Field(False, description="download published ImageNet weights; needs 1000 classes")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The network; see `ModelFactory.build`.

        Raises:
            UsageError: torchvision has no classifier of this name.
            MismatchError: the data does not have three channels, or published weights meet other classes.
            BackendMissing: torchvision is not installed or does not load.
        """
        models: Any = package("torchvision").models
        names = models.list_models(module=models)
        if self.argument not in names:
            raise UsageError(
                f"torchvision has no classifier '{self.argument}'. Write torchvision:NAME."
                f" {did_you_mean(self.argument, names)}"
            )
        pretrained = cast(Torchvision.Options, self.options).pretrained
        if input_shape[0] != 3:
            raise MismatchError(
                f"torchvision:{self.argument} takes 3 channels, the data has {input_shape[0]}."
                " Use `resnet` or `mobilenet_v2`, which take any number."
            )
        if pretrained and classes != 1000:
            raise MismatchError(
                f"torchvision:{self.argument} has published weights for 1000 classes, the data has {classes}."
                " Use timm:NAME, which replaces the classifier, or pretrained = false."
            )
        if pretrained:
            return out_of_place(models.get_model(self.argument, weights="DEFAULT"))
        return out_of_place(models.get_model(self.argument, weights=None, num_classes=classes))
