"""One seed for all processes of a training, and for its continuation."""

from __future__ import annotations

from pathlib import Path

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm


def resolve_seed(cfg: CfgNode, resume: bool) -> None:
    """Replace a ``SEED`` below 0, which asks for any, by one that all processes share.

    The run's ``config.yaml`` keeps it, and a training that is resumed takes it from there.

    Args:
        cfg: changed in place.
        resume: whether a run in ``OUTPUT_DIR`` goes on.
    """
    if cfg.SEED >= 0:
        return
    seed = comm.shared_random_seed() % 2**31
    file = Path(cfg.OUTPUT_DIR, "config.yaml")
    if resume and comm.is_main_process() and file.is_file():
        seed = yaml.safe_load(file.read_text(encoding="utf-8")).get("SEED", seed)
    cfg.SEED = int(comm.all_gather(seed)[0])
