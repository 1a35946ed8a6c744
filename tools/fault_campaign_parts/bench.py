"""Fixtures: images, a detector, stores and text embeddings, made by the project's commands.

Cases only read them; each case writes to a separate folder.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN_NET = "projects/ViLD/train_net.py"
TRAIN, VAL = "shapes_train_base", "shapes_val"
TRAIN_IMAGES, VAL_IMAGES = 8, 4
SHARD = 2  # images per shard, so that few images make several shards

# the benchmark's detector with narrow heads, on small images
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.CONV_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM"),
    *("64", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "40", "INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "TEST.DETECTIONS_PER_IMAGE", "10"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "DATALOADER.NUM_WORKERS", "0"),
)


def script(*words: object) -> Callable[[], None]:
    """Return a target that runs a script of the repository like ``python SCRIPT ARGUMENTS``."""
    program, *arguments = map(str, words)

    def target() -> None:
        sys.argv = [program, *arguments]
        runpy.run_path(str(ROOT / program), run_name="__main__")

    return target


def run_script(*words: object) -> None:
    """Run a script; SystemExit only if it fails."""
    try:
        script(*words)()
    except SystemExit as stop:
        if stop.code:
            raise


class Bench:
    """Paths of the fixtures, and the commands that use them.

    Args:
        folder: folder for all of them; the data root of Detectron2.

    Attributes:
        shapes: the dataset.
        text: text embeddings of the classes.
        proposals: store of the proposals of the training images.
        embeddings: store of region embeddings of the training images.
        baseline: checkpoint of the proposal detector.
        detector: checkpoint of ViLD-ensemble.
        results: detections of the validation images, in COCO's format.
        pickle: the proposals in Detectron2's format.
        converted: folder of a store that was imported from ``pickle``.
        image: a validation image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes = folder / "shapes"
        self.text = folder / "text.safetensors"
        self.proposals = folder / "proposals" / TRAIN
        self.embeddings = folder / "embeddings" / TRAIN
        self.baseline = folder / "rpn_baseline" / "model_final.pth"
        self.detector = folder / "ensemble" / "model_final.pth"
        self.results = folder / "evaluation" / "results.json"
        self.pickle = folder / "proposals.pkl"
        self.converted = folder / "converted"
        self.image = self.shapes / "val" / "000001.png"

    def options(self, *more: str) -> tuple[str, ...]:
        """Return KEY VALUE pairs of a small ViLD detector with these text embeddings."""
        return (*SMALL, "MODEL.VILD.TEXT_EMBEDDINGS", str(self.text), *more)

    def shapes_command(self, folder: Path, *more: str) -> tuple[str, ...]:
        """Return the command that makes the dataset."""
        counts = ("--train-images", str(TRAIN_IMAGES), "--val-images", str(VAL_IMAGES))
        return ("tools/make_shapes.py", "--out-dir", str(folder), *counts, *more)

    def text_command(self, file: Path, *more: str) -> tuple[str, ...]:
        """Return the command that embeds the class names."""
        return (
            *("tools/extract_text_embeddings.py", "--vocabulary", VAL, "--model", "vild-shapes"),
            *("--templates", "single", "--device", "cpu", "--out", str(file), *more),
        )

    def train_command(
        self, folder: Path, variant: str = "ensemble", steps: int = 3, *more: str
    ) -> tuple[str, ...]:
        """Return a training that checkpoints every step; ``rpn_baseline`` counts as a variant."""
        name = variant if variant == "rpn_baseline" else f"vild_{variant}"
        own: tuple[str, ...] = SMALL
        if variant != "rpn_baseline":
            own = self.options("MODEL.VILD.DISTILL.STORE", str(self.embeddings))
        return (
            *(TRAIN_NET, "--resume", "--config-file", f"configs/shapes/{name}.yaml"),
            *(*own, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "()"),
            *("SOLVER.MAX_ITER", str(steps), "SOLVER.CHECKPOINT_PERIOD", "1"),
            *("SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2"),
            *more,
        )

    def proposals_command(self, folder: Path, *more: str) -> tuple[str, ...]:
        """Return the command that extracts proposals of the training images."""
        return (
            *("tools/extract_proposals.py", "--config-file", "configs/shapes/rpn_baseline.yaml"),
            *("--weights", str(self.baseline), "--split", TRAIN, "--topk", "12"),
            *("--images-per-shard", str(SHARD), "--device", "cpu", "--out-dir", str(folder)),
            *(*more, *SMALL),
        )

    def embeddings_command(self, folder: Path, *more: str) -> tuple[str, ...]:
        """Return the command that embeds the regions of the training images."""
        return (
            *("tools/extract_image_embeddings.py", "--split", TRAIN, "--proposals"),
            *(str(self.proposals), "--regions", "8", "--model", "vild-shapes", "--pretrained", ""),
            *("--images-per-shard", str(SHARD), "--device", "cpu", "--out-dir", str(folder), *more),
        )

    def convert_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that imports proposals in Detectron2's format."""
        return (
            *("tools/convert_proposals.py", "--from-detectron2", str(self.pickle)),
            *("--allow-pickle", "--split", TRAIN, "--out-dir", str(folder)),
        )

    def evaluate_command(self, folder: Path, *more: str) -> tuple[str, ...]:
        """Return the evaluation on the validation images."""
        return (
            *(TRAIN_NET, "--eval-only", "--config-file", "configs/shapes/vild_ensemble.yaml"),
            *("--out", str(folder / "results.json"), *more, *self.options()),
            *("MODEL.WEIGHTS", str(self.detector), "OUTPUT_DIR", str(folder)),
        )

    def demo_command(self, folder: Path, *more: str) -> tuple[str, ...]:
        """Return the command that draws detections in the validation images."""
        return (
            *("tools/demo.py", "--config-file", "configs/shapes/vild_ensemble.yaml"),
            *("--input", str(self.shapes / "val"), "--output", str(folder / "drawn")),
            *("--results", str(folder / "found.json"), "--confidence-threshold", "0", *more),
            *("--opts", *self.options(), "MODEL.WEIGHTS", str(self.detector)),
        )

    def export_command(self, folder: Path, *more: str) -> tuple[str, ...]:
        """Return the command that exports the detector."""
        return (
            *("tools/export_model.py", "--config-file", "configs/shapes/vild_ensemble.yaml"),
            *("--sample-image", str(self.image), "--repeats", "1", "--format", "torchscript"),
            *("--output", str(folder / "exported"), *more),
            *("--opts", *self.options(), "MODEL.WEIGHTS", str(self.detector)),
        )

    def stages(self) -> Sequence[tuple[str, ...]]:
        """Return the commands that make the fixtures, in order."""
        pickle = ("--to-detectron2", str(self.pickle))
        return (
            self.shapes_command(self.shapes, "--workers", "1"),
            self.text_command(self.text),
            self.train_command(self.baseline.parent, "rpn_baseline", 2),
            self.proposals_command(self.proposals.parent),
            ("tools/convert_proposals.py", "--store", str(self.proposals), *pickle),
            self.convert_command(self.converted),
            self.embeddings_command(self.embeddings.parent),
            self.train_command(self.detector.parent, "ensemble", 2),
            self.evaluate_command(self.results.parent),
        )


def prepare(folder: Path) -> Bench:
    """Register the datasets of a fixture folder in this process, before the first fork."""
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    # imported lazily by many commands: once here instead of in each child
    for name in ("detectron2.utils.visualizer", "lvis", "open_clip"):
        importlib.import_module(name)
    from vild.data import register_from_arguments

    class Arguments:
        data_root, dataset_yaml = folder, ()

    register_from_arguments(Arguments)  # type: ignore[arg-type]
    return Bench(folder)
