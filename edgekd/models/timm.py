"""Any network of the timm package: `timm:NAME`."""

from __future__ import annotations

from typing import cast

from pydantic import Field
from torch import nn

from edgekd import spec
from edgekd.errors import UsageError, did_you_mean
from edgekd.models._base import ModelFactory
from edgekd.models._external import out_of_place, package

__all__ = ["Timm"]


class Timm(ModelFactory):
    """Builds `timm.create_model(NAME)` for the data's classes and channels.

    Reference: Wightman, "PyTorch Image Models", 2019, https://github.com/huggingface/pytorch-image-models.
    """

    takes_argument = True

    class Options(spec.Options):
        """Options of `timm`."""

        pretrained: bool = Field(False, description="download published weights; the classifier is new if K differs")

    def build(self, classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
        """The network; see `ModelFactory.build`.

        Raises:
            UsageError: timm has no network of this name.
            BackendMissing: timm is not installed or does not load.
        """
        timm = package("timm")
        if not timm.is_model(self.argument):
            raise UsageError(
                f"timm has no model '{self.argument}'. Write timm:NAME."
                f" {did_you_mean(self.argument, timm.list_models()) if self.argument else ''}".rstrip()
            )
        pretrained = cast(Timm.Options, self.options).pretrained
        return out_of_place(
            timm.create_model(self.argument, pretrained=pretrained, num_classes=classes, in_chans=input_shape[0])
        )
