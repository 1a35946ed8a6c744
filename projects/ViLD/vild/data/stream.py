"""The endless stream of training samples, as a function of the seed and of the place in it.

Nothing depends on what a process did before: a training that is resumed at iteration i sees what it
would have seen, with any number of loader workers, and several processes share the very batches
that one process would have.
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
from torch.utils.data import DataLoader, Dataset, Sampler

Record = Mapping[str, Any]


class Sample(NamedTuple):
    """One place in the stream.

    Attributes:
        record: its index.
        position: in the stream, from 0.
        draw: how often the record was drawn before.
    """

    record: int
    position: int
    draw: int


def samples(indices: Iterable[int]) -> Iterator[Sample]:
    """Number a stream of record indices."""
    drawn: Counter[int] = Counter()
    for position, index in enumerate(indices):
        yield Sample(index, position, drawn[index])
        drawn[index] += 1


def batches(
    stream: Iterable[Sample], size: int, wide: Sequence[bool] | None = None
) -> Iterator[list[Sample]]:
    """Batches of ``size`` samples, in the order in which they are full.

    Args:
        stream: of samples.
        size: of a batch.
        wide: whether a record's picture is wider than high; wide ones and others then come in
            batches of their own, as in Detectron2, which saves padding. None: all together.
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
    """Random numbers of Python, numpy and torch (CPU) that follow from ``numbers`` alone.

    Outside of the context they go on as if nothing had been.
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
    """Records by :class:`Sample`, mapped with random numbers of the sample's own."""

    def __init__(
        self, records: Sequence[Record], mapper: Callable[[Record], dict[str, Any]], seed: int
    ) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        record = {**self.records[sample.record], "draw": sample.draw}
        with seeded(self.seed, sample.position):
            return self.mapper(record)


class _Batches(Sampler):
    """This process's part of every batch, from batch ``start`` on."""

    def __init__(self, all_batches: Callable[[], Iterator[list[Sample]]], start: int) -> None:
        self.all_batches, self.start = all_batches, start

    def __iter__(self) -> Iterator[list[Sample]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        for batch in islice(self.all_batches(), self.start, None):
            yield batch[rank::world_size]


class TrainingLoader:
    """Batches of mapped records without end.

    Args:
        records: in Detectron2's format; with ``height`` and ``width`` where ``group`` is on.
        mapper: maps one; it may draw random numbers.
        indices: gives the endless stream of record indices, the same at every call.
        batch_size: over all processes; a multiple of their number.
        seed: of what the mapper draws.
        group: whether wide pictures and others come in batches of their own.
        workers: processes that load ahead; 0 for none.
        complete: a last step on each mapped record, in this very process (the teacher's).

    Attributes:
        start: the batch to begin with; set it before the first one is taken.

    Raises:
        ValueError: no records, or a batch size that cannot be shared out.
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
            raise ValueError("expected pictures to train on, the training set has none")
        if batch_size < 1 or batch_size % comm.get_world_size():
            raise ValueError(
                f"expected SOLVER.IMS_PER_BATCH to be a multiple of the {comm.get_world_size()} "
                f"processes, got {batch_size}"
            )
        self.batch_size, self.workers, self.complete, self.start = batch_size, workers, complete, 0
        self._indices = indices
        self._wide = [r["width"] > r["height"] for r in records] if group else None
        # serialised, so that workers share its memory
        self._dataset = _Mapped(DatasetFromList(list(records), copy=False), mapper, seed)

    def _all_batches(self) -> Iterator[list[Sample]]:
        return batches(samples(self._indices()), self.batch_size, self._wide)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        # nothing of this runs before the first batch is taken, when `start` is known
        loader = DataLoader(
            self._dataset,
            batch_sampler=_Batches(self._all_batches, self.start),
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=_one_thread,
            generator=torch.Generator(),  # or it would draw a number of the first step's
        )
        for batch in loader:
            yield [self.complete(x) for x in batch] if self.complete is not None else batch


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
