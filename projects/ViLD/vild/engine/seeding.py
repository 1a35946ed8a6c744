"""One seed for all processes of a training, and for its continuation."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from vild.data.files import atomic_path

FILE = "seed.txt"


def resolve_seed(cfg: CfgNode, resume: bool) -> None:
    """Replace a ``SEED`` below 0, which asks for any, by one that all processes share.

    It is kept in ``OUTPUT_DIR/seed.txt``, and a training that is resumed takes it from there.

    Args:
        cfg: changed in place.
        resume: whether a run in ``OUTPUT_DIR`` goes on.

    Raises:
        ValueError: ``seed.txt`` is damaged.
    """
    if cfg.SEED >= 0:
        return
    seed = comm.shared_random_seed() % 2**31
    file = Path(cfg.OUTPUT_DIR, FILE)
    if comm.is_main_process():
        if resume and file.is_file():
            text = file.read_text(encoding="utf-8").strip()
            if not text.isdecimal():
                raise ValueError(
                    f"expected the seed of the training in {file}, got {text!r:.20}: give it as "
                    "SEED (the log has it under 'Running with full config')"
                )
            seed = int(text)
        else:
            with atomic_path(file) as temporary:
                temporary.write_text(f"{seed}\n", encoding="utf-8")
    cfg.SEED = int(comm.all_gather(seed)[0])
