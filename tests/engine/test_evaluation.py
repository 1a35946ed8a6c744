"""Evaluation of a checkpoint with several vocabularies, output files and drawn images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model

from vild.data import register_custom
from vild.engine import Trainer, build_test_loader, evaluate
from vild.engine.evaluation import read_vocabulary
from vild.engine.hooks import Evaluation

from .. import small_shapes

SHAPES_TEACHER = {
    "MODEL__VILD__TEACHER__MODEL": "vild-shapes",
    "MODEL__VILD__TEACHER__PRETRAINED": "",
}
FEW = {"TEST__DETECTIONS_PER_IMAGE": 10, "MODEL__RPN__POST_NMS_TOPK_TEST": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make three images and a checkpoint of the variant `vild`."""
    made = tmp_path_factory.mktemp("evaluate")
    small_shapes.make(made, 3)
    torch.manual_seed(0)
    model = build_model(small_shapes.config(made, "vild"))
    DetectionCheckpointer(model, str(made)).save("model")
    return made


def config(folder: Path, output: Path, **changes: object) -> CfgNode:
    small_shapes.register(folder)
    weights = str(folder / "model.pth")
    return small_shapes.config(
        folder, "vild", **{"MODEL__WEIGHTS": weights, "OUTPUT_DIR": str(output), **FEW, **changes}
    )


def test_the_vocabulary_of_the_configuration(folder: Path, tmp_path: Path) -> None:
    out, shown = tmp_path / "found.json", tmp_path / "shown"
    cfg = config(folder, tmp_path)
    results = evaluate(cfg, out=str(out), show_dir=str(shown))
    assert {"AP", "APr", "APc", "APf", "AP-novel", "AP-base"} <= set(results["bbox"])
    assert set(results) == {"bbox", "segm"}
    found = json.loads(out.read_text(encoding="utf-8"))
    assert len(found) == 30
    assert len(list(shown.iterdir())) == 3
    assert set(evaluate(cfg, tasks=("bbox",))) == {"bbox"}


class Counter(DatasetEvaluator):
    """An evaluator of a user, which counts images."""

    def reset(self) -> None:
        self.images = 0

    def process(self, inputs: list[Any], outputs: list[Any]) -> None:
        self.images += len(inputs)

    def evaluate(self) -> dict[str, Any]:
        return {"count": {"images": self.images}}


class PlainTrainer(Trainer):
    """A subclass written as for Detectron2's trainer."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        return Counter()

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return list(super().build_test_loader(cfg, dataset_name))[:2]


class AddingTrainer(Trainer):
    """A subclass that adds an evaluator to the project's."""

    @classmethod
    def build_evaluator(cls, *args: Any, **options: Any) -> DatasetEvaluator:
        return DatasetEvaluators([super().build_evaluator(*args, **options), Counter()])


def test_a_trainer_with_other_evaluators_and_loaders(folder: Path, tmp_path: Path) -> None:
    """They count in evaluations during training, after it, and with --eval-only."""
    cfg = config(folder, tmp_path, TEST__EVAL_PERIOD=5)
    expected = {"count": {"images": 2}}
    assert evaluate(cfg, trainer=PlainTrainer, tasks=("bbox",)) == expected
    shown = tmp_path / "shown"
    assert evaluate(cfg, trainer=PlainTrainer, show_dir=str(shown)) == expected
    assert len(list(shown.iterdir())) == 2
    trainer = PlainTrainer(cfg)
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, Evaluation))
    assert hook._func() == expected
    assert trainer.schedule == "600 iterations of 8 images, 1,600 epochs of 3 images"
    trainer.data_loader = []  # of a subclass; its length may be unknown
    assert trainer.schedule == "600 iterations of 8 images"
    for options in ({"out": "a.json"}, {"precision": "bf16"}, {"tasks": ("segm",)}):
        message = f"PlainTrainer.build_evaluator to accept {next(iter(options))}"
        with pytest.raises(ValueError, match=message):
            evaluate(cfg, trainer=PlainTrainer, **options)

    out = tmp_path / "found.json"
    found = evaluate(cfg, trainer=AddingTrainer, tasks=("segm",), out=str(out), precision="bf16")
    assert set(found) == {"segm", "count"}
    assert found["count"]["images"] == 3
    assert out.is_file()


