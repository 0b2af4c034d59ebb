"""Every network of the catalog builds, exports with taps, and leaves nothing in float that int8 could run."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgekd.catalog import CATALOGS
from edgekd.models._base import ModelFactory
from edgekd.taps import Tapped

EXTERNAL = {"timm", "torchvision"}


def families() -> list[str]:
    """Members that build a network of their own; the others need a file, a function or a teacher."""
    names = sorted(set(CATALOGS["models"].names()) - EXTERNAL)
    members = {name: CATALOGS["models"].load(name).member for name in names}
    return [name for name, one in members.items() if not (one.ready_made or one.needs_teacher_network)]


OWN = families()
CONVOLUTION = torch.ops.aten.conv2d.default
NORMALISATION = torch.ops.aten.batch_norm.default


def build(name: str, classes: int = 10, input_shape: tuple[int, int, int] = (1, 16, 16)) -> nn.Module:
    factory = CATALOGS["models"].load(name).member
    assert issubclass(factory, ModelFactory)
    return factory(factory.Options()).build(classes, input_shape)


@cache
def exported(name: str) -> tuple[Tapped, GraphModule]:
    """A network with three taps, and its graph for any batch: exported once for all tests."""
    model = build(name).eval()
    wrapped = Tapped(model, [child for child, _ in model.named_children()][:3])
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    return wrapped, torch.export.export(wrapped, (torch.randn(2, 1, 16, 16),), dynamic_shapes=dynamic).module()


def operators(name: str) -> list[Node]:
    return [node for node in exported(name)[1].graph.nodes if node.op == "call_function"]


def test_catalog_holds_the_families():
    assert len(OWN) >= 4
    assert set(CATALOGS["models"].names()) >= EXTERNAL


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("classes", "input_shape"), [(2, (1, 8, 8)), (7, (3, 17, 23)), (10, (4, 32, 32))])
def test_model_gives_logits_when_classes_channels_and_size_vary(name, classes, input_shape):
    logits = build(name, classes, input_shape).eval()(torch.randn(3, *input_shape))
    assert logits.shape == (3, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", OWN)
def test_model_is_the_same_when_built_with_the_same_seed(name):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", OWN)
def test_every_trained_parameter_gets_a_gradient(name):
    model = build(name).train()
    model(torch.randn(4, 1, 16, 16)).square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", OWN)
def test_every_convolution_folds_its_normalisation_when_exported(name):
    nodes = operators(name)
    convolutions = [node for node in nodes if node.target is CONVOLUTION]
    normalisations = [node for node in nodes if node.target is NORMALISATION]
    assert len(convolutions) == len(normalisations) >= 3
    assert {node.args[0] for node in normalisations} == set(convolutions)
    assert all(user in normalisations for node in convolutions for user in node.users if user.op != "output")


@pytest.mark.parametrize("name", OWN)
def test_no_operator_works_in_place_when_exported(name):
    nodes = operators(name)
    assert [str(node.target) for node in nodes if str(node.target).split(".")[1].endswith("_")] == []


@pytest.mark.parametrize("name", OWN)
def test_taps_survive_export_when_the_batch_changes(name):
    wrapped, graph = exported(name)
    example = torch.randn(5, 1, 16, 16)
    eager, traced = wrapped(example), graph(example)
    assert len(eager) == len(traced) == 4
    for ours, theirs in zip(eager, traced, strict=True):
        torch.testing.assert_close(ours, theirs)  # the same kernels in the same order, up to their layout


@pytest.mark.parametrize("name", OWN)
def test_every_option_changes_the_network(name):
    factory = CATALOGS["models"].load(name).member
    base = factory.Options()
    changes = {
        "depth": 28 if name == "wrn" else 26,
        "width": 32 if name == "tiny" else 4.0,
        "stem": "imagenet",
        "stem_stride": 1,
        "dropout": 0.5,
        "zero_init_residual": True,
    }
    for option in factory.Options.model_fields:
        values = base.model_dump() | {option: changes[option]}
        if option == "stem":
            values["depth"] = 18
            base = factory.Options(depth=18, stem="cifar")
        networks = []
        for options in (base, factory.Options(**values)):
            torch.manual_seed(0)
            network = factory(options).build(10, (1, 16, 16)).train()
            torch.manual_seed(1)
            networks.append(network(torch.randn(2, 1, 16, 16)))
        assert not torch.equal(*networks), option
