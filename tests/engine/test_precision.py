"""Training under bfloat16 autocast: close to float32, exact resumption, stops and checks."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, HookBase
from detectron2.utils.env import seed_all_rng

from vild.engine import Trainer
from vild.engine.trainer import BFloat16Trainer

from .. import small_shapes
from ..making import LEARNED

BF16 = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__PRECISION": "bf16"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    small_shapes.make(folder, 4)
    return folder


def config(folder: Path, variant: str, run: str, steps: int, **changes: Any) -> CfgNode:
    return small_shapes.config(
        folder,
        variant,
        OUTPUT_DIR=str(folder / run),
        DATASETS__TEST=(),
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=steps,
        **changes,
    )


class Losses(HookBase):
    """A hook that records the losses of each step and their dtypes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.found: list[dict[str, float]] = []
        self.types: set[torch.dtype] = set()
        model.register_forward_hook(self._note)

    def _note(self, _: Any, __: Any, losses: dict[str, torch.Tensor]) -> None:
        self.types |= {loss.dtype for loss in losses.values()}
        self.found.append({key: float(loss.detach()) for key, loss in losses.items()})


def trained(cfg: CfgNode, *hooks: HookBase) -> tuple[Trainer, Losses]:
    seed_all_rng(0)  # for the initial weights
    trainer = Trainer(cfg)
    losses = Losses(trainer.model)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load()
    trainer.train()
    return trainer, losses


@pytest.mark.parametrize(
    "variant",
    ["ensemble", *(pytest.param(v, marks=pytest.mark.slow) for v in LEARNED if v != "ensemble")],
)
def test_bfloat16_is_near_float32(variant: str, folder: Path) -> None:
    _, plain = trained(config(folder, variant, f"{variant}_plain", 3))
    trainer, half = trained(config(folder, variant, f"{variant}_half", 3, **BF16))
    assert isinstance(trainer._trainer, BFloat16Trainer)
    assert half.types == {torch.float32}
    assert half.found[0] != plain.found[0]
    for key, expected in plain.found[0].items():
        # losses of sampled regions depend on the proposals, which differ in 16 bits
        sampled = key in ("loss_cls", "loss_box_reg")
        limit = {"abs": 0.1} if key == "loss_box_reg" else {"rel": 0.05 if sampled else 0.01}
        assert half.found[0][key] == pytest.approx(expected, **limit), key
    for own, expected in zip(half.found, plain.found, strict=True):
        assert sum(own.values()) == pytest.approx(sum(expected.values()), rel=0.15)
    saved = torch.load(folder / f"{variant}_half" / "model_final.pth", weights_only=False)
    assert {v.dtype for v in saved["model"].values() if v.is_floating_point()} == {torch.float32}


class Terminated(HookBase):
    """A hook that sends SIGTERM to this process during a step."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_bfloat16_training_stopped_by_a_signal_resumes_exactly(folder: Path) -> None:
    whole, _ = trained(config(folder, "ensemble", "whole", 4, **BF16))
    broken = config(folder, "ensemble", "broken", 4, **BF16)
    with pytest.raises(SystemExit) as ended:
        trained(broken, Terminated(1))
    assert ended.value.code == 128 + signal.SIGTERM
    resumed, losses = trained(broken)
    assert resumed.start_iter == len(losses.found) == 2
    expected = whole.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in resumed.model.state_dict().items())


def test_a_bfloat16_divergence_names_the_images(folder: Path) -> None:
    trainer = Trainer(config(folder, "vild", "diverged", 2, **BF16))
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.projection.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"not finite; the images of this step: \[\d+"):
        trainer.train()


def test_float16_wants_a_gpu(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a GPU for .*fp16; on the CPU set it to bf16"):
        Trainer(config(folder, "vild", "fp16", 1, SOLVER__AMP__ENABLED=True))


def test_another_precision_takes_over_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This includes float16, whose gradient scaler is missing from other checkpoints."""
    trained(config(folder, "vild", "switched", 1))
    trainer = Trainer(config(folder, "vild", "switched", 2, **BF16))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer._trainer = AMPTrainer(
        trainer.model, trainer.data_loader, trainer.optimizer, grad_scaler=scaler
    )
    with caplog.at_level(logging.WARNING):
        trainer.resume_or_load()
    assert "ran in fp32 and resumes in bf16" in caplog.text
    assert (trainer.start_iter, scaler.get_scale()) == (1, 8.0)
