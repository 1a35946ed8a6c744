"""The output layers: class scores from text embeddings, and class-agnostic boxes.

Shapes: N images, R regions in the whole batch (Ri in image i), K classes, D embedding. Logits are
(R, K + 1), background last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from vild.embeddings import TextEmbeddings
from vild.modeling.box_head import Projection, flat_channels
from vild.modeling.classifier import TextClassifier
from vild.modeling.fusion import fuse_scores
from vild.modeling.losses import classification_loss
from vild.modeling.selection import select_from_chunks
from vild.modeling.variants import find_variant

# entries of (R, K) in memory at a time during inference: 16 MB fit a CPU's cache; a GPU processes
# 1000 regions and 32,000 classes at once
MAX_SCORES, MAX_SCORES_GPU = 2**22, 2**25

Predictions = tuple[Tensor, Tensor]


class ViLDOutputLayers(FastRCNNOutputLayers):
    """Detectron2's FastRCNNOutputLayers with a text classifier instead of the linear one.

    Args:
        input_shape: shape of the box head's features.
        text_embeddings: the initial vocabulary; :meth:`set_vocabulary` replaces it.
        background: whether the classifier has a background (not in ViLD-image and CLIP on crops).
        temperature: tau; None takes the temperature of the text embeddings, set by their teacher.
        fusion_weights: weights of the text head's probabilities for base and for novel classes
            (ViLD-ensemble, sec. 3.4).
        use_objectness: whether a score is the geometric mean of class probability and objectness.
        zero_shot: whether training excludes novel classes from the softmax.
        **kwargs: arguments of FastRCNNOutputLayers.

    Attributes:
        vocabulary: K names, synonyms and novel flags.
        num_classes: K.
        teacher: fingerprint of the teacher; empty if unknown.

    Raises:
        ValueError: boxes are class-specific, which a changing vocabulary rules out; or a fusion
            weight is outside [0, 1].
    """

    novel: Tensor

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        text_embeddings: TextEmbeddings,
        background: bool = True,
        temperature: float | None = None,
        fusion_weights: Sequence[float] = (2 / 3, 1 / 3),
        use_objectness: bool = False,
        zero_shot: bool = True,
        cls_agnostic_bbox_reg: bool = True,
        **kwargs: Any,
    ) -> None:
        if not cls_agnostic_bbox_reg:
            raise ValueError(
                "expected class-agnostic boxes, since the vocabulary may change: set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: True"
            )
        if len(fusion_weights) != 2 or not all(0 <= weight <= 1 for weight in fusion_weights):
            raise ValueError(
                "expected two weights in [0, 1] as MODEL.VILD.FUSION_WEIGHTS, for base and for "
                f"novel classes, got {list(fusion_weights)}"
            )
        super().__init__(input_shape, num_classes=1, cls_agnostic_bbox_reg=True, **kwargs)
        del self.cls_score
        dimension = text_embeddings.dimension
        self.projection = Projection(flat_channels(input_shape), dimension)
        self.classifier = TextClassifier(
            dimension=dimension,
            temperature=temperature or text_embeddings.temperature,
            background=background,
        )
        self.register_buffer("novel", torch.empty(0, dtype=torch.bool), persistent=False)
        self.temperature, self.fusion_weights = temperature, tuple(fusion_weights)
        self.use_objectness, self.zero_shot = use_objectness, zero_shot
        self.teacher = text_embeddings.fingerprint
        self.set_vocabulary(text_embeddings)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read the arguments from the configuration; the caller loads the text embeddings."""
        found = super().from_config(cfg, input_shape)
        del found["num_classes"]  # given by the text embeddings
        vild = cfg.MODEL.VILD
        return {
            **found,
            "background": find_variant(vild.VARIANT).background,
            "temperature": vild.TEMPERATURE or None,
            "fusion_weights": vild.FUSION_WEIGHTS,
            "use_objectness": vild.OBJECTNESS,
            "zero_shot": vild.ZERO_SHOT,
        }

    def set_vocabulary(self, text_embeddings: TextEmbeddings) -> None:
        """Replace the vocabulary.

        Raises:
            ValueError: another type than TextEmbeddings, another D, or another teacher.
        """
        if not isinstance(text_embeddings, TextEmbeddings):
            raise ValueError(
                "expected TextEmbeddings, which keep names, novel flags and embeddings together, "
                f"got {type(text_embeddings).__name__}; make them with "
                "vild.embeddings.embed_vocabulary"
            )
        vocabulary, fingerprint = text_embeddings.vocabulary, text_embeddings.fingerprint
        if fingerprint and self.teacher and fingerprint != self.teacher:
            raise ValueError(
                f"expected text embeddings of the model's teacher (weights {self.teacher[:12]}), "
                f"got those of {text_embeddings.teacher} (weights {fingerprint[:12]}): embeddings "
                "of different teachers cannot be compared. Make them with the model's teacher"
            )
        temperature = self.temperature or text_embeddings.temperature
        self.classifier.set_text(text_embeddings.embeddings, temperature)
        self.novel = torch.tensor(vocabulary.novel, device=self.novel.device)
        self.vocabulary, self.num_classes = vocabulary, len(vocabulary)
        self.teacher = self.teacher or fingerprint

    def forward(self, x: Tensor) -> Predictions:
        """Return region embeddings and box deltas; logits are computed later, in chunks.

        Args:
            x: features (R, ...) of a box head.

        Returns:
            Region embeddings (R, D) float32, L2-normalised, and box deltas (R, 4).
        """
        x = x.flatten(1)
        return self.projection(x), self.bbox_pred(x)

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Compute the losses of the sampled regions.

        Args:
            predictions: the output of :meth:`forward`.
            proposals: N Instances with ``proposal_boxes``, ``gt_classes`` and, if the image has
                objects, ``gt_boxes``.

        Returns:
            ``loss_box_reg`` and, except in ViLD-image, ``loss_cls``.

        Raises:
            ValueError: a novel class is the target of a region in zero-shot training.
        """
        embeddings, deltas = predictions
        targets = cat([p.gt_classes for p in proposals])
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # an image without objects has no gt_boxes; its regions are all background
        goals = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        losses = {"loss_box_reg": self.box_reg_loss(boxes, cat(goals), deltas, targets)}
        if self.classifier.background is not None:
            logits = self.classifier(embeddings)
            novel = self.novel if self.zero_shot else None
            losses["loss_cls"] = classification_loss(logits, targets, novel)
            _log_accuracy(_without_novel(logits.detach(), novel), targets)
        return {key: loss * self.loss_weight.get(key, 1.0) for key, loss in losses.items()}

    def inference(
        self,
        predictions: Predictions,
        proposals: list[Instances],
        image_embeddings: Tensor | None = None,
    ) -> tuple[list[Instances], list[Tensor]]:
        """Select the detections of each image.

        Args:
            predictions: the output of :meth:`forward`.
            proposals: N Instances with ``proposal_boxes`` and ``objectness_logits``.
            image_embeddings: (R, D) of the image head, whose scores are fused (ViLD-ensemble).

        Returns:
            N Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, best first; and per
            image the region index of each detection, (Mi,) int64.
        """
        counts = [len(p) for p in proposals]
        boxes = self.predict_boxes(predictions, proposals)
        text = predictions[0].split(counts)
        image = [None] * len(counts) if image_embeddings is None else image_embeddings.split(counts)
        results, regions = [], []
        for n, proposal in enumerate(proposals):
            chunks = self._score_chunks(text[n], image[n], proposal)
            found = self.select(boxes[n], chunks, proposal.image_size)
            result = Instances(proposal.image_size)
            result.pred_boxes = Boxes(found[0])
            result.scores, result.pred_classes = found[1], found[2]
            results.append(result)
            regions.append(found[3])
        return results, regions

    def select(
        self, boxes: Tensor, chunks: Iterable[Tensor], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Select the detections of an image; see :func:`vild.modeling.select_from_chunks`.

        Args:
            boxes: (R, 4).
            chunks: scores (r, K), R rows in total.
            image_size: height, width.

        Returns:
            boxes (M, 4), scores (M,), classes (M,) and regions (M,), best first.
        """
        limits = (self.test_score_thresh, self.test_nms_thresh, self.test_topk_per_image)
        return select_from_chunks(boxes, chunks, image_size, *limits)

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Return probabilities (Ri, K + 1), background last; it is 0 in ViLD-image.

        For callers of Detectron2's interface; :meth:`inference` computes them in chunks.
        """
        has_background = self.classifier.background is not None
        probs = self.classifier(predictions[0], background=has_background).softmax(1)
        if not has_background:
            probs = torch.cat([probs, probs.new_zeros(len(probs), 1)], dim=1)
        return list(probs.split([len(p) for p in proposals]))

    def _score_chunks(
        self, text: Tensor, image: Tensor | None, proposals: Instances
    ) -> Iterator[Tensor]:
        """Yield scores (r, K) of one image's regions, in chunks."""
        size = max(1, (MAX_SCORES_GPU if text.is_cuda else MAX_SCORES) // self.num_classes)
        for start in range(0, len(proposals), size):
            rows = slice(start, start + size)
            scores = self.class_scores(text[rows], None if image is None else image[rows])
            yield self.with_objectness(scores, proposals[rows])

    def with_objectness(self, scores: Tensor, proposals: Instances) -> Tensor:
        """Combine scores (R, K) with ``objectness_logits`` (R,) if ``use_objectness`` is set."""
        if not self.use_objectness:
            return scores
        return (scores * proposals.objectness_logits.float().sigmoid()[:, None]).sqrt()

    def class_scores(
        self,
        text: Tensor,
        image: Tensor | None = None,
        *,
        classes: Tensor | None = None,
        novel: Tensor | None = None,
    ) -> Tensor:
        """Compute the class scores of regions.

        Args:
            text: (R, D) region embeddings of the text head, or of the only head.
            image: (R, D) region embeddings of the image head (ViLD-ensemble).
            classes: (K, D) text embeddings; the vocabulary's by default.
            novel: (K,) bool, which classes are novel (ViLD-ensemble); the vocabulary's by default.

        Returns:
            (R, K) float32: softmax with background, without the background column; in ViLD-image
            softmax without background; both fused in ViLD-ensemble.
        """
        if self.classifier.background is None:
            return self.classifier(text, background=False, text=classes).softmax(1)
        probs = self.classifier(text, text=classes).softmax(1)[:, :-1]
        if image is None:
            return probs
        image_probs = self.classifier(image, background=False, text=classes).softmax(1)
        novel = self.novel if novel is None else novel
        return fuse_scores(probs, image_probs, novel, *self.fusion_weights)


def _without_novel(logits: Tensor, novel: Tensor | None) -> Tensor:
    if novel is None:
        return logits
    return torch.cat([logits[:, :-1].masked_fill(novel, -torch.inf), logits[:, -1:]], dim=1)


def _log_accuracy(logits: Tensor, targets: Tensor) -> None:
    """Log Detectron2's classification metrics under the same names.

    The host waits for the GPU once instead of six times.

    Args:
        logits: (R, K + 1).
        targets: (R,) in [0, K].
    """
    if not len(targets):
        return
    predicted, background = logits.argmax(dim=1), logits.shape[1] - 1
    objects, correct = targets < background, predicted == targets
    masks = [correct, objects, objects & correct, objects & (predicted == background)]
    right, found, found_right, missed = torch.stack(masks).sum(dim=1).tolist()
    storage = get_event_storage()
    storage.put_scalar("fast_rcnn/cls_accuracy", right / len(targets))
    if found:
        storage.put_scalar("fast_rcnn/fg_cls_accuracy", found_right / found)
        storage.put_scalar("fast_rcnn/false_negative", missed / found)
