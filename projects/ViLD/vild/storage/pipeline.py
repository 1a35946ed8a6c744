"""Threads for writing stores: read images ahead, write shards in the background."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import islice
from queue import Full, Queue
from typing import TypeVar, cast

logger = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")

_END = object()


@contextmanager
def log_failing_image(image_id: int | str, file: str | os.PathLike[str]) -> Iterator[None]:
    """Log the image being processed if the block raises an error."""
    try:
        yield
    except Exception:
        logger.error("stopped at image %s (%s)", image_id, file)
        raise


def map_ahead(function: Callable[[T], U], items: Sequence[T], threads: int) -> Iterator[Future[U]]:
    """Yield futures of ``function(item)`` in order, up to twice the threads computed ahead.

    Args:
        function: should release the interpreter lock most of the time.
        items: its arguments.
        threads: number of threads.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(function, item) for item in islice(source, 2 * threads)]
        try:
            while waiting:
                first = waiting.pop(0)
                first.exception()  # wait for the result
                waiting += [pool.submit(function, item) for item in islice(source, 1)]
                yield first
        finally:
            for future in waiting:
                future.cancel()


def prefetch(items: Iterable[T], ahead: int = 2) -> Generator[T, None, None]:
    """Yield the same items, produced in a separate thread.

    An error of the producer is raised in the consumer. If the consumer stops early, the producer
    stops as well.

    Args:
        items: the producer.
        ahead: maximum number of waiting items.
    """
    queue: Queue[tuple[T | object, BaseException | None]] = Queue(ahead)
    stopped = threading.Event()

    def put(item: T | object, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                queue.put((item, error), timeout=0.1)
                return True
            except Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # passed to the consumer, whatever it is
            put(_END, error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield cast(T, item)
    finally:
        stopped.set()
        thread.join()


class BackgroundJob:
    """Runs one job at a time in a separate thread; a context manager that waits for the last one.

    An error of a job is raised by the next :meth:`check` or :meth:`wait`, at the latest at the end
    of the block, unless the block itself fails.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None
        self._held = ExitStack()

    def submit(self, job: Callable[[], None], held: ExitStack) -> None:
        """Start a job once the previous one has ended.

        Args:
            job: should release the interpreter lock most of the time.
            held: resources of the job, such as a lock; ownership is transferred, and they are
                closed in the caller's thread once the job has ended.
        """
        self.wait()
        self._job, self._held = self._pool.submit(job), held.pop_all()

    def check(self) -> None:
        """Raise the error of a failed job without waiting."""
        if self._job is not None and self._job.done():
            self.wait()

    def wait(self) -> None:
        """Wait until no job is running; raise the error of a failed one."""
        if self._job is None:
            return
        wait([self._job])  # if this is interrupted, the job's resources stay held
        job, self._job = self._job, None
        with self._held:
            job.result()

    def __enter__(self) -> BackgroundJob:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
        finally:
            self._pool.shutdown()
