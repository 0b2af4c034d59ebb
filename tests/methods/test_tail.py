from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from learning_together import EXAMPLE, network
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses._base import Outputs
from edgekd.methods._observe import example_outputs
from edgekd.methods._tail import branches_of, tail_of, with_tail
from edgekd.models.mobilenet_v2 import MobileNetV2
from edgekd.models.resnet import ResNet
from edgekd.models.wrn import WideResNet
from edgekd.taps import Tapped

CUTS = [
    ("tiny", "stem"),
    ("tiny", "layer1"),
    ("tiny", "layer1.1"),
    ("tiny", "flatten"),
    ("resnet", "relu"),
    ("resnet", "layer2"),
    ("resnet", "layer2.0"),
    ("resnet", "layer3.0.relu2"),
    ("wrn", "layer2"),
    ("wrn", "avgpool"),
    ("mobilenet_v2", "features.7"),
    ("mobilenet_v2", "features.7.conv"),
    ("mobilenet_v2", "avgpool"),
]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "tiny":
        return network()
    if name == "resnet":
        return ResNet(ResNet.Options(depth=8)).build(3, (1, 8, 8))
    if name == "wrn":
        return WideResNet(WideResNet.Options(depth=10, width=0.5)).build(3, (1, 8, 8))
    return MobileNetV2(MobileNetV2.Options(width=0.25, stem_stride=1, dropout=0.2)).build(3, (1, 8, 8))


def outputs(model: nn.Module, tap: str) -> Outputs:
    return example_outputs(Tapped(model, [tap]), EXAMPLE)


@pytest.mark.parametrize(("name", "tap"), CUTS)
def test_tail_of_the_tap_is_the_network(name: str, tap: str) -> None:
    model = built(name).eval()
    whole, tail = outputs(model, tap), tail_of(model, tap)
    torch.testing.assert_close(tail(whole.taps[tap]), whole.logits)
    assert tail.state_dict().keys() < model.state_dict().keys()
    # the network's own parameters, not copies
    own = dict(model.named_parameters())
    assert all(parameter is own[key] for key, parameter in tail.named_parameters())


def test_tail_holds_what_is_behind_the_tap_and_nothing_before_it() -> None:
    keys = {key.split(".")[0] for key in tail_of(network(), "layer1").state_dict()}
    assert keys == {"layer2", "fc"}


def test_tail_follows_training_and_evaluation() -> None:
    model = built("mobilenet_v2")
    tail = tail_of(model, "features.18").train()
    features = outputs(model, "features.18").taps["features.18"]
    torch.manual_seed(0)
    assert not torch.equal(tail(features), tail(features))  # dropout
    tail.eval()
    assert torch.equal(tail(features), tail(features))


class Functional(nn.Module):
    """A network with dropout and a parameter in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3)
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.body(inputs).mean(dim=(2, 3)) * self.scale
        out: Tensor = self.fc(F.dropout(features, training=self.training))
        return out


def test_branch_keeps_what_a_forward_itself_does_in_training() -> None:
    model = Functional()
    assert set(tail_of(model, "body").state_dict()) == {"scale", "fc.weight", "fc.bias"}
    (branch,) = branches_of([model], "body", student=outputs(model, "body"), example=EXAMPLE)
    features = outputs(model, "body").taps["body"]
    torch.manual_seed(0)
    assert not torch.equal(branch(features), branch(features))


def test_network_with_another_tail_computes_it() -> None:
    first, second = network(seed=0).eval(), network(seed=1).eval()
    before = {key: value.clone() for key, value in first.state_dict().items()}
    mixed = with_tail(first, tail_of(second, "layer1"))
    features = outputs(first, "layer1").taps["layer1"]
    torch.testing.assert_close(mixed(EXAMPLE), tail_of(second, "layer1")(features))
    assert not torch.equal(mixed(EXAMPLE), first(EXAMPLE))
    assert all(torch.equal(value, before[key]) for key, value in first.state_dict().items())


def test_error_when_a_shortcut_goes_around_the_tap() -> None:
    with pytest.raises(MismatchError, match=r"Sequential cannot be cut at 'layer1\.0\.conv1': its logits also"):
        tail_of(built("resnet"), "layer1.0.conv1")


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.aside, self.flatten, self.fc = nn.Flatten(), nn.Flatten(), nn.Linear(64, 3)
        self.free = nn.Parameter(torch.zeros(1, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        self.aside(inputs)
        out: Tensor = self.fc(self.flatten(inputs))
        return out


class Constant(Unused):
    def forward(self, inputs: Tensor) -> Tensor:
        self.aside(inputs)
        return self.free * 2


def test_error_when_the_logits_do_not_need_the_tap() -> None:
    with pytest.raises(MismatchError, match="Unused cannot be cut at 'aside': its logits also need"):
        tail_of(Unused(), "aside")
    with pytest.raises(MismatchError, match="Constant cannot be cut at 'aside': its logits do not depend on it"):
        tail_of(Constant(), "aside")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same, self.fc = nn.ReLU(), nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.fc(self.same(self.same(inputs).flatten(1)))
        return out


class Decides(Unused):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs if inputs.sum() > 0 else -inputs)


def test_error_when_a_module_runs_twice() -> None:
    with pytest.raises(UsageError, match="'same' runs 2 times in one forward"):
        tail_of(Twice(), "same")


def test_error_when_the_network_cannot_be_traced() -> None:
    with pytest.raises(UsageError, match=r"Decides cannot be cut at 'flatten': its forward cannot be traced \(symb"):
        tail_of(Decides(), "flatten")


def test_error_suggests_a_tap_when_it_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"has no module 'layer7' to tap\. Did you mean 'layer"):
        tail_of(network(), "layer7")


def test_error_when_the_tap_is_changed_in_place_behind_it() -> None:
    model = network()
    model.layer1[2] = nn.Hardswish(inplace=True)
    with pytest.raises(MismatchError, match=r"'layer1\.1', run on its output, do not give the network's logits"):
        branches_of([model], "layer1.1", student=outputs(model, "layer1.1"), example=EXAMPLE)
    branches_of([model], "layer1", student=outputs(model, "layer1"), example=EXAMPLE)


def test_error_when_a_peer_is_another_network() -> None:
    student = outputs(network(), "layer1")
    with pytest.raises(MismatchError, match=r"differ as logits: \(2, 3\) and \(2, 7\)"):
        branches_of([network(7)], "layer1", student=student, example=EXAMPLE)
    wider = network()
    wider.layer1, wider.layer2 = nn.Sequential(*wider.layer1, *wider.layer2), nn.Identity()
    with pytest.raises(MismatchError, match=r"differ at tap 'layer1': \(2, 8, 4, 4\) and \(2, 16, 2, 2\)"):
        branches_of([wider], "layer1", student=student, example=EXAMPLE)
