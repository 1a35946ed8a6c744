"""The seed shared by all processes of a training and by its resumption."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from vild.utils.files import atomic_path

FILE = "seed.txt"


def resolve_seed(cfg: CfgNode, resume: bool) -> None:
    """Replace a ``SEED`` below 0, which means any, by a random one that all processes share.

    It is stored in ``OUTPUT_DIR/seed.txt``, and a resumed training reads it from there.

    Args:
        cfg: modified in place.
        resume: whether the run in ``OUTPUT_DIR`` is resumed.

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
