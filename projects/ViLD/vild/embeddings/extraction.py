"""Compute the region embeddings of every image of a split: read, crop, embed, store.

A separate thread reads and crops ahead of the encoder, across shards. Another thread hashes and
writes a finished shard while the next one is encoded. The encoder's batches are filled across
images, but not across shards, so a shard does not depend on which other shards a run computes.

Shapes: R regions of an image, S crop size, D embedding.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vild.data.images import UnreadableImageError, read_image
from vild.embeddings.crops import CropRule, crop_and_resize, enlarge_boxes, to_device, valid_boxes
from vild.embeddings.store import combine_scales, pack
from vild.proposals.store import Proposals, ProposalStore
from vild.storage import BackgroundJob, ImageId, StoreWriter, log_failing_image, map_ahead, prefetch

logger = logging.getLogger(__name__)

AHEAD = 2  # batches of crops waiting for the encoder
Encoder = Callable[[Tensor], Tensor]


@dataclass
class _Image:
    """An image in progress: its id, size and proposals or failure, and its number of crops."""

    image_id: ImageId
    size: tuple[int, int] = (0, 0)
    proposals: Proposals | None = None
    crops: int = 0
    failure: str = ""


@dataclass
class _Batch:
    """Crops (B, 3, S, S) for the encoder, and the images whose last crop is among them."""

    crops: Tensor
    finished: list[_Image]


class RegionCropper:
    """Turns images and their proposals into batches of crops.

    Args:
        proposals: source of the boxes.
        files: image file of every image id.
        rule: how regions are cropped.
        limit: maximum number of regions per image, the first of its proposals.
        size: S.
        batch_size: crops per batch.
        device: device for cropping, the same as the encoder's.
        threads: number of threads that read images ahead.
        normalise: the teacher's statistics, if the encoder expects normalised crops.
        interpolation: how crops are resized; the teacher's interpolation.
    """

    def __init__(
        self,
        proposals: ProposalStore,
        files: Mapping[ImageId, str | Path],
        rule: CropRule,
        *,
        limit: int,
        size: int,
        batch_size: int,
        device: str | torch.device = "cpu",
        threads: int = 2,
        normalise: tuple[Tensor, Tensor] | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        self.proposals, self.files, self.rule, self.limit = proposals, files, rule, limit
        self.size, self.batch_size, self.threads = size, batch_size, threads
        self.device, self.interpolation = torch.device(device), interpolation
        self.normalise = normalise and (normalise[0].to(device), normalise[1].to(device))
        shape = (batch_size, 3, size, size)
        self._buffers = [torch.empty(shape, device=device) for _ in range(AHEAD + 2)]

    def batches(self, shards: Iterable[Sequence[ImageId]]) -> Iterator[_Batch]:
        """Yield the crops of some shards in order: all of an image's at one scale, then the next.

        A batch's memory is reused by the batch that comes ``AHEAD + 2`` later.

        Args:
            shards: image ids of each shard. A batch contains crops of only one shard.
        """
        shards = list(shards)
        reading = map_ahead(self._read, list(itertools.chain(*shards)), self.threads)
        buffers = itertools.cycle(self._buffers)
        for images in shards:
            buffer, count = next(buffers), 0
            finished: list[_Image] = []
            for image_id in images:
                image, pixels = self._prepare(image_id, next(reading).result())
                for boxes in self._scaled(image):
                    while len(boxes):
                        free = self.batch_size - count
                        some, boxes = boxes[:free], boxes[free:]
                        self._crop(image_id, pixels, some, buffer[count : count + len(some)])
                        count += len(some)
                        if count == self.batch_size:
                            yield _Batch(buffer, finished)
                            buffer, finished, count = next(buffers), [], 0
                finished.append(image)
            if finished or count:
                yield _Batch(buffer[:count], finished)

    def _crop(self, image_id: ImageId, pixels: Tensor, boxes: Tensor, out: Tensor) -> None:
        with log_failing_image(image_id, self.files[image_id]):
            crop_and_resize(
                pixels,
                boxes,
                self.size,
                self.rule.mode,
                out=out,
                normalise=self.normalise,
                interpolation=self.interpolation,
            )

    def _read(self, image_id: ImageId) -> np.ndarray | str:
        if image_id not in self.proposals:
            return f"no proposals: {self.proposals.failed.get(image_id, 'not in their store')}"
        try:
            return read_image(self.files[image_id])
        except (UnreadableImageError, MemoryError) as error:
            return str(error) or f"not enough memory to read {self.files[image_id]}"

    def _prepare(self, image_id: ImageId, pixels: np.ndarray | str) -> tuple[_Image, torch.Tensor]:
        if isinstance(pixels, str):
            return _Image(image_id, failure=pixels), torch.empty(0)
        size = (pixels.shape[0], pixels.shape[1])
        expected = self.proposals.image_size(image_id)
        if size != expected:
            failure = (
                f"{self.files[image_id]} has {size[0]} x {size[1]} pixels, but its proposals were "
                f"made for {expected[0]} x {expected[1]}: the image has changed"
            )
            return _Image(image_id, failure=failure), torch.empty(0)
        boxes, objectness = self.proposals[image_id]
        boxes, objectness = boxes[: self.limit], objectness[: self.limit]
        whole = valid_boxes(boxes, size)
        if not whole.all():
            logger.warning(
                "image %s: ignoring %d boxes without area or outside of the image",
                image_id,
                int((~whole).sum()),
            )
        found = Proposals(boxes[whole], objectness[whole])
        crops = len(found.boxes) * len(self.rule.scales)
        return _Image(image_id, size, found, crops), to_device(
            torch.from_numpy(pixels), self.device
        )

    def _scaled(self, image: _Image) -> list[Tensor]:
        """Return the boxes of an image at each scale."""
        if image.proposals is None:
            return []
        boxes = image.proposals.boxes
        return [enlarge_boxes(boxes, scale, image.size) for scale in self.rule.scales]


def extract_embeddings(
    cropper: RegionCropper,
    encode: Encoder,
    writer: StoreWriter,
    *,
    dtype: str = "float16",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> None:
    """Write the embeddings of one rank's part of the images.

    Unreadable images are recorded as failed, and the extraction continues.

    Args:
        cropper: makes the crops.
        encode: maps the cropper's crops (B, 3, S, S) to embeddings (B, D) of unit norm;
            :meth:`vild.embeddings.Teacher.encode_image`.
        writer: the store.
        dtype: dtype of the stored embeddings.
        rank: rank of this process.
        world_size: number of processes.
        progress: show a progress bar.

    Raises:
        ValueError: non-finite embeddings; their shard is not written.
        StoreError: a shard cannot be written; raised before another batch is encoded.
    """
    shards = writer.pending(rank, world_size)
    images = [writer.images_of(shard) for shard in shards]
    with (
        BackgroundJob() as background,
        closing(prefetch(cropper.batches(images), AHEAD)) as batches,
        tqdm(
            total=sum(map(len, images)), unit="img", desc=f"rank {rank}", disable=not progress
        ) as bar,
    ):
        for number in shards:
            with writer.shard(number, background) as builder:
                rows = torch.empty(
                    writer.spec.fields["embeddings"].shape(0)
                )  # of unfinished images
                left = len(builder.images)
                while left:
                    batch = next(batches)
                    background.check()
                    if len(batch.crops):
                        rows = torch.cat([rows, encode(batch.crops).float().cpu()])
                    for image in batch.finished:
                        if image.proposals is None:
                            logger.warning("image %s: %s", image.image_id, image.failure)
                            builder.fail(image.image_id, image.failure)
                        else:
                            own, rows = rows[: image.crops], rows[image.crops :]
                            combined = combine_scales(own, len(cropper.rule.scales))
                            arrays = {**image.proposals._asdict(), **pack(combined, dtype)}
                            builder.add(image.image_id, *image.size, arrays)
                        bar.update()
                    left -= len(batch.finished)
