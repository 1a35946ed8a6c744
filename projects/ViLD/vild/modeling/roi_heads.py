"""ViLD's RoI heads: text classifier and embedding distillation in Detectron2's StandardROIHeads.

Shapes: N images, R regions over all of them, K classes, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import build_box_head
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.nn.functional import normalize

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.modeling.box_head import EmbeddingHead
from vild.modeling.losses import distillation_loss
from vild.modeling.meta_arch import ImagesWithRegions
from vild.modeling.output_layers import ViLDOutputLayers
from vild.modeling.precision import at_least_float32

VARIANTS = ("text", "image", "vild", "ensemble", "clip", "text_clip")
DISTILLED = ("image", "vild", "ensemble")  # those that learn from the teacher's region embeddings
WITH_TEACHER = ("clip", "text_clip")  # those that need its embeddings of the proposals to detect


@ROI_HEADS_REGISTRY.register()
class OptionalMaskROIHeads(StandardROIHeads):
    """Detectron2's heads for objects of which some have no mask.

    Those train the boxes; the mask loss is taken over the objects with a mask
    (``gt_has_mask`` of :class:`vild.data.ViLDDatasetMapper`; without it, over all).

    Regions are pooled from float32 features, also under autocast: Detectron2's RoIAlign rounds
    boxes to the type of the features, and bfloat16 moves coordinates by up to 2 pixels of 1024.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See :class:`detectron2.modeling.StandardROIHeads`."""
        return super().forward(images, _in_float32(features), proposals, targets)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training and self.mask_on:
            instances = [self._only_with_mask(p) for p in instances]
        found = super()._forward_mask(features, instances)
        if not self.training and self.mask_on:
            for predicted in found:
                # Detectron2 pastes masks in their own precision, and 16 bits round coordinates
                predicted.pred_masks = at_least_float32(predicted.pred_masks)
        return found

    def _only_with_mask(self, sampled: Instances) -> Instances:
        """Label regions of objects without a mask as background, which has no mask loss.

        Selecting the others here would make a GPU's host wait for each field.
        """
        if not sampled.has("gt_has_mask"):
            return sampled
        labelled = Instances(sampled.image_size, **sampled.get_fields())
        labelled.gt_classes = torch.where(sampled.gt_has_mask, sampled.gt_classes, self.num_classes)
        return labelled


@ROI_HEADS_REGISTRY.register()
class ViLDROIHeads(OptionalMaskROIHeads):
    """Box and mask heads of ViLD.

    =========  ==========================================  =======================================
    variant    one head or two                             scores
    =========  ==========================================  =======================================
    text       classified by text embeddings               softmax with background
    image      distilled                                   softmax without background
    vild       one head: classified, and distilled         softmax with background
    ensemble   a text head, and an image head of its own   both, fused by base and novel, sec. 3.4
    clip       none: the teacher on cropped regions        softmax without background
    text_clip  that of text, and the teacher on crops      both, fused
    =========  ==========================================  =======================================

    Boxes and masks are class-agnostic and learned from base objects in every variant; those of
    ``clip`` are the proposals themselves. Distilled regions take part in no loss but their own. The
    last two need proposals with ``teacher_embeddings`` (R, D) of each image.

    Args:
        variant: one of ``VARIANTS``.
        distill_weight: w of the distillation loss (sec. 3.3).
        image_head: the image branch of ``ensemble``.
        **kwargs: Detectron2's own; ``box_predictor`` is a :class:`ViLDOutputLayers`.

    Raises:
        ValueError: an unknown variant; an image head where there should be none, or the reverse;
            masks by class; training of later heads on predicted boxes; no precomputed proposals
            where the teacher's embeddings come with them.
    """

    box_predictor: ViLDOutputLayers
    output_layers = ViLDOutputLayers  # class of the box predictor

    @configurable
    def __init__(
        self,
        *,
        variant: str,
        distill_weight: float = 0.5,
        image_head: EmbeddingHead | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_variant(variant)
        if (image_head is not None) != (variant == "ensemble"):
            raise ValueError(
                "expected an image head in the variant 'ensemble' and in no other, got "
                f"{'one' if image_head is not None else 'none'} in {variant!r}"
            )
        if self.train_on_pred_boxes:
            raise ValueError("expected MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES: False")
        self.variant, self.distill_weight, self.image_head = variant, distill_weight, image_head
        self.num_classes = self.box_predictor.num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments from the configuration."""
        _check_variant(cfg.MODEL.VILD.VARIANT)
        if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
            raise ValueError(
                "expected class-agnostic masks, since the vocabulary may change: set "
                "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK: True"
            )
        if cfg.MODEL.VILD.VARIANT in WITH_TEACHER and not cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError(
                f"the variant {cfg.MODEL.VILD.VARIANT!r} takes proposals with the teacher's "
                "embeddings: expected MODEL.LOAD_PROPOSALS: True and "
                "MODEL.PROPOSAL_GENERATOR.NAME: PrecomputedProposals"
            )
        return {
            **super().from_config(cfg, input_shape),
            "variant": cfg.MODEL.VILD.VARIANT,
            "distill_weight": cfg.MODEL.VILD.DISTILL.WEIGHT,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        made = super()._init_box_head(cfg, input_shape)
        text = load_text_embeddings(cfg)
        shape = made["box_head"].output_shape
        made["box_predictor"] = cls.output_layers(cfg, shape, text_embeddings=text)
        if cfg.MODEL.VILD.VARIANT == "ensemble":
            size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            channels = input_shape[made["box_in_features"][0]].channels
            box_head = build_box_head(cfg, ShapeSpec(channels=channels, height=size, width=size))
            made["image_head"] = EmbeddingHead(box_head, text.dimension)
        return made

    @property
    def vocabulary(self) -> Vocabulary:
        """Names, synonyms and novel flags of the K classes that ``pred_classes`` counts."""
        return self.box_predictor.vocabulary

    @property
    def metadata(self) -> Metadata:
        """The vocabulary as Detectron2's Visualizer wants it; made anew at each use."""
        names, novel = self.vocabulary.names, self.vocabulary.novel
        return Metadata(name="vocabulary", thing_classes=list(names), novel=list(novel))

    def set_vocabulary(self, vocabulary: TextEmbeddings) -> None:
        """Detect other classes from now on: names, embeddings and novel flags change together.

        Args:
            vocabulary: K classes, 1 or more, embedded by the teacher that the model learned from.

        Raises:
            ValueError: embeddings of another D or of another teacher; nothing is changed then.
        """
        self.box_predictor.set_vocabulary(vocabulary)
        self.num_classes = self.box_predictor.num_classes

    def embed_regions(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Region embeddings in the teacher's space, those that a distilled variant has learned.

        Args:
            features: of the backbone.
            boxes: N Boxes of R regions in all, in pixels of the images.

        Returns:
            (R, D) of unit norm, float32: of the image head in ``ensemble``.

        Raises:
            ValueError: the variant ``clip``, whose embeddings are the teacher's own.
        """
        if self.variant == "clip":
            raise ValueError("the variant 'clip' has no head; its embeddings are the teacher's own")
        features = _in_float32(features)
        pooled = self.box_pooler([features[f] for f in self.box_in_features], boxes)
        if self.image_head is not None:
            return self.image_head(pooled)
        return self.box_predictor.projection(self.box_head(pooled).flatten(1))

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See :class:`detectron2.modeling.StandardROIHeads`.

        Raises:
            ValueError: training of a distilled variant, and the images come without regions.
        """
        if self.training and self.variant == "clip":
            raise ValueError("the variant 'clip' has nothing to learn: expected --eval-only")
        if not self.training or self.variant not in DISTILLED:
            return super().forward(images, features, proposals, targets)
        if not isinstance(images, ImagesWithRegions):
            raise ValueError(
                f"the variant {self.variant!r} learns from regions, and the images came without: "
                "expected MODEL.META_ARCHITECTURE: ViLDRCNN and a loader with `distill_regions` "
                "(vild.engine.build_train_loader with MODEL.VILD.DISTILL.STORE)"
            )
        features = _in_float32(features)
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._distilled_box_losses(features, proposals, images.regions)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def _distilled_box_losses(
        self, features: dict[str, Tensor], proposals: list[Instances], regions: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses of the box head or heads, of sampled proposals and of the teacher's regions."""
        levels = [features[f] for f in self.box_in_features]
        sampled = [p.proposal_boxes for p in proposals]
        given = [r.proposal_boxes for r in regions]
        if self.image_head is not None:
            box_features = self.box_head(self.box_pooler(levels, sampled))
            student = self.image_head(self.box_pooler(levels, given))
        else:
            # in one batch: all regions of the head share its normalisation's statistics [official]
            pairs = list(zip(sampled, given, strict=True))
            both = self.box_head(self.box_pooler(levels, [Boxes.cat(pair) for pair in pairs]))
            parts = both.split([len(boxes) for pair in pairs for boxes in pair])
            box_features = torch.cat(parts[0::2])
            student = self.box_predictor.projection(torch.cat(parts[1::2]).flatten(1))
        losses = self.box_predictor.losses(self.box_predictor(box_features), proposals)
        teacher = torch.cat([r.teacher_embeddings for r in regions])
        distillation = distillation_loss(student, teacher, world_mean=True)
        losses["loss_distill"] = distillation * self.distill_weight
        return losses

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        if self.training or self.variant in ("text", "image", "vild"):
            return super()._forward_box(features, proposals)
        if self.variant == "clip":
            teacher = _teacher_embeddings(proposals)
            predictions = teacher, teacher.new_zeros(len(teacher), 4)  # boxes stay as they are
            return self.box_predictor.inference(predictions, proposals)[0]
        pooled = self.box_pooler(
            [features[f] for f in self.box_in_features], [p.proposal_boxes for p in proposals]
        )
        if self.image_head is not None:
            image_embeddings = self.image_head(pooled)
        else:
            image_embeddings = _teacher_embeddings(proposals)
        predictions = self.box_predictor(self.box_head(pooled))
        return self.box_predictor.inference(predictions, proposals, image_embeddings)[0]


def _in_float32(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: at_least_float32(feature) for name, feature in features.items()}


def _teacher_embeddings(proposals: list[Instances]) -> Tensor:
    """(R, D) of unit norm, float32."""
    if not all(p.has("teacher_embeddings") for p in proposals):
        raise ValueError(
            "expected proposals with the teacher's embeddings: DATASETS.PROPOSAL_FILES_TEST has to "
            "name a store of tools/extract_image_embeddings.py, or one of proposals with "
            "MODEL.VILD.DISTILL.SOURCE: online"
        )
    return normalize(torch.cat([p.teacher_embeddings for p in proposals]).float(), dim=1)


def load_text_embeddings(cfg: CfgNode) -> TextEmbeddings:
    """The text embeddings that the configuration names.

    Raises:
        ValueError: none named, no such file, or one of another number of classes.
    """
    file = cfg.MODEL.VILD.TEXT_EMBEDDINGS
    if not file:
        raise ValueError(
            "expected MODEL.VILD.TEXT_EMBEDDINGS to name the text embeddings of the classes. Make "
            "them with tools/extract_text_embeddings.py --vocabulary DATASET --out FILE"
        )
    text = TextEmbeddings.load(file)
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(text.vocabulary) != expected:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {expected}, and {file} has {len(text.vocabulary)} "
            "classes: set it to that number, or name the embeddings of the classes that are meant"
        )
    return text


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"expected MODEL.VILD.VARIANT to be one of {VARIANTS}, got {variant!r}")
