from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from learning_together import (
    EXAMPLE,
    assert_resumes_equal,
    batch,
    context,
    cross_entropy,
    hint,
    int8_hooks,
    int8_student,
    kd,
    network,
    of_int8,
    total,
    trained,
)
from torch import nn

from edgekd.errors import MismatchError, UsageError
from edgekd.losses.cross_entropy import cross_entropy as entropy
from edgekd.losses.kd import kd as divergence
from edgekd.methods._base import Context, WeightedLoss
from edgekd.methods.native_ensemble import NativeEnsemble, pooled

TAP = "layer1"


def unprepared(
    *, losses: list[WeightedLoss] | None = None, student: nn.Module | None = None, around: Context | None = None
) -> NativeEnsemble:
    options = NativeEnsemble.Options(student_tap=TAP, branches=2)
    chosen = losses or [cross_entropy(), kd(tau=3.0)]
    return NativeEnsemble(student or network(), [], chosen, options, around or context())


def made() -> NativeEnsemble:
    method = unprepared()
    method.prepare(EXAMPLE)
    return method


def test_ensemble_is_that_worked_by_hand() -> None:
    # the gate sees the features (1, 0) and gives exp(ln 2), exp(0), exp(0), so shares (1/2, 1/4, 1/4)
    method = made()
    method.gate = nn.Linear(2, 3)
    with torch.no_grad():
        method.gate.weight.copy_(torch.tensor([[0.6931472, 5.0], [0.0, 5.0], [0.0, 5.0]]))
        method.gate.bias.zero_()
    logits = [torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 8.0]]), torch.tensor([[4.0, 0.0]])]
    torch.testing.assert_close(method.mixed(torch.tensor([[1.0, 0.0]]), logits), torch.tensor([[3.0, 2.0]]))


def test_terms_are_the_papers() -> None:
    method, one = made(), batch()
    for net in (method.student, *method.others):
        net.eval()
    terms = method.terms(one)
    branches = [net.eval()(one.inputs) for net in method.candidates().values()]
    ensemble = torch.stack(branches).mean(dim=0)  # the gate starts with equal shares
    names = ["", "@branch1", "@branch2"]
    assert list(terms) == [
        *(f"{loss}{name}" for name in names for loss in ("cross_entropy", "kd")),
        "cross_entropy@ensemble",
    ]
    for name, logits in zip(names, branches, strict=True):
        torch.testing.assert_close(terms[f"cross_entropy{name}"].value, entropy(logits, one.labels))
        torch.testing.assert_close(terms[f"kd{name}"].value, divergence(logits, ensemble, tau=3.0))
    torch.testing.assert_close(terms["cross_entropy@ensemble"].value, entropy(ensemble, one.labels))


def test_gradient_reaches_every_part_and_not_through_the_teacher() -> None:
    method = made()
    terms = method.terms(batch())
    terms["kd@branch1"].value.backward(retain_graph=True)
    assert all(one.grad is None for one in [*method.gate.parameters(), *method.others[1].parameters()])
    assert method.student.fc.weight.grad is None
    torch.stack([term.value for term in terms.values()]).sum().backward()
    parameters = [one for module in method.trained() for one in module.parameters()]
    assert all(one.grad is not None for one in parameters)
    assert {id(one) for one in parameters} == {id(one) for one in method.parameters()}
    assert method.gate.weight.grad is not None
    assert method.gate.weight.grad.abs().sum() > 0


def test_branches_share_layers_up_to_the_tap() -> None:
    method = made()
    assert {key.split(".")[1] for key in method.others.state_dict()} == {"layer2", "fc"}
    found = {name: net.state_dict() for name, net in method.candidates().items()}
    assert list(found) == ["student", "branch1", "branch2"]
    for branch in ("branch1", "branch2"):
        assert torch.equal(found[branch]["stem.0.weight"], found["student"]["stem.0.weight"])
        assert not torch.equal(found[branch]["fc.weight"], found["student"]["fc.weight"])
    assert method.exported() is method.student
    assert method.student.state_dict().keys() == network().state_dict().keys()


