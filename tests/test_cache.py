"""A cache in a local folder: what it gives is what the teacher says, and what is not so is refused and named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_cases import (
    ALL,
    BATCH,
    CLASSES,
    PLAIN,
    SAMPLES,
    TAP,
    asked,
    batches,
    built,
    fingerprint,
    online,
    only_shard,
    opened,
    teacher,
)
from safetensors.torch import load_file, save_file

from edgekd import cache
from edgekd._cache_layout import Fingerprint
from edgekd.batches import Share
from edgekd.errors import ArtifactError, MismatchError, UsageError
from edgekd.recipe import AugmentSettings
from edgekd.spec import Preprocessing
from edgekd.taps import probe


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*/shard-*.safetensors"))


@pytest.mark.parametrize("augment", [PLAIN, ALL])
@pytest.mark.parametrize("samples", [SAMPLES, 4 * BATCH + 1])
def test_it_says_what_the_teacher_says_to_the_same_pixels(
    tmp_path: Path, augment: AugmentSettings, samples: int
) -> None:
    given, network = batches(augment, samples=samples), online()
    done = built(tmp_path, given)
    assert done.rows == 2 * (samples if samples == SAMPLES else samples - 1)
    found = opened(tmp_path, given)
    looked = 0
    for epoch in (0, 1):
        for raw in given.epoch(epoch):
            outputs = asked(found, raw.inputs, raw.ids, epoch)
            assert torch.equal(outputs.logits, asked(network, raw.inputs, raw.ids, epoch).logits)
            looked += len(raw.ids)
    assert looked == done.rows
    assert len(shards(tmp_path)) >= 4  # batches came from more than one file


def test_taps_come_back_in_the_memory_layout_that_they_had(tmp_path: Path) -> None:
    given = batches()
    built(tmp_path, given, taps=[TAP, "4"])
    found, network = opened(tmp_path, given, ["4", TAP], taps=[TAP, "4"]), online(["4", TAP])
    for raw in given.epoch(0):
        left, right = asked(found, raw.inputs, raw.ids, 0), asked(network, raw.inputs, raw.ids, 0)
        assert list(left.taps) == ["4", TAP]
        for name, values in right.taps.items():
            assert torch.equal(left.taps[name], values)
            assert left.taps[name].stride() == values.stride()
    assert right.taps[TAP].is_contiguous(memory_format=torch.channels_last)


def test_taps_that_are_not_read_are_not_given(tmp_path: Path) -> None:
    given = batches()
    built(tmp_path, given, epochs=[0], taps=[TAP])
    raw = next(given.epoch(0))
    assert asked(opened(tmp_path, given, taps=[TAP]), raw.inputs, raw.ids, 0).taps == {}


def test_samples_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    given, network = batches(PLAIN), online()
    built(tmp_path, given)
    found = opened(tmp_path, given)
    answers = torch.empty(SAMPLES, CLASSES)
    for raw in given.epoch(1):
        answers[raw.ids] = asked(network, raw.inputs, raw.ids, 1).logits
    for ids in (torch.arange(SAMPLES), torch.tensor([3, 3, 70, 0, 41]), given.order(1).flip(0)[:20]):
        inputs = torch.zeros(len(ids), 3, 8, 8)
        assert torch.equal(asked(found, inputs, ids, 1).logits, answers[ids])


def test_each_process_finds_its_own_rows(tmp_path: Path) -> None:
    given = batches()
    built(tmp_path, given)
    found, network = opened(tmp_path, given), online()
    for index in (0, 1, 2):
        for whole, part in zip(given.epoch(1), given.epoch(1, share=Share(index, 3)), strict=True):
            wanted = asked(network, whole.inputs, whole.ids, 1).logits[index::3]
            assert torch.equal(asked(found, part.inputs, part.ids, 1).logits, wanted)


def test_epochs_of_views_repeat(tmp_path: Path) -> None:
    given = batches(views=2)
    built(tmp_path, given)
    found = opened(tmp_path, given)
    for first, later in zip(given.epoch(1), given.epoch(5), strict=True):
        assert torch.equal(first.ids, later.ids)
        left = asked(found, first.inputs, first.ids, 1).logits
        assert torch.equal(left, asked(found, later.inputs, later.ids, 5).logits)


def test_another_batch_size_reads_across_shards(tmp_path: Path) -> None:
    built(tmp_path, batches(PLAIN))
    given, network = batches(PLAIN, batch_size=25), online()
    found = opened(tmp_path, given)
    for raw in given.epoch(0):
        # other batches round in other places
        wanted = asked(network, raw.inputs, raw.ids, 0).logits
        assert torch.allclose(asked(found, raw.inputs, raw.ids, 0).logits, wanted, atol=1e-6)


def test_top_k_gives_the_largest_logits_and_spreads_the_rest(tmp_path: Path) -> None:
    given, network = batches(), online()
    built(tmp_path, given, top_k=2, dtype="float32")
    found = opened(tmp_path, given, top_k=2, dtype="float32")
    for raw in given.epoch(0):
        left, right = asked(found, raw.inputs, raw.ids, 0).logits, asked(network, raw.inputs, raw.ids, 0).logits
        top = right.topk(2, dim=1)
        assert torch.equal(left.gather(1, top.indices), top.values)
        assert torch.allclose(left.logsumexp(1), right.logsumexp(1), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 4 + 4 + 4 + 6 * 4),  # sample, seed, partner, logits
        ({"augment": PLAIN}, 4 + 4 + 6 * 4),
        ({"augment": PLAIN, "top_k": 3}, 4 + 4 + 3 * (2 + 2) + 4),  # values and classes of 2 bytes, the others' logit
        ({"augment": PLAIN, "taps": [TAP], "dtype": "bfloat16"}, 4 + 4 + 6 * 2 + 8 * 8 * 8 * 2),
    ],
)
def test_bytes_of_a_view_by_hand(tmp_path: Path, changed: dict[str, Any], expected: int) -> None:
    given = batches(changed.pop("augment", ALL))
    built(tmp_path, given, epochs=[0, 2], shard_bytes=1 << 20, **changed)
    [about] = cache.summaries(str(tmp_path))
    assert about.bytes_per_view == expected
    assert about.epochs == [0, 2]
    assert about.share_of_dense == expected / (4 * CLASSES)
    content = sum(path.stat().st_size for path in shards(tmp_path))
    assert 2 * SAMPLES * expected < content < 2 * SAMPLES * expected + 2 * 2000  # and a header for each file
    assert about.size_bytes == sum(path.stat().st_size for path in tmp_path.rglob("[!.]*") if path.is_file())


def test_a_copy_for_shapes_answers_with_the_first_rows(tmp_path: Path) -> None:
    given = batches()
    built(tmp_path, given, taps=[TAP])
    found = opened(tmp_path, given, [TAP], taps=[TAP])
    raw = next(given.epoch(0))
    logits, tap = probe(found, raw.inputs)
    right = asked(online([TAP]), raw.inputs, raw.ids, 0)
    assert torch.equal(logits, right.logits)
    assert torch.equal(tap, right.taps[TAP])
    assert probe(copy.deepcopy(found), torch.zeros(200, 3, 8, 8))[0].shape == (200, CLASSES)


def test_time_spent_reading_is_counted(tmp_path: Path) -> None:
    given = batches()
    built(tmp_path, given)
    found = opened(tmp_path, given)
    raw = next(given.epoch(0))
    asked(found, raw.inputs, raw.ids, 0)
    assert isinstance(found.module, cache.CachedTeacher)
    assert 0 < found.module.seconds < 10


def test_there_is_nothing_to_compile(folder: Path) -> None:
    found = opened(folder, batches())
    found.compile()
    raw = next(batches().epoch(0))
    assert torch.equal(asked(found, raw.inputs, raw.ids, 0).logits, asked(online(), raw.inputs, raw.ids, 0).logits)
    assert found._compiled_call_impl is None


def test_kept_classes_and_dtype_follow_from_the_number_of_classes() -> None:
    assert [cache.kept_classes(None, classes) for classes in (2, 64, 65, 1000)] == [None, None, 32, 32]
    assert [cache.kept_classes(k, 10) for k in (3, 9, 10, 32)] == [3, 9, None, None]
    assert [cache.kept_dtype("auto", k) for k in (None, 3)] == ["float32", "float16"]
    assert cache.kept_dtype("bfloat16", None) == "bfloat16"


OTHER: dict[str, tuple[Any, str]] = {
    "teacher": ("other", "teacher"),
    "data": ("other", "data"),
    "preprocessing": (Preprocessing(size=[8, 8], channels=3, mean=[0.4] * 3, std=[0.25] * 3), "preprocessing.mean"),
    "augment": (AugmentSettings(crop=2, flip=True, cutout=3, mixup=0.5), "augment.crop"),
    "augment_version": (99, "augment_version"),
    "seed": (6, "seed"),
    "samples": (91, "samples"),
    "classes": (7, "classes"),
    "top_k": (2, "top_k"),
    "dtype": ("bfloat16", "dtype"),
    "taps": (["0"], "taps"),
    "precision": ("bfloat16", "precision"),
    "batch_size": (32, "batch_size"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that is only read."""
    path = tmp_path_factory.mktemp("cache")
    built(path, batches())
    return path


