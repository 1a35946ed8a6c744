"""From images and proposals to a store of embeddings, with matching rows."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vild.embeddings import (
    CropRule,
    EmbeddingStore,
    OnlineEmbedder,
    OpenClipTeacher,
    RegionCropper,
    crop_and_resize,
    enlarge_boxes,
    extract_embeddings,
)
from vild.embeddings.store import (
    KIND,
    embedding_faults,
    embedding_source,
    fields,
    pack,
    unpack,
)
from vild.proposals import ProposalStore
from vild.proposals.store import FIELDS as PROPOSAL_FIELDS
from vild.storage import (
    SplitImages,
    StoreMismatchError,
    StoreWriter,
    store_faults,
    store_spec,
)

DIMENSION, SIZE = 16, 32
TEACHER = {"name": "stub", "fingerprint": "f" * 64, "dimension": DIMENSION, "image_size": SIZE}
ROWS = [3, 0, 7, 1, 5, 2, 9]  # number of proposals of each image


def stub(crops: Tensor) -> Tensor:
    """Encode crops deterministically and cheaply, with different results for different pixels."""
    weights = torch.randn(3 * 64, DIMENSION, generator=torch.Generator().manual_seed(0))
    small = functional.adaptive_avg_pool2d(crops, 8).flatten(1)
    return functional.normalize((small - 0.5) @ weights, dim=1)


def split_of(images: Iterable[int]) -> SplitImages:
    return SplitImages("split", dict.fromkeys(images, ""), "")


def make_images(folder: Path, rows: list[int] = ROWS) -> tuple[dict[int, str], ProposalStore]:
    """Write noise images, and a store of their proposals."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    files = {}
    images = [10 + n for n in range(len(rows))]
    spec = store_spec("proposals", split_of(images), PROPOSAL_FIELDS, {}, 100)
    writer = StoreWriter(folder / "proposals", spec, images)
    with writer.shard(0) as builder:
        for image, count in zip(images, rows, strict=True):
            height, width = draw.integers(60, 120, 2)
            noise = draw.integers(0, 255, (height // 6, width // 6, 3), np.uint8)
            files[image] = str(folder / f"{image}.png")
            Image.fromarray(noise).resize((int(width), int(height))).save(files[image])
            corners = draw.uniform(0, [width - 30, height - 30], (count, 2))
            sides = draw.uniform(5, 29, (count, 2))
            boxes = np.concatenate([corners, corners + sides], axis=1)
            objectness = np.sort(draw.normal(size=count))[::-1]
            builder.add(image, int(height), int(width), {"boxes": boxes, "objectness": objectness})
    writer.finish({})
    return files, ProposalStore(folder / "proposals")


def extract(
    folder: Path,
    files: dict[int, str],
    proposals: ProposalStore,
    *,
    rule: CropRule | None = None,
    limit: int = 300,
    batch_size: int = 4,
    dtype: str = "float16",
    ranks: int = 1,
    encode: object = stub,
    per_shard: int = 2,
) -> EmbeddingStore:
    rule = rule or CropRule()
    source = embedding_source(TEACHER, rule, {"digest": proposals.digest}, limit, batch_size)
    spec = store_spec(KIND, split_of(files), fields(DIMENSION, dtype), source, per_shard)
    for rank in range(ranks):
        writer = StoreWriter(folder, spec, list(files))
        cropper = RegionCropper(
            proposals, files, rule, limit=limit, size=SIZE, batch_size=batch_size
        )
        extract_embeddings(
            cropper,
            encode,  # type: ignore[arg-type]
            writer,
            dtype=dtype,
            rank=rank,
            world_size=ranks,
            progress=False,
        )
    writer.finish({})
    return EmbeddingStore(folder)


def by_hand(file: str, boxes: Tensor, rule: CropRule) -> Tensor:
    """Compute the embeddings region by region."""
    image = np.asarray(Image.open(file))
    size = image.shape[:2]
    result = []
    for box in boxes:
        crops = [
            crop_and_resize(image, enlarge_boxes(box[None], s, size), SIZE, rule.mode)
            for s in rule.scales
        ]
        result.append(functional.normalize(sum(stub(crop)[0] for crop in crops), dim=0))
    return torch.stack(result) if result else torch.empty(0, DIMENSION)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, str], ProposalStore]:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
