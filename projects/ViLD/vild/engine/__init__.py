"""The engine: launching of processes, the training loop, its hooks and loaders."""

from vild.engine.agreement import require_same_config
from vild.engine.evaluation import evaluate
from vild.engine.launching import EXIT_CTRL_C, explained, launch
from vild.engine.loading import build_test_loader, build_train_loader
from vild.engine.locking import only_training
from vild.engine.memory import reuse_freed_memory
from vild.engine.preflight import check_before_training, check_test_sets
from vild.engine.seeding import resolve_seed
from vild.engine.trainer import Trainer
from vild.engine.workers import run_workers
from vild.engine.writing import report_log_errors_once

__all__ = [
    "EXIT_CTRL_C",
    "Trainer",
    "build_test_loader",
    "build_train_loader",
    "check_before_training",
    "check_test_sets",
    "evaluate",
    "explained",
    "launch",
    "only_training",
    "report_log_errors_once",
    "require_same_config",
    "resolve_seed",
    "reuse_freed_memory",
    "run_workers",
]
