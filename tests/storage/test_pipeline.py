from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vild.storage import map_ahead, prefetch


def test_results_keep_their_order_and_errors_their_place() -> None:
    def slow_then_fast(n: int) -> int:
        time.sleep(0.02 / (n + 1))
        return 1 // (n - 2) if n == 2 else n * n

    futures = list(map_ahead(slow_then_fast, range(6), threads=3))
    assert [f.result() for i, f in enumerate(futures) if i != 2] == [0, 1, 9, 16, 25]
    with pytest.raises(ZeroDivisionError):
        futures[2].result()


def test_only_a_few_are_computed_ahead() -> None:
    done: list[int] = []
    results = map_ahead(done.append, range(100), threads=2)
    next(results)
    time.sleep(0.05)
    assert len(done) <= 6
    results.close()


def test_empty() -> None:
    assert list(map_ahead(str, [], threads=2)) == []
    assert list(prefetch([])) == []


def test_items_are_produced_in_another_thread() -> None:
    threads = list(prefetch(threading.current_thread().name for _ in range(3)))
    assert len(threads) == 3
    assert set(threads).isdisjoint({threading.current_thread().name})


def test_an_error_of_the_producer_is_raised_here() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("inside")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(KeyError, match="inside"):
        next(items)


def test_the_producer_stops_with_the_consumer() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = prefetch(endless())
    next(items)
    items.close()
    assert closed.wait(5)