@pytest.mark.parametrize(
    "rule", [CropRule(), CropRule("clip", (1.0,)), CropRule("pad", (1.0, 1.5, 2.0))]
)
def test_every_row_is_its_regions_embedding(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path, batch_size: int, rule: CropRule
) -> None:
    """Rows must stay aligned, and the crops of the two scales must differ."""
    files, proposals = made
    store = extract(tmp_path, files, proposals, rule=rule, batch_size=batch_size)
    assert list(store) == list(files)
    for image, file in files.items():
        boxes, objectness, embeddings = store[image]
        torch.testing.assert_close(boxes, proposals[image].boxes, rtol=0, atol=0)
        torch.testing.assert_close(objectness, proposals[image].objectness, rtol=0, atol=0)
        assert embeddings.dtype == torch.float16
        expected = by_hand(file, boxes, rule)
        torch.testing.assert_close(embeddings.float(), expected, rtol=0, atol=1e-3)
    assert not store_faults(tmp_path, embedding_faults)


def test_the_best_regions_are_kept(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path
) -> None:
    files, proposals = made
    store = extract(tmp_path, files, proposals, limit=4)
    assert [store.count(image) for image in files] == [min(rows, 4) for rows in ROWS]
    for image in files:
        assert torch.equal(store[image].boxes, proposals[image].boxes[:4])


def test_ranks_make_the_same_store(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path
) -> None:
    files, proposals = made
    counted = []

    def counting(crops: Tensor) -> Tensor:
        counted.append(len(crops))
        return stub(crops)

    one = extract(tmp_path / "1", files, proposals, encode=counting)
    alone = sum(counted)
    three = extract(tmp_path / "3", files, proposals, ranks=3, encode=counting)
    assert alone == 2 * sum(ROWS)
    assert sum(counted) == 2 * alone  # no crop was encoded twice
    assert three.digest == one.digest
    names = sorted(p.name for p in (tmp_path / "1").glob("*.safetensors"))
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_boxes_are_float32_and_exact(tmp_path: Path) -> None:
    """As float16, boxes would move by half a pixel beyond 512."""
    Image.fromarray(np.zeros((20, 3000, 3), np.uint8)).save(tmp_path / "wide.png")
    boxes = np.array([[2047.3, 1.1, 2901.7, 15.9]], np.float32)
    spec = store_spec("proposals", split_of([1]), PROPOSAL_FIELDS, {}, 1)
    writer = StoreWriter(tmp_path / "proposals", spec, [1])
    with writer.shard(0) as builder:
        builder.add(1, 20, 3000, {"boxes": boxes, "objectness": np.zeros(1)})
    writer.finish({})
    files = {1: str(tmp_path / "wide.png")}
    store = extract(tmp_path / "e", files, ProposalStore(tmp_path / "proposals"))
    np.testing.assert_array_equal(store[1].boxes.numpy(), boxes)


