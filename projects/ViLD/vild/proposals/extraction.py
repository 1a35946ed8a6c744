"""Extract class-agnostic proposals of every image of a split with a trained detector.

Loader threads read and resize images while the detector runs. The detector processes one image at
a time: batching changes its results in the last bits, even without additional padding, and thus
which proposals are kept.

Shapes: R regions of an image, (H, W) its size, (h, w) the size after resizing. Boxes are xyxy in
pixels of the original image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torchvision.ops import nms
from tqdm import tqdm

from vild.data.augmentations import ResizeShortestEdge
from vild.data.images import UnreadableImageError, read_image
from vild.precision import autocast, resolve_precision
from vild.proposals.store import Proposals
from vild.storage import StoreWriter, log_failing_image, map_ahead

logger = logging.getLogger(__name__)

SOURCES = ("rpn", "detector")
# multiple of ``limit`` that the RPN keeps before the NMS over all levels and the final selection
BEFORE_NMS = 5
PROBABILITY_MARGIN = 1e-6  # avoids infinite logits for scores of exactly 0 and 1


class PreparedImage(NamedTuple):
    """An image for the detector: its resized pixels and its original size.

    Pixels are (3, h, w) uint8, channels in the order of ``INPUT.FORMAT``; height and width are
    those of the original image, in pixels.
    """

    pixels: Tensor
    height: int
    width: int


class ProposalExtractor:
    """Computes the proposals of images.

    Args:
        cfg: configuration of the detector, including this project's keys.
        load: loads weights into the given model, such as :func:`vild.modeling.load_weights` with a
            path. Parameters that it does not load keep random values drawn from ``cfg.SEED``.
        source: ``rpn``: boxes of the region proposal network, ranked by objectness;
            ``detector``: boxes of a class-agnostic detector (``NUM_CLASSES: 1``), refined by its
            box head and ranked by its score.
        nms_threshold: IoU threshold of the class-agnostic NMS.
        limit: maximum number of proposals per image.
        precision: see :func:`vild.precision.resolve_precision`.
        device: where to compute.

    Raises:
        ValueError: unknown source or precision, a detector of several classes, numbers out of
            range, or an error of ``load``.
    """

    def __init__(
        self,
        cfg: CfgNode,
        load: Callable[[nn.Module], None],
        *,
        source: str = "rpn",
        nms_threshold: float = 0.9,
        limit: int = 1000,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        if source not in SOURCES:
            raise ValueError(f"expected a source of {SOURCES}, got {source!r}")
        if not 0 < nms_threshold <= 1 or limit < 1:
            raise ValueError(
                "expected an NMS threshold in (0, 1] and a limit of 1 or more, got "
                f"{nms_threshold} and {limit}"
            )
        self.source, self.nms_threshold, self.limit = source, nms_threshold, limit
        self.precision = resolve_precision(precision, device)
        self._cfg = self._inference_config(cfg.clone(), device)
        torch.manual_seed(max(cfg.SEED, 0))  # same random weights in every process
        self._model = build_model(self._cfg).eval()
        load(self._model)
        size = cfg.INPUT
        self._resize = ResizeShortestEdge(size.MIN_SIZE_TEST, size.MAX_SIZE_TEST)

    def _inference_config(self, cfg: CfgNode, device: str) -> CfgNode:
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        cfg.MODEL.MASK_ON = False
        if self.source == "rpn":
            if cfg.MODEL.META_ARCHITECTURE == "OfficialViLDRCNN":
                raise ValueError(
                    "expected a model that gets resized images, got OfficialViLDRCNN, which "
                    "resizes them itself: use configs/LVIS/rpn_baseline_r50_fpn.yaml for proposals"
                )
            cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
            cfg.MODEL.RPN.NMS_THRESH = self.nms_threshold
            # the RPN runs NMS per level, so more proposals must pass it than are kept in the end
            cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = max(cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, self.limit)
            cfg.MODEL.RPN.POST_NMS_TOPK_TEST = BEFORE_NMS * self.limit
            return cfg
        if cfg.MODEL.ROI_HEADS.NUM_CLASSES != 1:
            raise ValueError(
                "expected a class-agnostic detector (MODEL.ROI_HEADS.NUM_CLASSES: 1) as source "
                f"'detector', got {cfg.MODEL.ROI_HEADS.NUM_CLASSES} classes; use --source rpn"
            )
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = self.nms_threshold
        cfg.TEST.DETECTIONS_PER_IMAGE = self.limit
        return cfg

    def describe(self) -> dict[str, Any]:
        """Return the settings that define the proposals; recorded in their store."""
        config = self._cfg.clone()
        config.MODEL.DEVICE = config.MODEL.WEIGHTS = ""  # locations do not affect the proposals
        described = f"{config.MODEL.dump()}{config.INPUT.dump()}"
        digest = hashlib.sha256()
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        # fp32 is not recorded: stores from before this option were made with it
        precision = {} if self.precision == "fp32" else {"precision": self.precision}
        return {
            "config_sha256": hashlib.sha256(described.encode()).hexdigest(),
            "weights_sha256": digest.hexdigest(),
            "from": self.source,
            "nms_threshold": self.nms_threshold,
            "limit": self.limit,
            **precision,
        }

    def __call__(self, image: np.ndarray) -> Proposals:
        """Return the proposals of one image (H, W, 3) uint8 RGB; see :meth:`propose`."""
        return self.propose(self.prepare(image))

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Resize an image for the detector; safe to call from several threads.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        height, width = image.shape[:2]
        pixels = self._resize.get_transform(image).apply_image(image).transpose(2, 0, 1)
        if self._cfg.INPUT.FORMAT == "BGR":
            pixels = pixels[::-1]
        return PreparedImage(torch.from_numpy(np.ascontiguousarray(pixels)), height, width)

    @torch.inference_mode()
    def propose(self, image: PreparedImage) -> Proposals:
        """Return up to ``limit`` proposals of one image, on the CPU, best first."""
        # Detectron2's models move the uint8 pixels to the device and convert them there
        inputs = {"image": image.pixels, "height": image.height, "width": image.width}
        with autocast(self.precision, self._cfg.MODEL.DEVICE):
            (output,) = self._model([inputs])
        if self.source == "rpn":
            found = output["proposals"]
            boxes, objectness = found.proposal_boxes.tensor, found.objectness_logits
        else:
            found = output["instances"]
            margin = PROBABILITY_MARGIN
            boxes, objectness = found.pred_boxes.tensor, found.scores.logit(margin)
        boxes, objectness = boxes.float(), objectness.float()
        # ignore boxes that are empty except for rounding errors
        whole = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & objectness.isfinite()
        boxes, objectness = boxes[whole], objectness[whole]
        order = objectness.argsort(descending=True, stable=True)
        boxes, objectness = boxes[order], objectness[order]
        kept = nms(boxes, objectness, self.nms_threshold)[: self.limit]
        kept = kept.sort().values  # restore our stable order: torchvision's sort is not stable
        return Proposals(boxes[kept].cpu(), objectness[kept].cpu())


def extract_proposals(
    extractor: ProposalExtractor,
    writer: StoreWriter,
    files: Mapping[int | str, str | Path],
    *,
    rank: int = 0,
    world_size: int = 1,
    threads: int = 2,
    progress: bool = True,
) -> None:
    """Write the proposals of one rank's part of the images.

    Unreadable images are recorded as failed. Other errors stop the extraction, and the log names
    the image. The store does not depend on the number of threads.

    Args:
        extractor: computes the proposals.
        writer: the store.
        files: image file of every image id.
        rank: rank of this process.
        world_size: number of processes.
        threads: number of threads that read and resize images.
        progress: show a progress bar.
    """

    def load(path: str | Path) -> PreparedImage:
        return extractor.prepare(read_image(path))

    shards = writer.pending(rank, world_size)
    total = sum(len(writer.images_of(shard)) for shard in shards)
    with tqdm(total=total, unit="img", desc=f"rank {rank}", disable=not progress) as bar:
        for number in shards:
            with writer.shard(number) as builder:
                loading = map_ahead(load, [files[image] for image in builder.images], threads)
                for image_id, future in zip(builder.images, loading, strict=True):
                    with log_failing_image(image_id, files[image_id]):
                        try:
                            image = future.result()
                        except (UnreadableImageError, MemoryError) as error:
                            reason = str(error) or f"not enough memory to read {files[image_id]}"
                            logger.warning("image %s: %s", image_id, reason)
                            builder.fail(image_id, reason)
                        else:
                            found = extractor.propose(image)
                            builder.add(image_id, image.height, image.width, found._asdict())
                    bar.update()
