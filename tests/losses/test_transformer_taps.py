"""The taps that the losses for transformers name in their docstrings, on timm's vision transformers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from peer_files import timm_model
from torch import Tensor, nn

from edgekd.errors import UsageError
from edgekd.losses._base import Loss, Outputs, Step
from edgekd.losses.attention_maps import AttentionMaps
from edgekd.losses.hidden_states import HiddenStates
from edgekd.losses.minilm import MiniLM
from edgekd.losses.multi_head_graph import MultiHeadGraph
from edgekd.taps import Tapped, named_outputs

LAYERS: dict[str, Any] = {"student_layers": 2, "teacher_layers": 4}
QKV: dict[str, Any] = {"student_taps": ["blocks.1.attn.qkv"], "teacher_taps": ["blocks.3.attn.qkv"]}


def every(tap: str) -> dict[str, Any]:
    """Options that map two layers to four."""
    return {"student_taps": [tap], "teacher_taps": [tap], **LAYERS}


@pytest.fixture
def timm() -> ModuleType:
    timm_model("test_vit")  # skips where timm does not load
    return importlib.import_module("timm")


@pytest.fixture
def unfused(timm: ModuleType) -> Iterator[ModuleType]:
    """timm, whose attention is computed step by step: networks keep what held when they were built."""
    layers = importlib.import_module("timm.layers")
    layers.set_fused_attn(False)
    yield timm
    layers.set_fused_attn(True)


def vit(timm: ModuleType, depth: int, heads: int = 3) -> nn.Module:
    network: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, num_classes=3, depth=depth, num_heads=heads,
        embed_dim=64 * heads,
    )  # fmt: skip
    return network


def seen(network: nn.Module, names: tuple[str, ...], images: Tensor) -> Outputs:
    tapped = Tapped(network, names)
    return Outputs(*named_outputs(tapped, tapped(images)))


def learnt(loss: Loss, student: nn.Module, teacher: nn.Module) -> Tensor:
    """The loss of two images, after its gradient went into the student."""
    images = torch.randn(2, 3, 32, 32)
    ours = seen(student, loss.student_taps(), images)
    with torch.no_grad():
        theirs = seen(teacher.eval(), loss.teacher_taps(), images)
    loss.connect(ours, theirs)
    value: Tensor = loss(Step(ours, (theirs,), torch.zeros(2, 3), torch.arange(2), epoch=0, progress=0.0))
    value.backward()
    return value


@pytest.mark.parametrize(
    "loss",
    [
        HiddenStates(HiddenStates.Options(**every("blocks.{}"))),
        HiddenStates(
            HiddenStates.Options(
                student_taps=["patch_embed", "blocks.{}"], teacher_taps=["patch_embed", "blocks.{}"], **LAYERS
            )
        ),
        MiniLM(MiniLM.Options(**QKV, heads=12, relations=["qq", "kk", "vv"])),
        MultiHeadGraph(
            MultiHeadGraph.Options(student_taps=["blocks.0", "blocks.1"], teacher_taps=["blocks.0", "blocks.3"])
        ),
    ],
    ids=["hidden_states", "hidden_states_and_embedding", "minilm", "multi_head_graph"],
)
def test_losses_join_networks_of_other_depth_width_and_heads(timm, loss):
    student = vit(timm, 2)
    assert learnt(loss, student, vit(timm, 4, heads=6)) > 0
    first = dict(student.named_parameters())["blocks.0.attn.qkv.weight"]
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_attention_maps_are_tapped_after_the_softmax(unfused, distance):
    student, teacher = vit(unfused, 2), vit(unfused, 4)
    taps = ("blocks.1.attn.attn_drop", "blocks.1.attn.qkv")
    found = seen(student, taps, torch.randn(2, 3, 32, 32)).taps
    q, k, _ = found["blocks.1.attn.qkv"].reshape(2, 5, 3, 3, 64).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(found["blocks.1.attn.attn_drop"], (q @ k.mT / 64**0.5).softmax(-1))
    loss = AttentionMaps(AttentionMaps.Options(**every("blocks.{}.attn.attn_drop"), distance=distance))
    assert learnt(loss, student, teacher) > 0
    assert dict(student.named_parameters())["blocks.0.attn.qkv.weight"].grad.abs().sum() > 0


def test_minilm_computes_the_maps_that_fused_attention_hides(unfused):
    student, teacher, images = vit(unfused, 2), vit(unfused, 4), torch.randn(2, 3, 32, 32)
    maps = {"student_taps": ["blocks.1.attn.attn_drop"], "teacher_taps": ["blocks.3.attn.attn_drop"]}
    values = []
    for loss in (
        MiniLM(MiniLM.Options(**QKV, heads=3, relations=["qk"])),
        AttentionMaps(AttentionMaps.Options(**maps, distance="kl")),
    ):
        ours, theirs = seen(student, loss.student_taps(), images), seen(teacher, loss.teacher_taps(), images)
        values.append(loss(Step(ours, (theirs,), torch.zeros(2, 3), torch.arange(2), epoch=0, progress=0.0)))
    torch.testing.assert_close(*values)


def test_error_says_so_when_fused_attention_makes_no_map(timm):
    with pytest.raises(UsageError, match=r"Tap 'blocks.0.attn.attn_drop' ran 0 times"):
        seen(vit(timm, 1), ("blocks.0.attn.attn_drop",), torch.randn(2, 3, 32, 32))