def test_every_field_of_the_fingerprint_is_tried() -> None:
    assert set(OTHER) == set(Fingerprint.model_fields)


@pytest.mark.parametrize("field", sorted(OTHER))
def test_another_fingerprint_is_refused_by_its_first_field(folder: Path, field: str) -> None:
    value, named = OTHER[field]
    given = batches()
    other = fingerprint(given).model_copy(update={field: value})
    text = (
        rf"{folder} holds other answers: its {named} is .+, this recipe's is .+\. Choose another distill\.cache\.path"
    )
    with pytest.raises(MismatchError, match=text):
        cache.open_cache(str(folder), fingerprint=other)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(MismatchError, match=named):
        cache.build(str(folder), teacher(), given, fingerprint=other, epochs=[0])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_both_values_are_told(folder: Path) -> None:
    other = fingerprint(batches()).model_copy(update={"seed": 6})
    with pytest.raises(MismatchError, match=r"its seed is 5, this recipe's is 6\."):
        cache.open_cache(str(folder), fingerprint=other)


def test_without_mixup_the_batch_size_does_not_matter() -> None:
    assert fingerprint(batches(PLAIN)) == fingerprint(batches(PLAIN, batch_size=30))
    assert fingerprint(batches()) != fingerprint(batches(batch_size=30))


