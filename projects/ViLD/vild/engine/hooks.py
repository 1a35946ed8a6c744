"""What a training does around its steps: seeds, stops and the report of a divergence."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import distributed, nn

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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


class CheckpointAndStop(HookBase):
    """A signal ends the training after the step at hand, with a checkpoint to resume from.

    SIGTERM and SIGUSR1 are what clusters send before they take a machine away. All processes stop
    after the same step, whichever of them were told. A second signal ends the process at once.
    Whoever listened before (submitit, which submits the job again) is told after the checkpoint.

    Args:
        checkpointer: writes the checkpoint.
    """

    def __init__(self, checkpointer: DetectionCheckpointer) -> None:
        self.checkpointer, self.received = checkpointer, 0
        self._before: dict[int, Any] = {}

    def before_train(self) -> None:
        """Listen."""
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def after_train(self) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        logger.warning("%s: a checkpoint follows this step", signal.Signals(number).name)

    def after_step(self) -> None:
        """Stop if any process was told to.

        Raises:
            SystemExit: with 128 + the signal's number, as shells have it.
        """
        number = self.received
        if comm.get_world_size() > 1:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            told = torch.tensor(number, device=device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            number = int(told)
        if not number:
            return
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name, iteration=self.trainer.iter)
        logger.warning("stopped after iteration %d; --resume goes on", self.trainer.iter)
        comm.synchronize()  # the others wait until the file is there
        listener = self._before.get(number)
        if callable(listener) and self.received:
            listener(number, None)
        sys.exit(128 + number)


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
