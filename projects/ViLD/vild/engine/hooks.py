"""Hooks of the training loop: seeding, stopping on signals, evaluation, divergence reports."""

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
_ONE_SIGNAL = 0.5  # seconds within which several signals count as one


class StepSeeds(HookBase):
    """A hook that seeds each step from the training's seed, the iteration and the rank.

    A resumed training therefore draws the same random numbers as an uninterrupted one.

    Args:
        seed: seed of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed Python, numpy and torch."""
        numbers = np.random.SeedSequence([self.seed, self.trainer.iter, comm.get_rank()])
        first, second, third = (int(n) for n in numbers.generate_state(3))
        random.seed(first)
        np.random.seed(second)  # noqa: NPY002  (Detectron2 uses it)
        torch.manual_seed(third)


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Defer signals to the end of the block; processes started in it never receive them.

    Ctrl-C and clusters also signal the loader's workers, and losing a worker would be an error.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class CheckpointAndStop(HookBase):
    """A hook that writes a checkpoint and stops after the current step when a signal arrives.

    SIGINT is Ctrl-C; clusters send SIGTERM or SIGUSR1 before they reclaim a machine. All ranks stop
    after the same step, whichever of them received the signal. A second signal ends the process at
    once. A previously installed handler (such as submitit's, which resubmits the job) is called
    after the checkpoint.

    Args:
        checkpointer: writes the checkpoint.
    """

    def __init__(self, checkpointer: DetectionCheckpointer) -> None:
        self.checkpointer, self.received = checkpointer, 0
        self._before: dict[int, Any] = {}
        self._process, self._at, self._interruptible = os.getpid(), 0.0, False
        self._group: distributed.ProcessGroup | None = None

    def before_train(self) -> None:
        """Install the signal handlers."""
        self._process = os.getpid()
        if comm.get_world_size() > 1:  # on CPUs, so that no rank waits for its GPU
            self._group = distributed.new_group(backend="gloo")
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def after_train(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def evaluation(self, is_last: bool) -> Iterator[None]:
        """Return a context for an evaluation that a signal may interrupt.

        With several ranks, only the last evaluation can be interrupted. In any other the ranks
        would first have to agree to stop, so they wait for its end.

        Args:
            is_last: whether training is finished, so that no checkpoint is needed.

        Raises:
            SystemExit: in the last evaluation, with 128 + the signal number.
        """
        self._interruptible = is_last or comm.get_world_size() == 1
        try:
            yield
        except _Stopped:
            if is_last:
                logger.warning("stopped during the last evaluation; --resume repeats it")
                self._leave(self.received)
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, which ends with this process
            return
        now = time.monotonic()
        if self.received:
            # Ctrl-C arrives both from the terminal and from the launcher
            if now - self._at > _ONE_SIGNAL:
                os._exit(128 + number)
            return
        self.received, self._at = number, now
        name = signal.Signals(number).name
        if self._interruptible:
            raise _Stopped
        logger.warning(
            "%s: writing a checkpoint after this step; a second signal stops at once", name
        )

    def after_step(self) -> None:
        """Stop if any rank received a signal.

        Raises:
            SystemExit: with 128 + the signal number, like shells.
        """
        number = self.received
        if comm.get_world_size() > 1:
            received = torch.tensor(number)
            distributed.all_reduce(received, distributed.ReduceOp.MAX, self._group)
            number = int(received)
        if not number:
            return
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name, iteration=self.trainer.iter)
        logger.warning(
            "stopped after iteration %d; --resume continues from there", self.trainer.iter
        )
        comm.synchronize()  # all ranks wait until the file exists
        self._leave(number)

    def _leave(self, number: int) -> None:
        listener = self._before.get(number)
        if callable(listener) and listener is not signal.default_int_handler and self.received:
            listener(number, None)
        sys.exit(128 + number)


class _Stopped(BaseException):
    """Raised by a signal during an evaluation."""


class Evaluation(EvalHook):
    """Detectron2's EvalHook, interruptible by signals, with a final evaluation only on completion.

    Args:
        period: iterations between evaluations; 0 evaluates only at the end.
        evaluate: returns the metrics.
        stop: the hook that receives the signals.
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

        Detectron2's hook would also evaluate if they occurred in the last step.
        """
        if self._is_done():
            super().after_train()

    def _is_done(self) -> bool:
        return self.trainer.iter >= self.trainer.max_iter


class DivergenceGuard:
    """A guard that reports the images of a training step that diverges.

    It checks the losses after each forward pass in training. Detectron2's RPN and training loop
    also check, but their errors do not name the images.

    Args:
        model: a Detectron2 model, which returns a dictionary of losses in training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._images: list[Any] = []
        model.register_forward_pre_hook(self._note_images)
        model.register_forward_hook(self._check_losses)

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Return a context for a training step.

        Raises:
            FloatingPointError: the step raised one; the image ids, the rank and advice are added
                to its message.
        """
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{str(error).rstrip('.')}; the images of this step: {self._images} (process "
                f"{comm.get_rank()}). Lower SOLVER.BASE_LR, set SOLVER.CLIP_GRADIENTS.ENABLED, "
                "or look at these images and their annotations"
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
