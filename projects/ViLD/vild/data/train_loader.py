"""The endless stream of training samples, a function of the seed and the position alone.

It does not depend on earlier work of a process: training resumed at iteration i sees the same
samples as an uninterrupted one, with any number of loader workers, and several ranks share the
batches that a single process would have.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

Record = Mapping[str, Any]


class Sample(NamedTuple):
    """One position in the stream.

    Attributes:
        record: index of the record.
        position: position in the stream, from 0.
        draw: how often the record was drawn before.
    """

    record: int
    position: int
    draw: int


def samples(indices: Iterable[int]) -> Iterator[Sample]:
    """Yield a numbered sample for each record index of a stream."""
    drawn: Counter[int] = Counter()
    for position, index in enumerate(indices):
        yield Sample(index, position, drawn[index])
        drawn[index] += 1


def batches(
    stream: Iterable[Sample], size: int, wide: Sequence[bool] | None = None
) -> Iterator[list[Sample]]:
    """Yield batches of ``size`` samples in the order in which they fill up.

    Args:
        stream: the samples.
        size: batch size.
        wide: whether each record's image is wider than high; wide and other images then go into
            separate batches, as in Detectron2, which reduces padding. None: no grouping.
    """
    waiting: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in stream:
        bucket = waiting[0 if wide is None else int(wide[sample.record])]
        bucket.append(sample)
        if len(bucket) == size:
            yield list(bucket)
            bucket.clear()


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the random numbers of Python, numpy and torch (CPU) from ``numbers``.

    The previous states are restored afterwards.
    """
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])  # noqa: NPY002  (Detectron2's augmentations draw from it)
        torch.random.default_generator.manual_seed(int(seeds[2]))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


class _Mapped(Dataset):
    """Records by :class:`Sample`, mapped with random numbers seeded per sample."""

    def __init__(
        self, records: Sequence[Record], mapper: Callable[[Record], dict[str, Any]], seed: int
    ) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        record = {**self.records[sample.record], "draw": sample.draw}
        with seeded(self.seed, sample.position):
            return self.mapper(record)


class TrainingLoader:
    """Endless batches of mapped records.

    Args:
        records: in Detectron2's format; with ``height`` and ``width`` if ``group`` is on.
        mapper: maps one record; it may draw random numbers.
        indices: returns the endless stream of record indices, the same at every call.
        batch_size: total over all ranks; a multiple of their number.
        seed: seed for the mapper's random numbers.
        group: whether to put wide and other images into separate batches.
        workers: number of loader processes; 0 loads in this process.
        complete: final step for each mapped record, run in this process (for the teacher).

    Attributes:
        start: index of the first batch; set it before taking one.
        images: number of records.

    Raises:
        ValueError: no records, or a batch size that is not divisible by the number of ranks.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Callable[[Record], dict[str, Any]],
        indices: Callable[[], Iterator[int]],
        *,
        batch_size: int,
        seed: int,
        group: bool = True,
        workers: int = 0,
        complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        if not records:
            raise ValueError("expected images in the training set, got none")
        if batch_size < 1 or batch_size % comm.get_world_size():
            raise ValueError(
                f"expected SOLVER.IMS_PER_BATCH to be a multiple of the {comm.get_world_size()} "
                f"processes, got {batch_size}"
            )
        self.batch_size, self.workers, self.complete, self.start = batch_size, workers, complete, 0
        self.images, self._indices = len(records), indices
        self._wide = [r["width"] > r["height"] for r in records] if group else None
        # serialised, so that workers share its memory
        self._dataset = _Mapped(DatasetFromList(list(records), copy=False), mapper, seed)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        # lazy: `start` is only known when the first batch is taken
        stream = batches(samples(self._indices()), self.batch_size, self._wide)
        rank, world_size = comm.get_rank(), comm.get_world_size()
        loader = DataLoader(
            self._dataset,
            # this rank's part of every batch
            batch_sampler=(b[rank::world_size] for b in islice(stream, self.start, None)),
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        for batch in loader:
            yield [self.complete(x) for x in batch] if self.complete is not None else batch


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
