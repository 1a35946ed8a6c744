"""The training loop: Detectron2's, with exact resumption and support for CPU processes."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import EvalHook, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from vild.checkpoint import AtomicCheckpointer
from vild.data.train_loader import TrainingLoader
from vild.engine.hooks import (
    CheckpointAndStop,
    DivergenceGuard,
    Evaluation,
    StepSeeds,
    stop_signals_held,
)
from vild.engine.loading import build_test_loader, build_train_loader, is_vild
from vild.engine.writing import METRICS, NamedWriter, remove_cut_line, write_errors_in_one_line
from vild.evaluation import OpenVocabularyEvaluator
from vild.storage import require_disk_space

logger = logging.getLogger(__name__)

FINAL = "model_final"  # Detectron2's name of the last checkpoint


def tasks_of(cfg: CfgNode) -> tuple[str, ...]:
    """Return the tasks that a model is evaluated on: boxes, and masks if it predicts them."""
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


class BFloat16Trainer(SimpleTrainer):
    """Detectron2's SimpleTrainer with a forward pass under bfloat16 autocast, on any device.

    Parameters, gradients and losses are float32. Gradients are not scaled, because bfloat16 has the
    range of float32. Detectron2's AMPTrainer needs a GPU and in v0.6 supports only float16.
    """

    def run_step(self) -> None:
        """Take a step."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with this project's loaders, evaluators and checkpoints.

    Each step depends only on the configuration, the seed and the iteration.

    Subclass it as in Detectron2, for example to override ``build_evaluator``, and train or evaluate
    with ``run(parse(sys.argv[1:]), MyTrainer)``, where both functions are those of train_net.py.

    Args:
        cfg: configuration with ``SEED`` of 0 or more.

    Raises:
        ValueError: float16 is requested on the CPU, or as for
            :func:`vild.engine.build_train_loader`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Copied from DefaultTrainer, except that DistributedDataParallel on the CPU must not be
        # given a device, and for the checkpointer, which the hooks use.
        TrainerBase.__init__(self)
        self._precision = cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32"
        if self._precision == "fp16" and cfg.MODEL.DEVICE == "cpu":
            raise ValueError(
                "expected a GPU for SOLVER.AMP.PRECISION: fp16; on the CPU set it to bf16, or "
                "SOLVER.AMP.ENABLED to False"
            )
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        self._guard = DivergenceGuard(model)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        devices = None if cfg.MODEL.DEVICE == "cpu" else [torch.cuda.current_device()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        kinds = {"fp32": SimpleTrainer, "fp16": AMPTrainer, "bf16": BFloat16Trainer}
        self._trainer = kinds[self._precision](model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self._resumed_from = ""  # path of the checkpoint
        # whether the next step starts workers, which train() must stop
        self._starts_workers = False
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Return Detectron2's hooks, with seeding before and signal handling after them."""
        stop = CheckpointAndStop(self.checkpointer)

        def evaluate() -> dict[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        evaluation = Evaluation(self.cfg.TEST.EVAL_PERIOD, evaluate, stop)
        hooks = [evaluation if isinstance(h, EvalHook) else h for h in super().build_hooks()]
        return [StepSeeds(max(self.cfg.SEED, 0)), *hooks, stop]

    def build_writers(self) -> list[EventWriter]:
        """Return Detectron2's writers, wrapped so that their errors name the file.

        A line of ``metrics.json`` truncated by a kill or a full disk is removed first; a resumed
        training would otherwise append to it.
        """
        remove_cut_line(Path(self.cfg.OUTPUT_DIR, METRICS))
        return [NamedWriter(writer, self.cfg.OUTPUT_DIR) for writer in super().build_writers()]

    def resume_or_load(self, resume: bool = True, file: str | None = None) -> None:
        """Load the last checkpoint if there is one, otherwise ``MODEL.WEIGHTS``.

        Args:
            resume: whether to continue from the last checkpoint.
            file: continue from this checkpoint instead; a path, or a name in ``OUTPUT_DIR``.

        Raises:
            ValueError: the checkpoint cannot be read, does not match the model or was written by a
                training of another variant; or the disk has no room for the next checkpoint.
        """
        if file is not None:
            own = Path(self.cfg.OUTPUT_DIR, file)
            self._resumed_from = str(own) if own.is_file() else file
            self.checkpointer.load(self._resumed_from)
            self.start_iter = self.iter + 1
        else:
            if resume and self.checkpointer.has_checkpoint():
                self._resumed_from = self.checkpointer.get_checkpoint_file()
            super().resume_or_load(resume)
            if self.cfg.MODEL.WEIGHTS and not self.checkpointer.matched:
                raise ValueError(
                    f"{self.cfg.MODEL.WEIGHTS} contains none of the model's parameters: expected "
                    "MODEL.WEIGHTS to name a backbone or a detector, or '' for random weights"
                )
        if self.start_iter > self.max_iter:
            raise ValueError(
                f"expected SOLVER.MAX_ITER of at least {self.start_iter}, the iterations of the "
                f"checkpoint to resume from, got {self.max_iter}: raise it, or evaluate the "
                "checkpoint with --eval-only"
            )
        self.data_loader.start = self.start_iter
        if comm.is_main_process():
            self._check_disk()

    def _check_disk(self) -> None:
        """Raise ValueError unless the next checkpoint fits on the disk."""
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        # the weights and the momentum, which is as large
        needed = require_disk_space(self.cfg.OUTPUT_DIR, 2 * size)
        logger.info("a checkpoint %s", needed)

    @property
    def schedule(self) -> str:
        """The length of the training in words: iterations and, if known, epochs."""
        solver, loader = self.cfg.SOLVER, self.data_loader
        words = f"{self.max_iter:,} iterations of {solver.IMS_PER_BATCH} images"
        if isinstance(loader, TrainingLoader):  # a subclass may have a loader of its own
            epochs = self.max_iter * solver.IMS_PER_BATCH / loader.images
            words += f", {epochs:,.{1 if epochs < 100 else 0}f} epochs of {loader.images:,} images"
        return words

    def train(self) -> Any:
        """Train, and evaluate at the end.

        If all steps were already done, only the evaluation runs. If the run was killed or the disk
        was full before ``model_final.pth`` was written, the last checkpoint becomes that file.

        Returns:
            The metrics, in Detectron2's form.

        Raises:
            OSError: a file cannot be written.
            SystemExit: a signal stopped the training.
        """
        final = Path(self.cfg.OUTPUT_DIR, f"{FINAL}.pth").resolve()
        if self.start_iter == self.max_iter and Path(self._resumed_from).resolve() != final:
            self.checkpointer.save(FINAL, iteration=self.iter)
        self._starts_workers = True
        with write_errors_in_one_line():
            return super().train()

    def after_train(self) -> None:
        """Let all hooks finish; after an error, their write errors are not reported."""
        failed = sys.exc_info()[0] is not None  # this runs in a `finally`
        self.storage.iter = self.iter
        for hook in self._hooks:
            with suppress(OSError) if failed else nullcontext():
                hook.after_train()
        # stops the loader's workers, which do not receive the SIGTERM at Python's exit
        self._trainer._data_loader_iter.close()

    def run_step(self) -> None:
        """Take a step; report its images if it diverges."""
        held = stop_signals_held() if self._starts_workers else nullcontext()
        self._starts_workers = False
        with self._guard.explain(), held:
            super().run_step()

    @property
    def _variant(self) -> str:
        """Return the variant of ViLD, or the name of the RoI heads if they are others."""
        return self.cfg.MODEL.VILD.VARIANT if is_vild(self.cfg) else self.cfg.MODEL.ROI_HEADS.NAME

    @classmethod
    def build_evaluator(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        output_folder: str | None = None,
        *,
        tasks: Sequence[str] | None = None,
        **options: Any,
    ) -> DatasetEvaluator:
        """Build the evaluator named by the dataset's metadata (``coco`` or ``lvis``).

        Args:
            cfg: configuration.
            dataset_name: a registered dataset.
            output_folder: folder of the output files; ``OUTPUT_DIR`` by default.
            tasks: ``bbox``, ``segm`` or both; by default those that the model supports.
            **options: ``out`` and ``precision`` of :class:`OpenVocabularyEvaluator`, which
                train_net.py passes for its options of these names.
        """
        return OpenVocabularyEvaluator(
            dataset_name=dataset_name,
            tasks=tasks or tasks_of(cfg),
            output_dir=output_folder or cfg.OUTPUT_DIR,
            **options,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build the training loader, with the regions and proposals of the configuration."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the loader of a test set, with precomputed proposals if configured."""
        return build_test_loader(cfg, dataset_name)

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's state; v0.6 omits the optimizer's (Detectron2 issue 4110)."""
        state = super().state_dict()
        state.setdefault("_trainer", self._trainer.state_dict())
        state["variant"], state["processes"] = self._variant, comm.get_world_size()
        state["precision"] = self._precision
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`.

        Raises:
            ValueError: it belongs to another variant, which may have the same parameters.
        """
        iteration = state_dict.get("iteration") if isinstance(state_dict, dict) else None
        if not isinstance(iteration, int) or "_trainer" not in state_dict:
            raise ValueError(
                "cannot resume: the checkpoint has no training state of this project (iteration "
                "and optimizer). To begin a training from it, pass it as MODEL.WEIGHTS"
            )
        variant = state_dict.get("variant", self._variant)  # older checkpoints lack it
        if variant != self._variant:
            raise ValueError(
                f"cannot resume: expected a checkpoint of MODEL.VILD.VARIANT {self._variant!r}, as "
                f"in the configuration, got one of {variant!r}. Resume with that variant, or use "
                "another OUTPUT_DIR"
            )
        before, now = state_dict.get("processes"), comm.get_world_size()
        if before not in (None, now):  # None in older checkpoints
            logger.warning(
                "this training ran with %d processes and resumes with %d: each step uses the same "
                "images but other random numbers, so the result will differ slightly from that of "
                "an uninterrupted training",
                before,
                now,
            )
        precision = state_dict.get("precision", self._precision)
        if precision != self._precision:
            logger.warning(
                "this training ran in %s and resumes in %s, so the result will differ slightly "
                "from that of an uninterrupted training",
                precision,
                self._precision,
            )
        if isinstance(self._trainer, AMPTrainer):  # a checkpoint of fp32 or bf16 has no scaler
            scaler = self._trainer.grad_scaler.state_dict()
            inner = {"grad_scaler": scaler, **state_dict["_trainer"]}
            state_dict = {**state_dict, "_trainer": inner}
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
