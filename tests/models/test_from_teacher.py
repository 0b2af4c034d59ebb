"""A student made out of its teacher: which blocks and channels stay, and that they keep their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.catalog import CATALOGS
from edgekd.errors import BackendMissing, UsageError
from edgekd.models import _narrower
from edgekd.models._shorter import kept_layers
from edgekd.models.from_teacher import FromTeacher

EXAMPLE = torch.zeros(1, 1, 16, 16)


def teacher(name: str, seed: int = 0, **options: Any) -> nn.Module:
    member = CATALOGS["models"].load(name).member
    torch.manual_seed(seed)
    return member(member.Options(**options)).build(10, (1, 16, 16))


def derived(network: nn.Module, example: Tensor = EXAMPLE, **options: Any) -> nn.Module:
    if options.get("width", 1.0) < 1:
        pytest.importorskip("torch_pruning", reason="a width needs 'torch_pruning'. Install edgekd[pruning].")
    return FromTeacher(FromTeacher.Options(**options)).derive(network, example)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def test_layers_are_every_second_when_half_stay():
    assert kept_layers(12, 6) == [1, 3, 5, 7, 9, 11]
    assert kept_layers(5, 5) == [0, 1, 2, 3, 4]
    assert kept_layers(7, 1) == [6]


@pytest.mark.parametrize(("name", "options"), [("resnet", {"depth": 20}), ("wrn", {"depth": 16}), ("mobilenet_v2", {})])
@pytest.mark.parametrize("shares", [{"width": 0.5}, {"depth": 0.5}, {"width": 0.5, "depth": 0.5}])
def test_it_is_smaller_runs_and_trains(name, options, shares):
    original = teacher(name, **options)
    before = {key: value.clone() for key, value in original.state_dict().items()}
    small = derived(original, **shares)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in original.parameters())
    logits = small.train()(torch.randn(2, 1, 16, 16))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())


def test_structure_does_not_depend_on_the_teachers_weights():
    # a checkpoint is loaded into a student that is derived again, maybe from a teacher that is not trained yet
    for shares in ({"width": 0.5}, {"depth": 0.5}):
        one, other = (derived(teacher("resnet", seed, depth=20), **shares) for seed in (0, 1))
        assert shapes(one) == shapes(other)
        same = derived(teacher("resnet", 0, depth=20), **shares)
        assert all(torch.equal(value, one.state_dict()[key]) for key, value in same.state_dict().items())


def test_width_keeps_the_channels_with_the_largest_weights():
    original = teacher("tiny", width=16)
    with torch.no_grad():
        original.stem[0].weight[::2] *= 100  # every second channel of the first convolution
    small = derived(original, width=0.5)
    assert torch.equal(small.stem[0].weight, original.stem[0].weight[::2])
    assert torch.equal(small.stem[1].weight, original.stem[1].weight[::2])
    assert [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)] == [8, 16, 32]
    assert small.fc.out_features == 10


def test_width_keeps_multiples_of_eight_channels():
    small = derived(teacher("tiny", width=24), width=0.4)
    assert [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)] == [16, 24, 40]


def test_depth_keeps_the_last_block_and_the_one_that_changes_the_shape():
    original = teacher("resnet", depth=32)
    small = derived(original, depth=0.6)
    # 3 of 5 blocks; layer2.0 has the stride and stays, of the four others the second and the last
    for kept, number in ((0, 0), (1, 2), (2, 4)):
        assert torch.equal(small.layer2[kept].conv1.weight, original.layer2[number].conv1.weight)
    assert len(small.layer1) == len(small.layer2) == len(small.layer3) == 3


def test_depth_one_and_width_one_leave_nothing_to_do():
    with pytest.raises(UsageError, match="takes nothing out: set width or depth below 1"):
        FromTeacher(FromTeacher.Options()).derive(nn.Linear(2, 2), torch.zeros(1, 2))


class Attention(nn.Module):
    """As timm's: fused queries, keys and values, and heads that are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused_attn = 4, 8, 32, True
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, inputs: Tensor) -> Tensor:
        count, tokens, _ = inputs.shape
        split = self.qkv(inputs).reshape(count, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        if self.fused_attn:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query * self.head_dim**-0.5 @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(count, tokens, self.attn_dim))


class Block(nn.Module):
    """Attention and a layer, each beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(32), Attention(), nn.Linear(32, 32)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs + self.attn(self.norm(inputs))
        return tokens + self.mlp(tokens).relu()


class Transformer(nn.Module):
    """Patches, six blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(1, 32, 4, 4), nn.Sequential(*(Block() for _ in range(6)))
        self.position, self.head = nn.Parameter(torch.randn(1, 16, 32)), nn.Linear(32, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(inputs).flatten(2).transpose(1, 2) + self.position).mean(dim=1))


def test_transformer_gives_up_heads_tokens_width_and_blocks():
    torch.manual_seed(0)
    original = Transformer()
    small = derived(original, width=0.5, depth=0.5)
    assert len(small.blocks) == 3
    for block in small.blocks:
        assert (block.attn.num_heads, block.attn.head_dim, block.attn.attn_dim) == (2, 8, 16)
        assert block.attn.qkv.weight.shape == (48, 16)
        assert block.attn.fused_attn
    assert small.position.shape == (1, 16, 16)
    assert small(torch.randn(3, 1, 16, 16)).shape == (3, 10)
    shorter = derived(original, depth=0.5)
    assert torch.equal(shorter.blocks[0].mlp.weight, original.blocks[1].mlp.weight)
    assert torch.equal(shorter.blocks[2].mlp.weight, original.blocks[5].mlp.weight)


def test_it_says_what_to_do_when_nothing_can_go():
    with pytest.raises(UsageError, match=r"depth = 0.5 takes nothing out of Sequential: .*set width"):
        derived(teacher("tiny"), depth=0.5)
    with pytest.raises(UsageError, match=r"width = 0.9 takes nothing out of Sequential: .*set depth"):
        derived(teacher("tiny", width=2), width=0.9)
    with pytest.raises(UsageError, match="no convolution or linear layer"):
        derived(nn.Flatten(), width=0.5)


class Stubborn(nn.Module):
    """Counts on its width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 256, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs).reshape(len(inputs), 16 * 256))


def test_it_says_what_to_do_when_the_network_cannot_be_pruned():
    with pytest.raises(UsageError, match=r"torch-pruning cannot make Stubborn narrower: .*Use depth alone"):
        derived(Stubborn(), width=0.5)


def test_it_names_the_extra_when_the_library_is_missing(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    original = teacher("tiny")
    monkeypatch.setattr(_narrower.importlib, "import_module", missing)
    with pytest.raises(BackendMissing, match=r"needs the package 'torch_pruning'.*edgekd\[pruning\]"):
        FromTeacher(FromTeacher.Options(width=0.5)).derive(original, EXAMPLE)


def test_it_is_no_model_without_a_teacher():
    with pytest.raises(UsageError, match="can only be a student or assistant"):
        FromTeacher(FromTeacher.Options(width=0.5)).build(10, (1, 16, 16))
