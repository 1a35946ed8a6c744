"""The RoI heads of ViLD: Detectron2's StandardROIHeads with a text classifier and distillation.

Shapes: N images, R regions in the whole batch (Ri in image i), K classes, D embedding.
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
from vild.modeling.float32 import at_least_float32
from vild.modeling.losses import distillation_loss
from vild.modeling.meta_arch import ImagesWithRegions
from vild.modeling.output_layers import ViLDOutputLayers
from vild.modeling.text_embeddings import load_text_embeddings
from vild.modeling.variants import find_variant


@ROI_HEADS_REGISTRY.register()
class OptionalMaskROIHeads(StandardROIHeads):
    """StandardROIHeads that also train on objects without a mask.

    All objects train the box head; only objects with a mask enter the mask loss, according to
    ``gt_has_mask`` of :class:`vild.data.ViLDDatasetMapper`. Without that field, all objects do.

    Features are pooled in float32 even under autocast: Detectron2's RoIAlign casts the boxes to
    the dtype of the features, and in bfloat16 a coordinate from 512 to 1024 is off by up to 2
    pixels, a larger one by more.
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
            instances = [self._label_maskless_as_background(p) for p in instances]
        output = super()._forward_mask(features, instances)
        if not self.training and self.mask_on:
            for predicted in output:
                # Detectron2 pastes masks in the masks' dtype; 16 bits would round the coordinates
                predicted.pred_masks = at_least_float32(predicted.pred_masks)
        return output

    def _label_maskless_as_background(self, sampled: Instances) -> Instances:
        """Label regions of objects without a mask as background, which has no mask loss.

        Dropping these regions instead would synchronise the GPU once per field.
        """
        if not sampled.has("gt_has_mask"):
            return sampled
        labelled = Instances(sampled.image_size, **sampled.get_fields())
        labelled.gt_classes = torch.where(sampled.gt_has_mask, sampled.gt_classes, self.num_classes)
        return labelled