def test_a_sample_that_is_left_alone_is_another_epoch() -> None:
    assert fingerprint(batches(PLAIN, batch_size=89)).samples == 89
    assert fingerprint(batches(PLAIN)).samples == 90


def test_batches_that_show_a_sample_twice_have_no_cache() -> None:
    with pytest.raises(UsageError, match="of plain batches"):
        fingerprint(batches(PLAIN, sampling="two_views"))


def test_images_without_a_number_cannot_be_answered(folder: Path) -> None:
    found = opened(folder, batches())
    with pytest.raises(UsageError, match="holds answers for training samples by their number"):
        found(torch.zeros(4, 3, 8, 8))
    assert isinstance(found.module, cache.CachedTeacher)
    found.module.look_up_view(torch.arange(3), 0)
    with pytest.raises(UsageError, match="by their number"):
        found(torch.zeros(4, 3, 8, 8))


def test_a_tap_that_is_not_kept_is_named(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"does not keep the tap '3'\. It keeps: none\. Add it to distill\.cache\.taps"
    ):
        opened(folder, batches(), ["3"])


def test_an_epoch_that_was_not_built_is_named(folder: Path) -> None:
    found, given = opened(folder, batches()), batches()
    raw = next(given.epoch(2))
    with pytest.raises(ArtifactError, match=r"epoch-0002/shard-00000\.safetensors is missing: .*edgekd cache build"):
        asked(found, raw.inputs, raw.ids, 2)


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert cache.open_cache(str(tmp_path / "none"), fingerprint=fingerprint(batches())) is None
    with pytest.raises(ArtifactError, match=r"There is no cache at .*none\. Run `edgekd cache build RECIPE`"):
        cache.summaries(str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["", "{", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_head_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"cache\.json is damaged or of another version"):
        cache.open_cache(str(tmp_path), fingerprint=fingerprint(batches()))


def test_summaries_find_the_caches_below_a_folder(tmp_path: Path) -> None:
    for role in ("teacher", "teacher-2"):
        built(tmp_path / role, batches(), epochs=[0])
    assert [Path(one.where).name for one in cache.summaries(str(tmp_path))] == ["teacher", "teacher-2"]
    assert cache.summaries(f"file://{tmp_path}")[1].epochs == [0]


def verified(folder: Path, **changed: Any) -> cache.Verified:
    given = batches()
    return cache.verify(str(folder), teacher(), given, fingerprint=fingerprint(given), **changed)


def test_a_sound_cache_is_what_the_teacher_says(folder: Path) -> None:
    found = verified(folder, rows=50)
    assert found.rows == 50
    assert found.shards == len(shards(folder))
    assert found.largest_difference == 0.0


@pytest.mark.parametrize("kept", [{"top_k": 3}, {"top_k": 3, "dtype": "bfloat16"}, {"taps": [TAP], "dtype": "float16"}])
def test_rounding_is_no_difference(tmp_path: Path, kept: dict[str, Any]) -> None:
    given = batches()
    built(tmp_path, given, **kept)
    found = cache.verify(str(tmp_path), teacher(), given, fingerprint=fingerprint(given, **kept), rows=64)
    assert 0 < found.largest_difference < 0.02


def test_a_damaged_shard_is_named_by_verify(tmp_path: Path) -> None:
    built(tmp_path, batches())
    path = only_shard(tmp_path, 1, 2)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=rf"{path} is damaged: its content is not what was built\. Remove .*epoch-0001"
    ):
        verified(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{path} is missing"):
        verified(tmp_path)


def test_a_shard_that_is_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    given = batches()
    built(tmp_path, given)
    path = only_shard(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    raw = next(given.epoch(0))
    with pytest.raises(ArtifactError, match=rf"{path} is damaged: .*Remove it and run `edgekd cache build"):
        asked(opened(tmp_path, given), raw.inputs, raw.ids, 0)


@pytest.mark.parametrize(
    ("column", "told"),
    [("ids", "is of sample"), ("seeds", "is of the view with seed"), ("partners", "a mixture with sample")],
)
def test_a_row_of_another_view_is_named_when_it_is_read(tmp_path: Path, column: str, told: str) -> None:
    given = batches()
    built(tmp_path, given)
    path = only_shard(tmp_path)
    tensors = {name: values.clone() for name, values in load_file(path).items()}
    tensors[column][7] += 1
    save_file(tensors, path)
    raw = next(given.epoch(0))
    with pytest.raises(
        MismatchError, match=rf"{path}: row 7 {'.*' if column == 'partners' else ''}{told}.* but training shows"
    ):
        asked(opened(tmp_path, given), raw.inputs, raw.ids, 0)


def test_an_answer_that_the_teacher_would_not_give_is_named_by_verify(tmp_path: Path) -> None:
    given = batches(samples=BATCH)
    built(tmp_path, given, epochs=[0])
    path = only_shard(tmp_path)
    tensors = {name: values.clone() for name, values in load_file(path).items()}
    tensors["logits"][5, 2] += 0.01
    save_file(tensors, path)
    sample = int(tensors["ids"][5])
    table = path.with_name("shards.json")
    entries = json.loads(table.read_text())
    import hashlib

    entries["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    table.write_text(json.dumps(entries))
    with pytest.raises(MismatchError, match=rf"epoch 0, row 5 \(sample {sample}\): a logit is 0\.01 from what"):
        cache.verify(str(tmp_path), teacher(), given, fingerprint=fingerprint(given), rows=BATCH)


def test_another_teacher_s_answers_are_found_by_verify(folder: Path) -> None:
    given = batches()
    with pytest.raises(MismatchError, match=r"a logit is .* from what the teacher says to this view now"):
        cache.verify(str(folder), teacher(seed=1), given, fingerprint=fingerprint(given))


def test_verify_of_nothing_says_how_to_build(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no cache"):
        verified(tmp_path)
