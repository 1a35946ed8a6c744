"""Training samples depend only on the seed and the position in the stream."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from vild.data.train_loader import Sample, TrainingLoader, batches, samples, seeded

RECORDS = [{"image_id": n, "width": 4 + n % 3, "height": 5} for n in range(10)]


def indices() -> Iterator[int]:
    return TrainingSampler(len(RECORDS), seed=3)._infinite_indices()


def numbers() -> tuple[float, ...]:
    """Draw from every generator; numpy's is the one that Detectron2's augmentations use."""
    legacy = np.random.rand()  # noqa: NPY002
    return random.random(), legacy, float(torch.rand(()))


def draw(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"image_id": record["image_id"], "draw": record["draw"], "numbers": numbers()}


def loader(**changes: Any) -> TrainingLoader:
    return TrainingLoader(RECORDS, draw, indices, **{"batch_size": 4, "seed": 1} | changes)


def first(number: int, source: TrainingLoader) -> list[list[dict[str, Any]]]:
    return list(islice(source, number))


def test_samples_count_positions_and_draws() -> None:
    found = list(samples([5, 2, 5, 5]))
    assert found == [Sample(5, 0, 0), Sample(2, 1, 0), Sample(5, 2, 1), Sample(5, 3, 2)]


def test_batches_are_of_one_shape_and_none_is_lost() -> None:
    wide = [r["width"] > r["height"] for r in RECORDS]
    stream = list(samples(islice(indices(), 40)))
    found = list(batches(stream, 4, wide))
    assert all(len({wide[s.record] for s in batch}) == 1 for batch in found)
    positions = [s.position for s in chain(*found)]
    assert len(set(positions)) == len(positions) >= 40 - 2 * 3
    assert list(chain(*batches(stream, 4))) == stream


def test_seeded_numbers_leave_no_trace() -> None:
    seed_all_rng(0)
    expected = [numbers() for _ in range(2)]
    seed_all_rng(0)
    found = [numbers()]
    with seeded(1, 2):
        inside = numbers()
    found.append(numbers())
    assert found == expected
    with seeded(1, 2):
        assert numbers() == inside
    with seeded(1, 3):
        assert all(a != b for a, b in zip(numbers(), inside, strict=True))
    with pytest.raises(KeyError), seeded(1):
        raise KeyError
    assert numbers() != inside


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_sees_what_it_would_have_seen(workers: int, group: bool) -> None:
    expected = first(7, loader(group=group))
    assert len({x["numbers"] for batch in expected for x in batch}) == 28
    resumed = loader(workers=workers, group=group)
    resumed.start = 3
    assert first(4, resumed) == expected[3:]


def test_the_seed_decides_the_numbers_and_epochs_differ() -> None:
    found = first(8, loader(group=False))
    other = first(8, loader(group=False, seed=2))
    assert [x["image_id"] for b in found for x in b] == [x["image_id"] for b in other for x in b]
    assert found != other
    draws = [x["draw"] for batch in found for x in batch]
    assert draws == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 2


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = first(5, loader())
    parts = []
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(first(5, loader()))
    for number, batch in enumerate(whole):
        together = [x for part in parts for x in part[number]]
        assert sorted(x["numbers"] for x in together) == sorted(x["numbers"] for x in batch)
        assert {len(part[number]) for part in parts} == {4 // world_size}


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_draws_none_of_the_models_numbers(workers: int) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first(2, loader(workers=workers))
    assert torch.equal(torch.rand(3), expected)


def test_the_last_step_is_done_here() -> None:
    seen = []

    def step(mapped: dict[str, Any]) -> dict[str, Any]:
        seen.append(mapped["image_id"])
        return {**mapped, "done": True}

    (batch,) = first(1, loader(complete=step, workers=2))
    assert all(x["done"] for x in batch)
    assert seen == [x["image_id"] for x in batch]


def test_misuse(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="images in the training set, got none"):
        TrainingLoader([], draw, indices, batch_size=4, seed=1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="multiple of the 3 processes, got 4"):
        loader()
