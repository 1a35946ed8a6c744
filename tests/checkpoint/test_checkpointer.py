"""Checkpoints of every format must be complete, finite and match the model."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from safetensors.torch import save_file
from torch import Tensor, nn

from vild.checkpoint import AtomicCheckpointer, load_weights

State = dict[str, Tensor]


class Detector(nn.Module):
    """A model of two parts, with a norm of each kind that has running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(3), persistent=False)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4), nn.BatchNorm2d(4))
        self.roi_heads = nn.Linear(4, 2)


def as_pickle(state: State, file: Path) -> None:
    model = {name: value.numpy() for name, value in state.items()}
    contents = {"model": model, "__author__": "x", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(contents))


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "pth": lambda state, file: torch.save({"model": state}, file),
    "pt": lambda state, file: torch.save(state, file),
    "bin": lambda state, file: torch.save({"model": state}, file),
    "pkl": as_pickle,
    "safetensors": lambda state, file: save_file(state, file),
}


def state_dict(model: nn.Module) -> State:
    """Return a plain dict, as other programs write it, without torch's module versions."""
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_has_to_be_complete(tmp_path: Path, ending: str) -> None:
    made, read, file = Detector(), Detector(), tmp_path / f"model.{ending}"
    state = state_dict(made)
    WRITERS[ending](state, file)
    load_weights(read, str(file))
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in state.items())

    WRITERS[ending]({k: v for k, v in state.items() if k.startswith("backbone")}, file)
    with pytest.raises(ValueError, match=r"lacks 2 of.*roi_heads\.weight.*only a backbone"):
        load_weights(Detector(), str(file))
    load_weights(Detector(), str(file), unused=("roi_heads.",))

    for norm in (1, 2):
        statistics = f"backbone.{norm}.running_mean"
        WRITERS[ending]({k: v for k, v in state.items() if k != statistics}, file)
        with pytest.raises(ValueError, match=rf"lacks 1 of.*{statistics}"):
            load_weights(Detector(), str(file))

    WRITERS[ending]({k: v for k, v in state.items() if not k.endswith("tracked")}, file)
    load_weights(Detector(), str(file))

    WRITERS[ending]({**state, "roi_heads.bias": torch.tensor([1.0, torch.nan])}, file)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 parameters \(roi_heads\.bias\)"):
        load_weights(Detector(), str(file))


@pytest.mark.parametrize("ending", WRITERS)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"model.{ending}"
    for content in (b"", b"not a checkpoint", b"\x80\x04\x95"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
            load_weights(Detector(), str(file))
    with pytest.raises(ValueError, match=r"expected a checkpoint at .*gone"):
        load_weights(Detector(), str(tmp_path / f"gone.{ending}"))
    with pytest.raises(ValueError, match="expected a checkpoint at"):
        load_weights(Detector(), str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.ones(3), {"model": 3}, {"model": {"a": "b"}}, {"state_dict": {"a": 1}}, "text"],
)
def test_other_contents_of_a_torch_file_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="Is it the checkpoint of a detector"):
        load_weights(Detector(), str(tmp_path / "model.pth"))


def test_no_checkpoint_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a checkpoint of the detector, got none"):
        load_weights(Detector(), "")


def test_resuming_needs_the_same_parameters_and_a_training_state(tmp_path: Path) -> None:
    trained = Detector()
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    AtomicCheckpointer(trained, str(tmp_path), optimizer=optimizer).save("model")
    file = str(tmp_path / "model.pth")

    def resume(model: nn.Module) -> AtomicCheckpointer:
        own = torch.optim.SGD(model.parameters(), 0.1)
        checkpointer = AtomicCheckpointer(model, str(tmp_path), optimizer=own)
        checkpointer.load(file)
        return checkpointer

    assert resume(Detector()).matched == len(trained.state_dict())
    other = Detector()
    other.roi_heads = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"cannot resume from .*of another shape: roi_heads\.w"):
        resume(other)
    other.roi_heads = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"unknown to the model: roi_heads\.weight"):
        resume(other)
    other.neck = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"missing: neck\.weight, neck\.bias"):
        resume(other)
    torch.save({"model": trained.state_dict()}, file)
    with pytest.raises(ValueError, match=r"no training state \(optimizer\)"):
        resume(Detector())