@ROI_HEADS_REGISTRY.register()
class ViLDROIHeads(OptionalMaskROIHeads):
    """Box and mask heads of ViLD, in six variants (:mod:`vild.modeling.variants`).

    =========  ==========================================  =======================================
    variant    classification heads                        class scores
    =========  ==========================================  =======================================
    text       one head, trained on class labels           softmax with background
    image      one head, trained by distillation           softmax without background
    vild       one head, trained with both losses          softmax with background
    ensemble   a text head and a separate image head       those of both heads, fused with other
                                                           weights for novel classes (sec. 3.4)
    clip       none: the teacher classifies crops          softmax without background
    text_clip  a text head; the teacher classifies crops   as in ensemble, with the teacher in place
                                                           of the image head
    =========  ==========================================  =======================================

    Boxes and masks are class-agnostic and learned from annotated objects; ``clip`` is not trained
    and returns the proposals as boxes. The regions for distillation contribute to the distillation
    loss only. ``clip`` and ``text_clip`` need proposals with ``teacher_embeddings`` (Ri, D).

    Args:
        variant: a key of :data:`vild.modeling.VARIANTS`.
        distill_weight: w of the distillation loss (sec. 3.3).
        image_head: the image head of ``ensemble``; None in all other variants.
        **kwargs: arguments of StandardROIHeads; ``box_predictor`` is a :class:`ViLDOutputLayers`.

    Raises:
        ValueError: the variant is unknown; an image head is missing from ``ensemble`` or given to
            another variant; or ``train_on_pred_boxes`` is set.
    """

    box_predictor: ViLDOutputLayers
    box_predictor_class: type[ViLDOutputLayers] = ViLDOutputLayers

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
        self.variant = find_variant(variant)
        if (image_head is not None) != self.variant.image_head:
            raise ValueError(
                f"expected {'an' if self.variant.image_head else 'no'} image head in the variant "
                f"{variant!r}, got {'one' if image_head is not None else 'none'}"
            )
        if self.train_on_pred_boxes:
            raise ValueError(
                "expected MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES: False, got True, which "
                "ViLDROIHeads does not support"
            )
        self.distill_weight, self.image_head = distill_weight, image_head
        # the text embeddings decide, not num_classes in kwargs
        self.num_classes = self.box_predictor.num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from the configuration.

        Raises:
            ValueError: masks are class-specific; or a variant that needs the teacher's embeddings
                is configured without precomputed proposals.
        """
        variant = find_variant(cfg.MODEL.VILD.VARIANT)
        if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
            raise ValueError(
                "expected class-agnostic masks, since the vocabulary may change: set "
                "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK: True"
            )
        if variant.teacher_at_test and not cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError(
                f"the variant {variant.name!r} detects with the teacher's embeddings of "
                "precomputed proposals: expected MODEL.LOAD_PROPOSALS: True and "
                "MODEL.PROPOSAL_GENERATOR.NAME: PrecomputedProposals"
            )
        return {
            **super().from_config(cfg, input_shape),
            "variant": variant.name,
            "distill_weight": cfg.MODEL.VILD.DISTILL.WEIGHT,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        args = super()._init_box_head(cfg, input_shape)
        text_embeddings = load_text_embeddings(cfg)
        args["box_predictor"] = cls.box_predictor_class(
            cfg, args["box_head"].output_shape, text_embeddings=text_embeddings
        )
        if find_variant(cfg.MODEL.VILD.VARIANT).image_head:
            size = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            channels = input_shape[args["box_in_features"][0]].channels
            shape = ShapeSpec(channels=channels, height=size, width=size)
            image_box_head = build_box_head(cfg, shape)
            args["image_head"] = EmbeddingHead(image_box_head, text_embeddings.dimension)
        return args

    @property
    def vocabulary(self) -> Vocabulary:
        """Names, synonyms and novel flags of the K classes, indexed by ``pred_classes``."""
        return self.box_predictor.vocabulary

    @property
    def metadata(self) -> Metadata:
        """Metadata of the current vocabulary for Detectron2's Visualizer, built on each access."""
        names, novel = self.vocabulary.names, self.vocabulary.novel
        return Metadata(name="vocabulary", thing_classes=list(names), novel=list(novel))

    def set_vocabulary(self, text_embeddings: TextEmbeddings) -> None:
        """Replace the vocabulary: class names, text embeddings and novel flags change together.

        Args:
            text_embeddings: K >= 1 classes, embedded by the model's teacher.

        Raises:
            ValueError: the embeddings have a different D or come from a different teacher, as far
                as both teachers are recorded. The vocabulary is then unchanged.
        """
        self.box_predictor.set_vocabulary(text_embeddings)
        self.num_classes = self.box_predictor.num_classes

    def embed_regions(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Compute region embeddings in the teacher's embedding space.

        Args:
            features: feature maps of the backbone.
            boxes: N Boxes with R regions in total, in pixels of the images at the model's input.

        Returns:
            (R, D) float32, L2-normalised; from the image head in ``ensemble``, otherwise from the
            only head.

        Raises:
            ValueError: the variant is ``clip``, whose box head is not trained.
        """
        if not self.variant.trained:
            raise ValueError(
                "expected a trained box head to compute region embeddings, got the variant "
                f"{self.variant.name!r}, whose box head is built but untrained: use a detector of "
                "another variant"
            )
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
            ValueError: ``clip`` is trained, or a distilled variant is trained on images without
                regions for distillation.
        """
        if self.training and not self.variant.trained:
            raise ValueError(
                f"the variant {self.variant.name!r} cannot be trained: expected --eval-only"
            )
        if not self.training or not self.variant.distilled:
            return super().forward(images, features, proposals, targets)
        if not isinstance(images, ImagesWithRegions):
            raise ValueError(
                f"the variant {self.variant.name!r} needs regions for distillation, got images "
                "without them: set MODEL.META_ARCHITECTURE: ViLDRCNN and load data with "
                "vild.engine.build_train_loader"
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
        """Compute the losses of the sampled proposals and of the regions for distillation."""
        levels = [features[f] for f in self.box_in_features]
        sampled_boxes = [p.proposal_boxes for p in proposals]
        distill_boxes = [r.proposal_boxes for r in regions]
        if self.image_head is not None:
            box_features = self.box_head(self.box_pooler(levels, sampled_boxes))
            student = self.image_head(self.box_pooler(levels, distill_boxes))
        else:
            # One batch for both, as in the official code: they share batch norm statistics.
            # In turn: the sampled and the distilled regions of image 1, of image 2, ...
            pairs = list(zip(sampled_boxes, distill_boxes, strict=True))
            both = self.box_head(self.box_pooler(levels, [Boxes.cat(pair) for pair in pairs]))
            parts = both.split([len(boxes) for pair in pairs for boxes in pair])
            box_features = torch.cat(parts[0::2])
            student = self.box_predictor.projection(torch.cat(parts[1::2]).flatten(1))
        losses = self.box_predictor.losses(self.box_predictor(box_features), proposals)
        teacher = torch.cat([r.teacher_embeddings for r in regions])
        # ranks with few regions would otherwise count as much as those with many
        distillation = distillation_loss(student, teacher, mean_over_ranks=True)
        losses["loss_distill"] = distillation * self.distill_weight
        return losses

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        needs_image_embeddings = self.variant.image_head or self.variant.teacher_at_test
        if self.training or not needs_image_embeddings:
            return super()._forward_box(features, proposals)
        if not self.variant.trained:
            teacher = _teacher_embeddings(proposals)
            # zero deltas: the proposals are the boxes
            predictions = teacher, teacher.new_zeros(len(teacher), 4)
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
    """Return the teacher's embeddings of all proposals, (R, D) float32, L2-normalised."""
    if not all(p.has("teacher_embeddings") for p in proposals):
        raise ValueError(
            "expected proposals with the teacher's embeddings, got proposals without them: set "
            "DATASETS.PROPOSAL_FILES_TEST to a store of tools/extract_image_embeddings.py, or to a "
            "proposal store with MODEL.VILD.TEACHER.SOURCE_TEST: online"
        )
    return normalize(torch.cat([p.teacher_embeddings for p in proposals]).float(), dim=1)
