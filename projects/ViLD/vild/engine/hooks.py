"""What a training does around its steps: seeds, stops, evaluations, reports of divergence."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.utils import comm
from torch import distributed, nn

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ONE_SIGNAL = 0.5  # seconds in which several are one that arrived by several ways


class StepSeeds(HookBase):
    """Random numbers of each step follow from the seed, the step and the process.

    So a training that is resumed draws what it would have drawn.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed Python, numpy and torch."""
        numbers = np.random.SeedSequence([self.seed, self.trainer.iter, comm.get_rank()])
        first, second, third = (int(n) for n in numbers.generate_state(3))
        random.seed(first)
        np.random.seed(second)  # noqa: NPY002  (Detectron2 draws from it)
        torch.manual_seed(third)


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Let signals wait for the end of the block; processes that it starts never receive them.

    Ctrl-C and clusters send them to the loader's workers, too, whose end would be an error.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class CheckpointAndStop(HookBase):
    """A signal ends the training after the current step, with a checkpoint to resume from.

    SIGINT is Ctrl-C; SIGTERM and SIGUSR1 are what clusters send before they take a machine away.
    All processes stop after the same step, whichever of them were told. A second signal ends the
    process at once. Whoever listened before (submitit, which submits the job again) is told after
    the checkpoint.

    Args:
        checkpointer: writes the checkpoint.
    """

    def __init__(self, checkpointer: DetectionCheckpointer) -> None:
        self.checkpointer, self.received = checkpointer, 0
        self._before: dict[int, Any] = {}
        self._process, self._at, self._interruptible = os.getpid(), 0.0, False
        self._group: distributed.ProcessGroup | None = None

    def before_train(self) -> None:
        """Listen."""
        self._process = os.getpid()
        if comm.get_world_size() > 1:  # of CPUs, so that no process waits for its GPU
            self._group = distributed.new_group(backend="gloo")
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def after_train(self) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def evaluation(self, is_last: bool) -> Iterator[None]:
        """Evaluate in this context, so that a signal need not wait for the end of it.

        Several processes can only leave the last evaluation at once. In another one they would have
        to agree on it first, and they wait for its end.

        Args:
            is_last: whether the training is done, so that no checkpoint is needed.

        Raises:
            SystemExit: in the last evaluation, with 128 + the signal's number.
        """
        self._interruptible = is_last or comm.get_world_size() == 1
        try:
            yield
        except _Stopped:
            if is_last:
                logger.warning("stopped in the last evaluation; --resume repeats it")
                self._leave(self.received)
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker of a loader, which ends with this process
            return
        now = time.monotonic()
        if self.received:
            # Ctrl-C reaches a process from its terminal and from its launcher
            if now - self._at > _ONE_SIGNAL:
                os._exit(128 + number)
            return
        self.received, self._at = number, now
        name = signal.Signals(number).name
        if self._interruptible:
            raise _Stopped
        logger.warning("%s: a checkpoint follows this step; a second one ends at once", name)

    def after_step(self) -> None:
        """Stop if any process was told to.

        Raises:
            SystemExit: with 128 + the signal's number, as shells have it.
        """
        number = self.received
        if comm.get_world_size() > 1:
            told = torch.tensor(number)
            distributed.all_reduce(told, distributed.ReduceOp.MAX, self._group)
            number = int(told)
        if not number:
            return
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name, iteration=self.trainer.iter)
        logger.warning("stopped after iteration %d; --resume goes on", self.trainer.iter)
        comm.synchronize()  # the others wait until the file is there
        self._leave(number)

    def _leave(self, number: int) -> None:
        listener = self._before.get(number)
        if callable(listener) and listener is not signal.default_int_handler and self.received:
            listener(number, None)
        sys.exit(128 + number)


class _Stopped(BaseException):
    """A signal came during an evaluation."""


class Evaluation(EvalHook):
    """Detectron2's hook, which a signal interrupts; only a training that is done is evaluated last.

    Args:
        period: iterations between evaluations; 0 for none before the last.
        evaluate: returns the metrics.
        stop: receives the signals.
    """

    def __init__(
        self, period: int, evaluate: Callable[[], dict[str, Any]], stop: CheckpointAndStop
    ) -> None:
        super().__init__(period, evaluate)
        self.stop = stop

    def _do_eval(self) -> None:
        with self.stop.evaluation(is_last=self._is_done()):
            super()._do_eval()

    def after_train(self) -> None:
        """Evaluate, unless an error or a signal ended the training.

        Detectron2's own would evaluate after those of the last step, too.
        """
        if self._is_done():
            super().after_train()

    def _is_done(self) -> bool:
        return self.trainer.iter >= self.trainer.max_iter


class DivergenceGuard:
    """Name the images of a training step that diverges, wherever it shows first.

    Losses are checked after each forward pass of the model in training. Detectron2's proposal
    network and training loop have checks of their own, which know no images.

    Args:
        model: one of Detectron2's; its training output is a dictionary of losses.
    """

    def __init__(self, model: nn.Module) -> None:
        self._images: list[Any] = []
        model.register_forward_pre_hook(self._note_images)
        model.register_forward_hook(self._check_losses)

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Run a training step in this context.

        Raises:
            FloatingPointError: the step raised one; the image ids, the process and what to do are
                added to its message.
        """
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{str(error).rstrip('.')}; the images of this step: {self._images} (process "
                f"{comm.get_rank()}). Lower SOLVER.BASE_LR, switch on SOLVER.CLIP_GRADIENTS, or "
                "look at these images and their annotations"
            ) from None

    def _note_images(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            self._images = [mapped.get("image_id", "without an id") for mapped in inputs[0]]

    def _check_losses(self, module: nn.Module, inputs: tuple[Any, ...], losses: Any) -> None:
        if not module.training or not isinstance(losses, dict):
            return
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        bad = {k: v for k, v in zip(losses, values, strict=True) if not np.isfinite(v)}
        if bad:
            raise FloatingPointError(f"the losses {bad} are not finite")