def test_half_precision_is_recorded(folder: Path, tmp_path: Path) -> None:
    scores = {}
    for precision in ("fp32", "bf16"):
        output = tmp_path / precision
        cfg = config(folder, output)
        evaluate(cfg, tasks=("bbox",), precision=precision)
        (metrics,), (found,) = output.glob("*_metrics.json"), output.glob("*_results.json")
        assert json.loads(metrics.read_text(encoding="utf-8"))["precision"] == precision
        found = json.loads(found.read_text(encoding="utf-8"))
        scores[precision] = torch.tensor([entry["score"] for entry in found])
    assert not torch.equal(scores["fp32"], scores["bf16"])
    assert abs(scores["fp32"].mean() - scores["bf16"].mean()) < 0.02
    with pytest.raises(ValueError, match=r"expected a precision of .*, got 'fp8'"):
        evaluate(cfg, precision="fp8")


def test_other_vocabularies_in_coco_format(folder: Path, tmp_path: Path) -> None:
    """One checkpoint evaluates a COCO-style dataset and custom words, embedded by the teacher."""
    image = next(iter(DatasetCatalog.get(small_shapes.SEEN)))
    names = [MetadataCatalog.get(small_shapes.SEEN).thing_classes[n] for n in (3, 0, 7)]
    contents = {
        "images": [
            {"id": 5, "file_name": Path(image["file_name"]).name, "height": 160, "width": 160}
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 9,
                "bbox": [20, 20, 40, 40],
                "area": 1600,
                "iscrowd": 0,
                "segmentation": [[20, 20, 60, 20, 60, 60, 20, 60]],
            },
        ],
        "categories": [{"id": 9 + n, "name": name} for n, name in enumerate(names)],
    }
    (tmp_path / "own.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "images").mkdir()
    shutil.copy(image["file_name"], tmp_path / "images")
    (tmp_path / "own.yaml").write_text(
        f"name: evaluated\nval: {{json: own.json, images: images}}\nnovel: ['{names[2]}']\n",
        encoding="utf-8",
    )
    cfg = config(
        folder,
        tmp_path,
        DATASETS__TEST=("evaluated_val",),
        **SHAPES_TEACHER,
    )
    register_custom(tmp_path / "own.yaml")
    assert MetadataCatalog.get("evaluated_val").evaluator_type == "coco"
    with pytest.raises(
        ValueError, match=r"the 3 classes of evaluated_val .* got 60 classes.*--vocabulary"
    ):
        evaluate(cfg)
    out = tmp_path / "found.json"
    results = evaluate(cfg, out=str(out), vocabulary=str(tmp_path / "own.json"))
    assert {"AP", "AP50-novel", "AP50-base", "AP50-all"} <= set(results["bbox"])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {d["category_id"] for d in found} <= {9, 10, 11}
    assert {d["image_id"] for d in found} == {5}


def test_files_of_vocabularies(folder: Path, tmp_path: Path) -> None:
    cfg = config(folder, tmp_path, **SHAPES_TEACHER)
    (tmp_path / "data.yaml").write_text("names: [crow, owl]\n", encoding="utf-8")
    read = read_vocabulary(cfg, str(tmp_path / "data.yaml"))
    assert read.vocabulary.names == ("crow", "owl")
    read.save(tmp_path / "text.SAFETENSORS")
    again = read_vocabulary(cfg, str(tmp_path / "text.SAFETENSORS"))
    assert torch.equal(again.embeddings, read.embeddings)
    for file, message in (
        ("gone.json", "expected a vocabulary at"),
        ("a.npy", r"a \.json, a \.txt"),
    ):
        (tmp_path / "a.npy").write_bytes(b"1")
        with pytest.raises(ValueError, match=message):
            read_vocabulary(cfg, str(tmp_path / file))


@pytest.mark.parametrize(
    ("changes", "tasks", "complaint"),
    [
        ({"MODEL__WEIGHTS": ""}, None, "a checkpoint to evaluate: MODEL.WEIGHTS FILE, or --resume"),
        ({"MODEL__WEIGHTS": "gone.pth"}, None, r"expected a checkpoint at gone\.pth"),
        ({"MODEL__VILD__VARIANT": "ensemble"}, None, "image_head.*another variant"),
        ({"MODEL__MASK_ON": False}, ("segm",), "a model with masks for --eval segm"),
    ],
)
def test_what_cannot_be_evaluated(
    changes: dict[str, object],
    tasks: tuple[str, ...] | None,
    complaint: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        evaluate(config(folder, tmp_path, **changes), tasks=tasks)


@pytest.mark.parametrize("variant", ["clip", "text_clip"])
def test_the_teachers_embeddings_come_from_a_store_or_online(
    variant: str, folder: Path, tmp_path: Path
) -> None:
    common = {
        "MODEL__VILD__VARIANT": variant,
        "MODEL__LOAD_PROPOSALS": True,
        "MODEL__PROPOSAL_GENERATOR__NAME": "PrecomputedProposals",
        **SHAPES_TEACHER,
    }
    found = {}
    for source, name in (("store", "store"), ("online", "proposals")):
        cfg = config(
            folder,
            tmp_path,
            **common,
            MODEL__VILD__TEACHER__SOURCE_TEST=source,
            DATASETS__PROPOSAL_FILES_TEST=(str(folder / name),),
        )
        loader = build_test_loader(cfg, small_shapes.SEEN)
        assert len(loader) == 3
        found[source] = [batch[0]["proposals"] for batch in loader]
        results = evaluate(cfg, tasks=("bbox",))
        assert 0 <= results["bbox"]["AP"] <= 100
    for stored, online in zip(found["store"], found["online"], strict=True):
        assert torch.equal(stored.proposal_boxes.tensor, online.proposal_boxes.tensor)
        torch.testing.assert_close(
            stored.teacher_embeddings, online.teacher_embeddings, atol=2e-3, rtol=0
        )


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("store", r"a store of embeddings, got one of proposals.*SOURCE_TEST: online"),
        ("guess", r"expected MODEL\.VILD\.TEACHER\.SOURCE_TEST to be one of .* got 'guess'"),
    ],
)
def test_the_source_of_the_teachers_embeddings_is_checked(
    source: str, complaint: str, folder: Path, tmp_path: Path
) -> None:
    cfg = config(
        folder,
        tmp_path,
        MODEL__VILD__VARIANT="clip",
        MODEL__VILD__DISTILL__SOURCE="online",  # of training only
        MODEL__VILD__TEACHER__SOURCE_TEST=source,
        MODEL__LOAD_PROPOSALS=True,
        DATASETS__PROPOSAL_FILES_TEST=(str(folder / "proposals"),),
    )
    with pytest.raises(ValueError, match=complaint):
        build_test_loader(cfg, small_shapes.SEEN)


def test_clip_on_crops_needs_no_checkpoint_for_boxes(folder: Path, tmp_path: Path) -> None:
    cfg = config(
        folder,
        tmp_path,
        MODEL__WEIGHTS="",
        MODEL__VILD__VARIANT="clip",
        MODEL__LOAD_PROPOSALS=True,
        MODEL__PROPOSAL_GENERATOR__NAME="PrecomputedProposals",
        DATASETS__PROPOSAL_FILES_TEST=(str(folder / "store"),),
    )
    results = evaluate(cfg)
    assert set(results) == {"bbox"}
    assert results["bbox"]["AP"] > 1  # random weights, but the teacher knows the classes
    with pytest.raises(ValueError, match="a model with masks for --eval segm"):
        evaluate(cfg, tasks=("segm",))
