"""Schedulers, launching on CPU, tracing, the model zoo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer, hooks, launch
from detectron2.export import TracingAdapter
from detectron2.utils import comm


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * data).sum()}


def _trainer(folder: Path) -> tuple[SimpleTrainer, DetectionCheckpointer]:
    model = _Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = SimpleTrainer(model, [torch.ones(1)] * 8, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler)])
    checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
    return trainer, checkpointer


def test_plain_torch_scheduler_resumes_at_its_step(tmp_path: Path) -> None:
    trainer, checkpointer = _trainer(tmp_path)
    trainer.train(0, 3)
    checkpointer.save("model_0000002")

    trainer, checkpointer = _trainer(tmp_path)
    checkpointer.resume_or_load("", resume=True)
    scheduler = next(h for h in trainer._hooks if isinstance(h, hooks.LRScheduler)).scheduler
    assert scheduler.last_epoch == 3
    trainer.train(3, 5)
    assert scheduler.last_epoch == 5
    assert scheduler.get_last_lr() == [0.25]


def _gather_ranks(folder: str) -> None:
    ranks = comm.all_gather(comm.get_rank())
    assert comm.get_local_size() == 2
    Path(folder, f"{comm.get_rank()}").write_text(str(ranks), encoding="utf-8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the launcher takes NCCL (gpu)")
def test_two_processes_on_cpu(tmp_path: Path) -> None:
    launch(_gather_ranks, 2, dist_url="auto", args=(str(tmp_path),))
    assert [file.read_text(encoding="utf-8") for file in sorted(tmp_path.iterdir())] == [
        "[0, 1]",
        "[0, 1]",
    ]


def test_tracing_adapter_follows_the_model() -> None:
    class Doubler(torch.nn.Module):
        def forward(self, inputs: list[dict]) -> list[dict]:
            return [{"twice": item["image"] * 2} for item in inputs]

    adapter = TracingAdapter(Doubler(), [{"image": torch.ones(3)}])
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    (output,) = traced(torch.tensor([1.0, 2, 3]))
    torch.testing.assert_close(output, torch.tensor([2.0, 4, 6]))


def test_every_model_zoo_yaml_loads() -> None:
    folder = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
    files = sorted(folder.rglob("*.yaml"))
    assert len(files) >= 90
    for file in files:
        cfg = get_cfg()
        try:
            cfg.merge_from_file(str(file))
        except KeyError as error:  # the test configs of projects with keys of their own
            pytest.fail(f"{file}: {error}")
    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no_such.yaml")
