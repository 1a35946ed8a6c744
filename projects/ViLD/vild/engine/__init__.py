"""Running the parts: processes and the training loop's hooks."""

from vild.engine.launching import launch
from vild.engine.loading import build_test_loader, build_train_loader
from vild.engine.memory import reuse_freed_memory
from vild.engine.workers import add_worker_arguments, run_workers

__all__ = [
    "add_worker_arguments",
    "build_test_loader",
    "build_train_loader",
    "launch",
    "reuse_freed_memory",
    "run_workers",
]
