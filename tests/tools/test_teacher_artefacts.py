"""The tools from images to embeddings: proposals, embeddings, verification."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset
from PIL import Image
from torchvision.ops import box_iou

import convert_proposals
import extract_image_embeddings
import extract_proposals
import verify_store
import vild.data
from vild.embeddings import (
    EmbeddingStore,
    OpenClipTeacher,
    build_teacher,
    crop_and_resize,
    enlarge_boxes,
)
from vild.proposals import ProposalStore

from .. import forked
from ..data.test_custom_datasets import COCO_MINI, needs_photographs
from .conftest import SIZES, SmallData

Run = Callable[..., int]


@pytest.fixture
def propose(small: SmallData, detector: Path, run: Run) -> Callable[..., int]:
    def call(out: str = "p", *more: object) -> int:
        return run(
            extract_proposals,
            "--config-file",
            detector,
            "--out-dir",
            small.folder / out,
            "--topk",
            40,
            "--images-per-shard",
            2,
            *small.arguments,
            *more,
        )

    return call


@pytest.fixture
def embed(small: SmallData, run: Run) -> Callable[..., int]:
    def call(out: str = "e", *more: object, proposals: str = "p") -> int:
        return run(
            extract_image_embeddings,
            "--model",
            "vild-shapes",
            "--out-dir",
            small.folder / out,
            "--regions",
            10,
            "--proposals",
            small.folder / proposals / small.split,
            "--images-per-shard",
            2,
            *small.arguments,
            *more,
        )

    return call


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_from_images_to_verified_embeddings(
    small: SmallData,
    propose: Run,
    embed: Run,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert propose("p", "--detectron2-pickle") == 0
    printed = capsys.readouterr().out
    assert "AR@1000" in printed
    assert "novel" in printed
    store = ProposalStore(small.folder / "p" / small.split)
    assert list(store) == list(range(1, len(SIZES) + 1))
    for image, (boxes, objectness) in store.items():
        height, width = SIZES[int(image) - 1]
        assert store.image_size(image) == (height, width)
        assert 0 < len(boxes) <= 40
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (objectness.diff() <= 0).all()
        assert float(box_iou(boxes, boxes).fill_diagonal_(0).max()) <= 0.9

    assert embed() == 0
    embedded = EmbeddingStore(small.folder / "e" / small.split)
    teacher = build_teacher("vild-shapes", device="cpu")
    assert embedded.spec.source["teacher"]["fingerprint"] == teacher.fingerprint
    boxes, _, embeddings = embedded[2]
    assert torch.equal(boxes, store[2].boxes[:10])
    pixels = np.asarray(Image.open(small.image(2)))
    crops = [
        crop_and_resize(pixels, enlarge_boxes(boxes, scale, SIZES[1]), teacher.image_size)
        for scale in (1.0, 1.5)
    ]
    expected = sum(teacher.encode_image(crop) for crop in crops)
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(embeddings.float(), expected, rtol=0, atol=2e-3)
    folders = [small.folder / name / small.split for name in ("p", "e")]
    assert run(verify_store, *folders) == 0
    assert "no faults" in capsys.readouterr().out

    records = [{"image_id": image} for image in store]
    loaded = load_proposals_into_dataset(records, str(small.folder / "p" / f"{small.split}.pkl"))
    np.testing.assert_array_equal(loaded[1]["proposal_boxes"], store[2].boxes.numpy())


def test_again_and_after_an_interruption(small: SmallData, propose: Run, embed: Run) -> None:
    for make, folder in ((propose, "p"), (embed, "e")):
        assert make() == 0
        whole = small.folder / folder / small.split
        before, times = shards(whole), {p: p.stat().st_mtime_ns for p in whole.glob("*.safe*")}
        assert make() == 0
        assert times == {p: p.stat().st_mtime_ns for p in whole.glob("*.safe*")}
        (whole / "manifest.json").unlink()
        (whole / "shard_00001.safetensors").unlink()
        assert make() == 0
        assert shards(whole) == before
        kept = [p for p in times if p.name != "shard_00001.safetensors"]
        assert all(p.stat().st_mtime_ns == times[p] for p in kept)


def test_machines_share_the_work(
    small: SmallData,
    propose: Run,
    embed: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert propose() == 0
    assert embed() == 0
    for machine in (1, 0):
        assert propose("p2", "--num-machines", 2, "--machine-rank", machine) == 0
        assert embed("e2", "--num-machines", 2, "--machine-rank", machine) == 0
        assert ("others are still running" in capsys.readouterr().out) == (machine == 1)
    for rank in (0, 1):  # like torchrun
        place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": 1}
        for key, value in {**place, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(key, str(value))
        assert embed("e3") == 0
    for one, other in (("p", "p2"), ("e", "e2"), ("e", "e3")):
        assert shards(small.folder / one / small.split) == shards(
            small.folder / other / small.split
        )


def embed_by_two(small: SmallData, *more: object) -> tuple[int | None, str]:
    """Run the command line with two workers; return exit code and output."""
    command = [
        *("tools/extract_image_embeddings.py", "--model", "vild-shapes", "--num-processes", 2),
        *("--out-dir", small.folder / "two", "--regions", 10, "--images-per-shard", 2),
        *("--proposals", small.folder / "p" / small.split, *small.arguments, *more),
    ]
    return forked.run(command, OMP_NUM_THREADS="1")


def test_two_processes_by_the_command_line(small: SmallData, propose: Run, embed: Run) -> None:
    assert propose() == 0
    assert embed() == 0
    code, output = embed_by_two(small)
    assert code == 0, output
    assert shards(small.folder / "two" / small.split) == shards(small.folder / "e" / small.split)


def test_a_failing_process_is_reported(small: SmallData, propose: Run) -> None:
    assert propose() == 0
    code, output = embed_by_two(small, "--pretrained", small.folder / "gone.pt")
    assert code == 2
    assert "stopped" in output.splitlines()[-1]
    assert "gone.pt" in output


def test_unreadable_images(
    small: SmallData, propose: Run, embed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    small.image(3).write_bytes(b"no image")
    assert propose() == 3
    assert "failed: image 3" in capsys.readouterr().out
    assert embed() == 3
    assert "no proposals" in capsys.readouterr().out
    small.make_image(3)
    assert propose() == 3  # failures stay recorded until a retry is requested
    assert propose("p", "--retry-failed") == 0
    assert list(ProposalStore(small.folder / "p" / small.split)) == list(range(1, 8))
    # the proposals have changed, so the embeddings must be recomputed
    assert embed("e", "--retry-failed") == 2
    assert "source.proposals.digest" in capsys.readouterr().err
    assert embed("e2") == 0


def test_what_does_not_fit_is_refused(
    small: SmallData,
    propose: Run,
    embed: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert propose() == 0
    assert embed() == 0
    before = shards(small.folder / "e" / small.split)
    for change, named in (
        (["--crop-mode", "pad"], "source.crop.mode: 'stretch' / 'pad'"),
        (["--precision", "bf16"], "source.teacher.precision"),
        (["--dtype", "int8"], "fields.embeddings.dtype"),
    ):
        assert embed("e", *change) == 2
        assert named in capsys.readouterr().err
    assert propose("p", "--nms-threshold", 0.5) == 2
    assert "source.nms_threshold: 0.9 / 0.5" in capsys.readouterr().err
    monkeypatch.setattr(OpenClipTeacher, "fingerprint", "other weights")
    assert embed() == 2
    assert "source.teacher.fingerprint" in capsys.readouterr().err
    assert shards(small.folder / "e" / small.split) == before


def test_no_room_and_no_folder(
    small: SmallData,
    propose: Run,
    embed: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (small.folder / "file").touch()
    assert propose("file") == 2
    assert propose() == 0
    assert embed("file") == 2
    capsys.readouterr()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    assert embed() == 2
    assert " on disk, " in capsys.readouterr().err
    assert not shards(small.folder / "e" / small.split)
    assert propose("p2") == 2
    assert not (small.folder / "p2").exists()


def test_strange_images_give_no_warning(small: SmallData, propose: Run, embed: Run) -> None:
    images = {n: Image.open(small.image(n)).convert("RGB") for n in range(1, 6)}
    images[1].convert("L").save(small.image(1))
    images[2].convert("CMYK").save(small.image(2), "JPEG")
    Image.fromarray(np.asarray(images[3].convert("L")).astype(np.uint16) * 257).save(small.image(3))
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotated
    images[4].rotate(90, expand=True).save(small.image(4), "JPEG", exif=exif)
    images[5].convert("P").save(small.image(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert propose() == 0
        assert embed() == 0
    assert ProposalStore(small.folder / "p" / small.split).image_size(4) == SIZES[3]


def test_faults_are_named(
    small: SmallData, propose: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert propose() == 0
    folder = small.folder / "p" / small.split
    shard = folder / "shard_00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 0xFF
    shard.write_bytes(content)
    (folder / "shard_00000.safetensors").unlink()
    capsys.readouterr()
    assert run(verify_store, folder) == 1
    printed = capsys.readouterr().out
    assert "shard_00000.safetensors is missing" in printed
    assert "shard_00002.safetensors: wrong checksum of the data" in printed
    assert run(verify_store, small.folder) == 1
    assert "is unfinished" in capsys.readouterr().out


def test_exchange_with_detectron2(
    small: SmallData, propose: Run, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert propose() == 0
    ours = small.folder / "p" / small.split
    file = small.folder / "theirs.pkl"
    assert run(convert_proposals, "--to-detectron2", file, "--store", ours) == 0
    back = ["--from-detectron2", file, "--out-dir", small.folder / "back", *small.arguments]
    assert run(convert_proposals, *back) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert run(convert_proposals, *back, "--allow-pickle") == 0
    one, other = ProposalStore(ours), ProposalStore(small.folder / "back" / small.split)
    for image, (boxes, objectness) in one.items():
        assert torch.equal(other[image].boxes, boxes)
        assert torch.equal(other[image].objectness, objectness)

    with file.open("rb") as opened:
        contents = pickle.load(opened)
    contents["boxes"][0] = np.array([[0, 0, 500, 10], [70, 70, 75, 75], [1, 1, 5, 5]], np.float32)
    contents["objectness_logits"][0] = np.array([1.0, 2.0, 3.0], np.float32)
    contents["ids"][1] = 99
    file.write_bytes(pickle.dumps(contents))
    back[3] = small.folder / "changed"
    assert run(convert_proposals, *back, "--allow-pickle") == 3
    assert "1 boxes without area in their image, 1 images of other" in capsys.readouterr().out
    changed = ProposalStore(small.folder / "changed" / small.split)
    # sorted, clipped to 60 x 80, and without the one outside
    assert changed[1].boxes.tolist() == [[1, 1, 5, 5], [0, 0, 80, 10]]
    assert list(changed.failed) == [2]


@needs_photographs
@pytest.mark.parametrize(
    "count", [8, pytest.param(78, marks=pytest.mark.exhaustive)], ids=["some", "all"]
)
def test_photographs_pass_without_a_warning(
    tmp_path: Path, detector: Path, run: Run, count: int
) -> None:
    (tmp_path / "mini.yaml").write_text(
        f"name: photographs{count}\n"
        f"val: {{json: {COCO_MINI / 'annotations/instances_val2017.json'}, "
        f"images: {COCO_MINI / 'val2017'}}}\nnovel: [cat, dog]\n",
        encoding="utf-8",
    )
    split = f"photographs{count}_val"
    data = ["--split", split, "--dataset-yaml", tmp_path / "mini.yaml"]
    register = vild.data.register_from_arguments

    def register_some(args: object) -> None:
        register(args)
        records = DatasetCatalog.get(split)[:count]
        DatasetCatalog.remove(split)
        DatasetCatalog.register(split, lambda: records)

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        # from dependencies: pycocotools on numpy 2, torch's deprecations
        warnings.filterwarnings("ignore", message="__array__ implementation")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        patch.setattr(vild.data, "register_from_arguments", register_some)
        assert (
            run(
                extract_proposals,
                "--config-file",
                detector,
                "--topk",
                30,
                "--out-dir",
                tmp_path / "p",
                *data,
            )
            == 0
        )
        assert (
            run(
                extract_image_embeddings,
                "--model",
                "vild-shapes",
                "--proposals",
                tmp_path / "p" / split,
                "--out-dir",
                tmp_path / "e",
                *data,
            )
            == 0
        )
    assert run(verify_store, tmp_path / "p" / split, tmp_path / "e" / split) == 0
    assert len(EmbeddingStore(tmp_path / "e" / split)) == count
    DatasetCatalog.remove(split)


@pytest.mark.parametrize(
    ("tool", "option"),
    [
        *((extract_proposals, f"--{name} 0") for name in ("topk", "threads", "images-per-shard")),
        (extract_proposals, "--num-processes 0"),
        (extract_proposals, "--num-machines 0"),
        *((extract_image_embeddings, f"--{name} 0") for name in ("regions", "scales", "threads")),
        (extract_image_embeddings, "--batch-size 0"),
        (extract_image_embeddings, "--images-per-shard -1"),
    ],
)
def test_options_out_of_range(
    tool: ModuleType, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.build_parser().parse_args(option.split())
    assert f"{option.split()[0]}: expected" in capsys.readouterr().err


def test_proposals_need_a_complete_detector(
    small: SmallData, propose: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"nothing": torch.ones(1)}}, small.folder / "other.pth")
    for weights, message in (
        ("", "expected a checkpoint of the detector, got none"),
        (small.folder / "other.pth", "of the model's parameters"),
        (small.folder / "gone.pkl", "expected a checkpoint at"),
    ):
        assert propose("q", "--weights", weights) == 2
        assert message in capsys.readouterr().err
    assert propose("q", "--nms-threshold", 2) == 2
    assert "expected an NMS threshold" in capsys.readouterr().err
    assert propose("q", "--num-machines", 2, "--machine-rank", 2) == 2
    assert "--machine-rank from 0" in capsys.readouterr().err
    assert not list(small.folder.glob("q/*/*"))


def test_proposals_of_other_images_are_not_embedded(
    small: SmallData, propose: Run, embed: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert propose() == 0
    contents = json.loads((small.folder / "small.json").read_text(encoding="utf-8"))
    for image in contents["images"]:
        (small.folder / "images" / f"new{image['id']}.png").symlink_to(small.image(image["id"]))
        image["file_name"] = f"new{image['id']}.png"
    (small.folder / "small.json").write_text(json.dumps(contents), encoding="utf-8")
    capsys.readouterr()
    assert embed() == 2
    assert f"expected a store of '{small.split}' (7 images)" in capsys.readouterr().err
    assert not (small.folder / "e").exists()
