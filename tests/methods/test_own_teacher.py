from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses.cross_entropy import CrossEntropy, cross_entropy
from edgekd.losses.kd import KD, kd
from edgekd.methods._base import Batch, WeightedLoss
from edgekd.methods.own_teacher import OwnTeacher, feature_distance
from edgekd.models.tiny import Tiny
from edgekd.taps import Tapped, TupleOutputs

TAPS = ["stem", "layer1"]


def network() -> nn.Module:
    return Tiny(Tiny.Options(width=4)).build(3, (1, 8, 8))


def method(student: nn.Module | None = None, *, tau: float = 2.0, **options: Any) -> OwnTeacher:
    torch.manual_seed(0)
    losses = [
        WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.1),
        WeightedLoss("kd", KD(KD.Options(tau=tau)), 0.9),
    ]
    chosen = OwnTeacher.Options(**{"taps": TAPS, "deepest_tap": "layer2", **options})
    made = OwnTeacher(student or network(), [], losses, chosen)
    made.prepare(torch.randn(2, 1, 8, 8))
    return made


def batch(count: int = 4) -> Batch:
    labels = torch.eye(3)[torch.arange(count) % 3]
    return Batch(torch.randn(count, 1, 8, 8), labels, torch.arange(count), epoch=0, progress=0.0)


class Fixed(nn.Module):
    """A branch that says what it is told to."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__()
        self.logits, self.features = logits, features

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits, self.features


class Student(nn.Module):
    """Two classes; logits (ln 9, 0), so probabilities (0.9, 0.1); features (1, 2) before them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()
        self.features = nn.Flatten()
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight = nn.Parameter(torch.tensor([[math.log(9.0), 0.0], [0.0, 0.0]]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(self.first(inputs)))
        return logits


def test_terms_are_those_worked_by_hand() -> None:
    made = OwnTeacher(
        Student(),
        [],
        [
            WeightedLoss("cross_entropy", CrossEntropy(CrossEntropy.Options()), 0.2),
            WeightedLoss("kd", KD(KD.Options(tau=1.0)), 7.0),
        ],
        OwnTeacher.Options(taps=["first"], deepest_tap="features"),
    )
    inputs = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    made.prepare(inputs)
    made.branches[0] = Fixed(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]))
    terms = made.terms(Batch(inputs, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), epoch=0, progress=0.0))
    values = {name: (round(term.value.item(), 4), round(term.weight, 4)) for name, term in terms.items()}
    assert values == {
        "cross_entropy": (0.1054, 1.0),  # -ln 0.9
        "cross_entropy@first": (0.6931, 0.7),  # ln 2, times 1 - alpha
        "kd@first": (0.3681, 0.3),  # 0.9 ln 1.8 + 0.1 ln 0.2, times alpha
        "features@first": (5.0, 0.03),  # (3 - 1)^2 + (1 - 2)^2
    }


def test_terms_equal_the_formulas_on_what_the_branches_say() -> None:
    made, one = method(alpha=0.4, hint_weight=0.5), batch()
    made.eval()
    terms = made.terms(one)
    logits, *taps = Tapped(made.student, [*TAPS, "layer2"])(one.inputs)
    for tap, maps, branch in zip(TAPS, taps, made.branches, strict=False):
        said, features = branch(maps)
        expected = {
            f"cross_entropy@{tap}": (cross_entropy(said, one.labels), 0.6),
            f"kd@{tap}": (kd(said, logits, tau=2.0), 0.4),
            f"features@{tap}": (feature_distance(features, taps[-1].mean(dim=(2, 3))), 0.5),
        }
        for name, (value, weight) in expected.items():
            torch.testing.assert_close(terms[name].value, value)
            assert terms[name].weight == pytest.approx(weight)
    assert len(terms) == 1 + 3 * len(TAPS)


def test_branches_teach_no_gradient_to_the_classifier_that_teaches_them() -> None:
    made = method()
    terms = made.terms(batch())
    torch.stack([terms[f"kd@{tap}"].value + terms[f"features@{tap}"].value for tap in TAPS]).sum().backward()
    assert made.student.fc.weight.grad is None
    assert all(one.grad is None for one in made.student.layer2.parameters())
    assert all(one.grad is not None for one in made.student.stem.parameters())
    assert all(one.grad is not None for one in made.branches.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_exits_give_the_logits_that_their_branches_had_in_training(training: bool) -> None:
    made, one = method(), batch()
    made.train(training)
    exits = made.exits()
    assert list(exits) == TAPS
    _, *taps = Tapped(made.student, TAPS)(one.inputs)
    for (tap, network_), maps, branch in zip(exits.items(), taps, made.branches, strict=True):
        logits = network_(one.inputs)
        assert logits.shape == (4, 3)
        assert torch.equal(logits, branch(maps)[0])
        torch.testing.assert_close(cross_entropy(logits, one.labels), made.terms(one)[f"cross_entropy@{tap}"].value)


def test_exit_that_is_exported_holds_only_the_layers_it_needs() -> None:
    made = method()
    exit_ = made.exits()["stem"].eval()
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    graph = torch.export.export(exit_, (torch.randn(2, 1, 8, 8),), dynamic_shapes=dynamic).module()
    graph.graph.eliminate_dead_code()
    convolutions = [node for node in graph.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == 4  # the stem's, and three of the branch
    inputs = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(graph(inputs), exit_(inputs))


def test_exits_work_on_a_graph_whose_taps_are_outputs() -> None:
    student = network().eval()
    names = (*TAPS, "layer2")
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    graph = torch.export.export(Tapped(student, names), (torch.randn(2, 1, 8, 8),), dynamic_shapes=dynamic).module()
    made, plain = method(TupleOutputs(graph, names)), method(student)
    plain.branches.load_state_dict(made.branches.state_dict())
    inputs = torch.randn(3, 1, 8, 8)
    for tap in TAPS:
        made.branches.eval()
        plain.eval()
        torch.testing.assert_close(made.exits()[tap](inputs), plain.exits()[tap](inputs))


def test_exported_student_has_no_branch() -> None:
    made = method()
    assert list(made.exported().state_dict()) == list(network().state_dict())
    assert {id(one) for one in made.branches.parameters()} <= {
        id(one) for module in made.trained() for one in module.parameters()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": []}, "at least 1 item"),
        ({"taps": ["stem", "stem"]}, "different modules, each once"),
        ({"taps": ["layer2"]}, "different modules, each once"),
        ({"alpha": 1.5}, "less than or equal to 1"),
        ({"hint_weight": -1.0}, "greater than or equal to 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OwnTeacher.Options(**{"taps": TAPS, "deepest_tap": "layer2", **options})


def test_error_when_a_tap_is_no_map() -> None:
    with pytest.raises(MismatchError, match=r"maps of shape \(B, C, H, W\), but tap 'flatten' gives \(2, 16\)"):
        method(taps=["stem", "flatten"])


def test_error_suggests_a_tap_when_it_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"has no module 'layer9' to tap\. Did you mean 'layer"):
        method(taps=["layer9"])