def test_losses_on_features_are_left_out() -> None:
    method = unprepared(losses=[cross_entropy(), kd(), hint()])
    method.prepare(EXAMPLE)
    assert not any("hint" in name for name in method.terms(batch()))
    assert list(method.connectors) == ["cross_entropy", "kd"]


def test_run_moves_the_gate_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    method = unprepared()
    trained(method)
    assert method.gate.weight.abs().sum() > 0
    assert_resumes_equal(unprepared, tmp_path)


def test_int8_student_is_a_branch_and_is_shipped_alone() -> None:
    student = int8_student([TAP])
    method = unprepared(student=student, around=of_int8())
    before = copy.deepcopy(student.state_dict())
    terms = trained(method, hooks=int8_hooks()).history[-1].terms
    assert {"kd", "kd@branch1", "kd@branch2", "cross_entropy@ensemble"} < terms.keys()
    assert list(method.candidates()) == ["student"]
    for name in ("module.model.fc.weight", "module.model.stem.0.weight"):
        assert not torch.equal(student.state_dict()[name], before[name])


def test_int8_branches_start_as_the_float_student() -> None:
    method, one = unprepared(student=int8_student([TAP]), around=of_int8()), batch()
    method.prepare(EXAMPLE)
    method.others.eval()
    features = method._networks[0](one.inputs)[1]
    float_student = network(seed=3).eval()
    close = method.others[0](features) - float_student(one.inputs)
    assert close.abs().max() < 0.1 * float_student(one.inputs).abs().max()


@pytest.mark.parametrize(("shape", "size"), [((2, 5), 5), ((2, 7, 5), 5), ((2, 5, 3, 4), 5)])
def test_features_of_any_kind_are_pooled(shape: tuple[int, ...], size: int) -> None:
    features = torch.ones(shape)
    assert pooled(features, "x").tolist() == [[1.0] * size] * 2


def test_error_when_features_cannot_be_pooled() -> None:
    with pytest.raises(MismatchError, match=r"but tap 'layer1' gives \(2, 1, 1, 1, 1\)"):
        pooled(torch.ones(2, 1, 1, 1, 1), "layer1")


def test_error_when_nothing_is_taught_by_logits() -> None:
    with pytest.raises(UsageError, match=r"needs a loss that needs a teacher's logits: .* Got: cross_entropy, hint\."):
        unprepared(losses=[cross_entropy(), hint()])


def test_error_when_the_ensemble_would_learn_nothing() -> None:
    with pytest.raises(UsageError, match="needs a loss on logits that works without a teacher, got: kd"):
        unprepared(losses=[kd()])


def test_error_when_there_is_no_way_to_build_a_branch() -> None:
    with pytest.raises(UsageError, match="Method 'native_ensemble' trains further networks like the student"):
        unprepared(around=Context()).prepare(EXAMPLE)


def test_error_when_the_tap_does_not_cut_the_student() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.fc = nn.Flatten(), nn.Linear(64, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(self.layer1(inputs) + inputs.flatten(1))
            return out

    with pytest.raises(MismatchError, match="Around cannot be cut at 'layer1': its logits also need"):
        unprepared(student=Around(), around=context(peer=lambda index: Around())).prepare(EXAMPLE)


def test_total_is_finite_when_a_branch_begins_in_place() -> None:
    def in_place() -> nn.Module:
        one = network()
        one.layer1[2] = nn.ReLU(inplace=True)
        return one

    options = NativeEnsemble.Options(student_tap="layer1.1", branches=2)
    around = context(peer=lambda index: in_place())
    method = NativeEnsemble(in_place(), [], [cross_entropy(), kd()], options, around)
    method.prepare(EXAMPLE)
    value = total(method, batch())
    value.backward()
    assert value.isfinite()
