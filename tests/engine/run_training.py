"""A training process that tests may kill: the losses of every step are written immediately.

python -m tests.engine.run_training FOLDER RUN ITERATIONS WORKERS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from vild.engine import Trainer

from .. import small_shapes


class WriteLosses(HookBase):
    def __init__(self, file: Path) -> None:
        self.file = file

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        losses = {k: v for k, (v, _) in latest.items() if "loss" in k or k == "lr"}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": self.trainer.iter, **losses}) + "\n")


def read_losses(file: Path) -> dict[int, dict[str, float]]:
    """Read losses by iteration; the last entry of each iteration counts."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return {entry.pop("iteration"): entry for entry in map(json.loads, lines)}


def main(folder: Path, run: str, iterations: int, workers: int) -> None:
    torch.set_num_threads(1)
    setup_logger()
    small_shapes.register(folder)
    cfg = small_shapes.config(
        folder,
        "vild",
        OUTPUT_DIR=str(folder / run),
        DATALOADER__NUM_WORKERS=workers,
        DATASETS__TEST=(),
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=iterations,
        SOLVER__STEPS=(4, 8),
        SOLVER__WARMUP_ITERS=3,
        SOLVER__CHECKPOINT_PERIOD=2,
        SOLVER__BASE_LR=0.005,
    )
    (folder / run).mkdir(exist_ok=True)
    seed_all_rng(cfg.SEED)  # for the initial weights, like default_setup
    trainer = Trainer(cfg)
    trainer.register_hooks([WriteLosses(folder / run / "losses.jsonl")])
    trainer._hooks.insert(-1, trainer._hooks.pop())  # before the hook that stops on signals
    trainer.resume_or_load()
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