class Residual(nn.Module):
    """A module with the names of a ResNet's blocks inside an FPN."""

    def __init__(self, channels: int = 2, **blocks: int) -> None:
        super().__init__()
        stages = {
            stage: nn.Sequential(*(nn.Conv2d(channels, channels, 1) for _ in range(count)))
            for stage, count in blocks.items()
        }
        self.backbone = nn.ModuleDict({"bottom_up": nn.ModuleDict(stages)})
        self.roi_heads = nn.Linear(4, 2)


def as_zoo_backbone(state: State, file: Path) -> None:
    """Write backbone weights like Detectron2's model zoo, without the detector's prefix."""
    prefix = "backbone.bottom_up."
    as_pickle({k.removeprefix(prefix): v for k, v in state.items() if prefix in k}, file)


@pytest.mark.parametrize("write", [WRITERS["pth"], as_zoo_backbone])
@pytest.mark.parametrize(("theirs", "ours"), [(23, 6), (6, 23)])
def test_a_resnet_of_another_depth_is_refused(
    write: Callable[[State, Path], None], theirs: int, ours: int, tmp_path: Path
) -> None:
    """It would load partially and leave the remaining weights random."""
    file = tmp_path / ("model.pkl" if write is as_zoo_backbone else "model.pth")
    write(state_dict(Residual(res3=4, res4=theirs)), file)
    model = Residual(res3=4, res4=ours)
    for load in (
        partial(load_weights, model, unused=("backbone.",)),
        partial(AtomicCheckpointer(model).load, checkpointables=[]),  # to start a training
    ):
        with pytest.raises(ValueError, match=rf"with {ours} blocks in res4, got {theirs}.*DEPTH"):
            load(path=str(file))


def test_a_stage_that_only_one_has_is_no_fault(tmp_path: Path) -> None:
    file = str(tmp_path / "model.pth")
    for theirs, ours in (({"res3": 4, "res4": 6}, {"res3": 4}), ({"res3": 4}, {"res3": 4, "x": 1})):
        WRITERS["pth"](state_dict(Residual(**theirs)), Path(file))
        AtomicCheckpointer(Residual(**ours)).load(file, checkpointables=[])


@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_a_resnet_of_another_kind_is_refused(ending: str, tmp_path: Path) -> None:
    file, state = tmp_path / f"model.{ending}", state_dict(Residual(res3=4))
    write = as_zoo_backbone if ending == "pkl" else WRITERS["pth"]
    write(state, file)
    AtomicCheckpointer(Residual(res3=4)).load(str(file), checkpointables=[])
    other = {f"backbone.bottom_up.res3.0.{key}.weight": torch.ones(2, 2) for key in ("norm", "x")}
    write({**state, **other}, file)
    with pytest.raises(ValueError, match=r"another kind of ResNet.*\(.*res3\.0\.x\.weight\)"):
        AtomicCheckpointer(Residual(res3=4)).load(str(file), checkpointables=[])
    state["backbone.bottom_up.res3.0.weight"] = torch.ones(3, 3, 1, 1)
    write(state, file)
    with pytest.raises(ValueError, match=r"another kind of ResNet.*\(.*res3\.0\.weight\)"):
        AtomicCheckpointer(Residual(res3=4)).load(str(file), checkpointables=[])


def test_advice_about_a_damaged_checkpoint_fits_what_was_asked_for(tmp_path: Path) -> None:
    checkpointer = AtomicCheckpointer(Detector(), str(tmp_path))
    checkpointer.save("model_0000001")
    (tmp_path / "model_0000003.pth").write_bytes(b"half")
    file = str(tmp_path / "model_0000003.pth")
    with pytest.raises(ValueError, match=r"`--resume-from model_0000001\.pth` continues"):
        checkpointer.load(file)
    for load in (
        lambda: load_weights(Detector(), file),
        lambda: checkpointer.load(file, checkpointables=[]),
    ):
        with pytest.raises(ValueError, match="newest other checkpoint in its folder is") as error:
            load()
        assert "--resume-from" not in str(error.value)
