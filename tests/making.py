"""Text embeddings without a teacher and images without files, for tests of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional

from vild.config import read_config
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.modeling import VARIANTS

CONFIGS = Path(__file__).parents[1] / "configs"
LEARNED = [name for name, variant in VARIANTS.items() if not variant.teacher_at_test]
DISTILLED = [name for name, variant in VARIANTS.items() if variant.distilled]


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=1)


def text_embeddings(
    classes: int | Sequence[str],
    dimension: int = 16,
    *,
    novel: Sequence[str] = (),
    temperature: float = 0.05,
    fingerprint: str = "",
    seed: int = 0,
) -> TextEmbeddings:
    """Random rows for named or numbered classes."""
    names = [f"class {n}" for n in range(classes)] if isinstance(classes, int) else classes
    return TextEmbeddings(
        unit_rows(len(names), dimension, seed=seed),
        Vocabulary.from_names(names, novel),
        temperature,
        "stub",
        fingerprint,
    )


def mapped_image(
    objects: int = 2,
    regions: int = 3,
    *,
    side: int = 96,
    classes: Sequence[int] = (0,),
    dimension: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """What ViLDDatasetMapper gives of an image: objects of ``classes`` in turn, and regions."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(number: int) -> Boxes:
        corner = torch.rand(number, 2, generator=generator) * side * 0.5
        size = (torch.rand(number, 2, generator=generator) * 0.3 + 0.15) * side
        return Boxes(torch.cat([corner, corner + size], dim=1))

    image = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
    instances = Instances((side, side))
    instances.gt_boxes = boxes(objects)
    instances.gt_classes = torch.tensor([classes[n % len(classes)] for n in range(objects)]).long()
    masks = torch.zeros(objects, side, side, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, instances.gt_boxes.tensor.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    instances.gt_masks = BitMasks(masks)
    given = Instances((side, side))
    given.proposal_boxes = boxes(regions)
    given.teacher_embeddings = unit_rows(regions, dimension, seed=seed)
    return {
        "image": image,
        "height": side,
        "width": side,
        "instances": instances,
        "distill_regions": given,
    }


def with_proposals(mapped: dict[str, Any]) -> dict[str, Any]:
    """The regions of a mapped image as its precomputed proposals."""
    given = mapped["distill_regions"]
    proposals = Instances(given.image_size)
    proposals.proposal_boxes = given.proposal_boxes
    proposals.objectness_logits = torch.linspace(2, -2, len(given))
    proposals.teacher_embeddings = given.teacher_embeddings
    return {**mapped, "proposals": proposals}


def tiny_config(folder: Path, variant: str, text: TextEmbeddings, *changes: Any) -> CfgNode:
    """A detector that takes a step on a small image in a tenth of a second."""
    cfg = read_config(CONFIGS / "shapes" / f"vild_{variant}.yaml")
    file = folder / f"text{len(text.vocabulary)}.safetensors"
    text.save(file)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.VILD.TEXT_EMBEDDINGS", str(file)),
            *("MODEL.ROI_HEADS.NUM_CLASSES", len(text.vocabulary)),
            *("MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
            *("MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_MASK_HEAD.NORM", "GN"),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
            *("INPUT.MIN_SIZE_TEST", 96, "TEST.DETECTIONS_PER_IMAGE", 20),
            *changes,
        ]
    )
    return cfg


def tiny_model(folder: Path, variant: str, text: TextEmbeddings, *changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(tiny_config(folder, variant, text, *changes))
