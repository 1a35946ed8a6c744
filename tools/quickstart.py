#!/usr/bin/env python
"""`make quickstart`: run what the project can do so far, from nothing, and say what was done.

Each stage is one of the project's own commands; it is printed, so that it can be repeated.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

OUTPUT = Path("output/quickstart")
STAGES = (
    (
        "the pictures of the embedded benchmark `shapes`",
        f"tools/make_shapes.py --contact-sheet {OUTPUT}/shapes.png",
    ),
    (
        "text embeddings of its classes by its own small CLIP",
        "tools/extract_text_embeddings.py --vocabulary shapes_val --model vild-shapes "
        f"--out {OUTPUT}/text.safetensors",
    ),
    (
        "what that CLIP knows of classes that no detector is trained on",
        "tools/train_shapes_teacher.py --evaluate-only",
    ),
    (
        "five training steps of ViLD-text on base classes, to see that it runs",
        "projects/ViLD/train_net.py --config-file configs/shapes/smoke.yaml "
        f"OUTPUT_DIR {OUTPUT}/smoke",
    ),
)


def main() -> int:
    """Command line entry; returns the exit code."""
    start = time.perf_counter()
    for number, (title, command) in enumerate(STAGES, start=1):
        print(f"\n{number}/{len(STAGES)} {title}\n    python {command}", flush=True)
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-W", "ignore", *shlex.split(command)])
        if done.returncode != 0:
            print(f"error: this command failed with exit code {done.returncode}", file=sys.stderr)
            return 1
        print(f"    {time.perf_counter() - begin:.0f} s", flush=True)
    print(
        f"\nDone in {time.perf_counter() - start:.0f} s. Look at {OUTPUT}/shapes.png. Five "
        "steps teach a detector nothing: the whole experiment is not part of the quickstart yet."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