def test_int8_keeps_the_direction(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    spread = torch.randn(500, 512, generator=draw)
    peaked = torch.randn(500, 512, generator=draw) ** 5  # a few values dominate
    for embeddings in (functional.normalize(spread, dim=1), functional.normalize(peaked, dim=1)):
        packed = pack(embeddings, "int8")
        assert packed["embeddings"].dtype == torch.int8
        cosine = functional.cosine_similarity(unpack(packed).float(), embeddings)
        assert float((1 - cosine).max()) <= 1e-3
    files, proposals = made
    half = extract(tmp_path / "h", files, proposals)
    store = extract(tmp_path / "i", files, proposals, dtype="int8")
    assert not store_faults(tmp_path / "i", embedding_faults)
    assert store[16].embeddings.dtype == torch.float16
    torch.testing.assert_close(store[16].embeddings, half[16].embeddings, rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="expected the dtype"):
        fields(16, "float64")


def test_unreadable_and_changed_images_are_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, proposals = make_images(tmp_path)
    Path(files[12]).write_bytes(b"not an image")
    Path(files[13]).unlink()
    Image.new("RGB", (5, 5)).save(files[14])
    files[99] = files[10]  # an image without proposals
    with caplog.at_level(logging.WARNING):
        store = extract(tmp_path / "e", files, proposals)
    assert list(store.failed) == [12, 13, 14, 99]
    assert "12.png" in store.failed[12]
    assert "the image has changed" in store.failed[14]
    assert "no proposals" in store.failed[99]
    assert "image 12" in caplog.text
    for image in (10, 11, 15, 16):
        expected = by_hand(files[image], store[image].boxes, CropRule())
        torch.testing.assert_close(store[image].embeddings.float(), expected, rtol=0, atol=1e-3)


def test_boxes_that_cannot_be_cropped_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Imported proposals may have such boxes; extracted ones do not."""
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(tmp_path / "a.png")
    boxes = np.array([[1, 1, 9, 9], [5, 5, 5, 9], [60, 60, 70, 70], [2, 2, 30, 30]], np.float32)
    spec = store_spec("proposals", split_of([1]), PROPOSAL_FIELDS, {}, 1)
    writer = StoreWriter(tmp_path / "proposals", spec, [1])
    with writer.shard(0) as builder:
        builder.add(1, 50, 50, {"boxes": boxes, "objectness": -np.arange(4)})
    writer.finish({})
    files = {1: str(tmp_path / "a.png")}
    store = extract(tmp_path / "e", files, ProposalStore(tmp_path / "proposals"))
    np.testing.assert_array_equal(store[1].boxes.numpy(), boxes[[0, 3]])
    np.testing.assert_array_equal(store[1].objectness.numpy(), [0, -3])
    assert "image 1: ignoring 2 boxes without area or outside" in caplog.text


def test_nan_stops_before_anything_of_the_shard_is_written(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path
) -> None:
    files, proposals = made
    calls = []

    def spoilt(crops: Tensor) -> Tensor:
        calls.append(1)
        return stub(crops) * (float("nan") if len(calls) > 5 else 1)

    with pytest.raises(ValueError, match=r"expected finite values.*in row \d of embeddings"):
        extract(tmp_path, files, proposals, encode=spoilt)
    done = {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    assert done
    extract(tmp_path, files, proposals)  # the right encoder resumes
    for name, content in done.items():
        assert (tmp_path / name).read_bytes() == content


def test_other_proposals_or_another_teacher_are_refused(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, proposals = made
    extract(tmp_path / "e", files, proposals)
    _, changed = make_images(tmp_path / "other", [4] * 7)
    with pytest.raises(StoreMismatchError, match=r"source\.proposals\.digest"):
        extract(tmp_path / "e", files, changed)
    with pytest.raises(StoreMismatchError, match=r"source\.crop\.mode: 'stretch' / 'pad'"):
        extract(tmp_path / "e", files, proposals, rule=CropRule("pad"))
    monkeypatch.setitem(TEACHER, "fingerprint", "0" * 64)
    with pytest.raises(StoreMismatchError, match=r"source\.teacher\.fingerprint"):
        extract(tmp_path / "e", files, proposals)


def test_a_store_of_something_else_is_not_opened(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path
) -> None:
    extract(tmp_path, *made)
    assert EmbeddingStore(
        tmp_path, teacher="f" * 64, dimension=DIMENSION, crop=CropRule()
    ).dimension == (DIMENSION)
    with pytest.raises(StoreMismatchError, match=r"source\.teacher\.dimension: 16 / 512"):
        EmbeddingStore(tmp_path, dimension=512)
    with pytest.raises(StoreMismatchError, match=r"source\.teacher\.fingerprint"):
        EmbeddingStore(tmp_path, teacher="0" * 64)
    with pytest.raises(StoreMismatchError, match=r"source\.crop\.scales"):
        EmbeddingStore(tmp_path, crop=CropRule("stretch", (1.0,)))


def test_impossible_crop_rules() -> None:
    with pytest.raises(ValueError, match="expected a crop mode"):
        CropRule("squeeze")
    for scales in ((), (1.0, 0.0), (float("nan"),), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="expected positive crop scales"):
            CropRule(scales=scales)


def test_the_teacher_itself(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path, teacher: OpenClipTeacher
) -> None:
    files, proposals = made
    store = extract(tmp_path, files, proposals, encode=teacher.encode_image)
    image = np.asarray(Image.open(files[12]))
    boxes = store[12].boxes
    pair = [
        teacher.encode_image(crop_and_resize(image, b, SIZE))
        for b in (boxes, enlarge_boxes(boxes, 1.5, image.shape[:2]))
    ]
    expected = functional.normalize(pair[0] + pair[1], dim=1)
    torch.testing.assert_close(store[12].embeddings.float(), expected, rtol=0, atol=1e-3)


def test_crops_are_resized_as_the_teacher_s_images_were(
    made: tuple[dict[int, str], ProposalStore], teacher: OpenClipTeacher
) -> None:
    """The store and online training use the teacher's interpolation."""
    files, proposals = made
    rule = CropRule(scales=(1.0,))
    image = np.asarray(Image.open(files[12]))
    boxes = proposals[12].boxes
    crops = {
        kind: crop_and_resize(image, boxes, SIZE, interpolation=kind)
        for kind in ("bicubic", "bilinear")
    }
    assert not torch.equal(crops["bicubic"], crops["bilinear"])
    for kind, expected in crops.items():
        cropper = RegionCropper(
            proposals, files, rule, limit=300, size=SIZE, batch_size=300, interpolation=kind
        )
        (batch,) = cropper.batches([[12]])
        assert torch.equal(batch.crops, expected)
        own = OpenClipTeacher(teacher.model, teacher.tokenizer, name="tiny", interpolation=kind)
        embedded = OnlineEmbedder(own, rule).embed(torch.tensor(image), boxes)
        torch.testing.assert_close(embedded, own.encode_image(expected))


def _extract_slowly(folder: Path, count: int, started: object) -> None:
    def slow(crops: Tensor) -> Tensor:
        time.sleep(0.01)
        return stub(crops)

    torch.set_num_threads(1)
    files = {10 + n: str(folder / f"{10 + n}.png") for n in range(count)}
    started.set()  # type: ignore[attr-defined]
    proposals = ProposalStore(folder / "proposals")
    extract(folder / "e", files, proposals, encode=slow, per_shard=1)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL; Windows has none")
def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    """After twenty kills during the run, the store equals that of an uninterrupted run."""
    rows = [4] * 100
    files, proposals = make_images(tmp_path, rows)
    whole = extract(tmp_path / "whole", files, proposals, per_shard=1)
    draw = np.random.default_rng(1)
    context = multiprocessing.get_context("forkserver")  # imports torch once for all of them
    context.set_forkserver_preload([__name__])
    kills = 0
    progress = []
    while kills < 20:
        started = context.Event()
        child = context.Process(target=_extract_slowly, args=(tmp_path, len(rows), started))
        child.start()
        assert started.wait(60)
        # kill after some more shards, however busy the machine is, plus a random delay
        wanted = (progress[-1] if progress else 0) + int(draw.integers(0, 4))
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "e").glob("shard_*"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(float(draw.uniform(0, 0.05)))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL  # it was still working
        kills += 1
        shards = sorted((tmp_path / "e").glob("shard_*"))
        progress.append(len(shards))
        for shard in shards:  # complete or missing
            assert shard.read_bytes() == (tmp_path / "whole" / shard.name).read_bytes()
    assert sorted(progress) == progress
    assert len(set(progress)) > 3, progress  # the kills came at different stages
    store = extract(tmp_path / "e", files, proposals, per_shard=1)
    assert store.digest == whole.digest
    assert not store_faults(tmp_path / "e", embedding_faults)
