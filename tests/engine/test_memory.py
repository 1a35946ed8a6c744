"""Freed memory is reused."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from .. import forked

SCRIPT = """
import resource, sys
import torch
from vild.engine import reuse_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "reuse":
    assert reuse_freed_memory()
torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(20_000_000)  # 80 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, folder: Path) -> int:
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    code, output = forked.run([script, how])
    assert code == 0, output
    return int(output)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc's setting, as CUDA's torch needs"
)
def test_large_tensors_take_no_new_pages(tmp_path: Path) -> None:
    # one tensor has 19,531 pages of 4 KB; the allocator decides how many of the first are kept
    assert page_faults("return", tmp_path) - page_faults("reuse", tmp_path) > 5 * 19_531
