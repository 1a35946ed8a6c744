"""Several CPU ranks: ranks without regions, and the loss of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine.defaults import create_ddp_model
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_box_head, build_mask_head
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vild.config import read_config
from vild.engine import launch
from vild.modeling import EmbeddingHead, ViLDBoxHead

from ..making import mapped_image, text_embeddings, tiny_model

ROOT = Path(__file__).parents[2]


def head(norm: str) -> EmbeddingHead:
    torch.manual_seed(0)
    sizes = {"conv_dim": 32, "num_conv": 2, "fc_dim": 64, "num_fc": 1}
    return EmbeddingHead(
        ViLDBoxHead(ShapeSpec(channels=8, height=3, width=3), norm=norm, **sizes), 16
    )


def pooled(regions: int) -> Tensor:
    return torch.randn(regions, 8, 3, 3, generator=torch.Generator().manual_seed(1))


def step(model: EmbeddingHead, regions: Tensor) -> dict[str, Tensor]:
    """Return embeddings, gradients of a squared loss on them, and running statistics."""
    regions = regions.clone().requires_grad_()
    embeddings = model.train()(regions)
    (embeddings * torch.linspace(0, 1, 16)).sum().backward()
    found = {f"grad {k}": p.grad for k, p in model.named_parameters()}
    found |= {k: v.clone() for k, v in model.named_buffers() if "running" in k}
    return {**found, "embeddings": embeddings.detach(), "input": regions.grad}


COUNTS = [(5, 0), (0, 4), (3, 2), (1, 0), (0, 0)]  # regions per rank


def _uneven(folder: str) -> None:
    rank, found = comm.get_rank(), {}
    for dtype in (torch.float32, torch.bfloat16):
        for counts in COUNTS:
            own = pooled(sum(counts))[sum(counts[:rank]) :][: counts[rank]]
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                found[dtype, counts] = step(head("SyncBN"), own)
    torch.save(found, Path(folder, f"{rank}.pth"))


def test_synchronised_statistics_of_uneven_processes(tmp_path: Path) -> None:
    """They equal those of one process with all regions, even if one of two ranks has none."""
    launch(_uneven, 2, args=(str(tmp_path),), device="cpu")
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1)]
    for counts in COUNTS:
        parts = [rank[torch.float32, counts] for rank in ranks]
        for key, expected in step(head("BN"), pooled(sum(counts))).items():
            if key.startswith("grad"):
                found = parts[0][key] + parts[1][key]
            elif "running" in key:
                assert torch.equal(parts[0][key], parts[1][key])
                found = parts[0][key]
            else:
                found = torch.cat([parts[0][key], parts[1][key]])
            message = f"{key} of {counts}"
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=message)
        for rank in ranks:
            for value in rank[torch.bfloat16, counts].values():
                assert torch.isfinite(value).all()


def recipes() -> list[tuple[str, CfgNode]]:
    """Return a small configuration for each set of heads in the LVIS and COCO recipes."""
    found: dict[str, tuple[str, CfgNode]] = {}
    for file in sorted((ROOT / "configs").glob("[CL]*/*_*.yaml")):
        cfg = read_config(file)
        for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
            head.CONV_DIM = 32
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
        heads = str((cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD))
        found.setdefault(heads, (file.stem, cfg))
    return list(found.values())


def step_of_heads(cfg: CfgNode, regions: Tensor) -> dict[str, Tensor]:
    """Return outputs of an image, a text and a mask head, with gradients and statistics."""
    torch.manual_seed(0)
    shape = ShapeSpec(channels=8, height=7, width=7)
    box_head, mask_head = build_box_head(cfg, shape), build_mask_head(cfg, shape)
    model = torch.nn.ModuleList([EmbeddingHead(build_box_head(cfg, shape), 16), box_head])
    outputs = [head.train()(regions) for head in model]
    model.append(mask_head.train())
    outputs.append(mask_head.layers(regions).flatten(1))
    goals = [torch.linspace(0, 1, out.shape[1]) for out in outputs]
    sum((out * goal).sum() for out, goal in zip(outputs, goals, strict=True)).backward()
    found = {f"grad {k}": p.grad for k, p in model.named_parameters()}
    found |= {k: v.clone() for k, v in model.named_buffers() if "running" in k}
    return found | {f"output {n}": out.detach().float() for n, out in enumerate(outputs)}


def heads_of_recipes(counts: tuple[int, int], rank: int | None) -> dict[Any, dict[str, Tensor]]:
    first = torch.randn(sum(counts), 8, 7, 7, generator=torch.Generator().manual_seed(1))
    own = first if rank is None else first.split(counts)[rank]
    found = {}
    for name, cfg in recipes():
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                found[name, dtype] = step_of_heads(cfg, own)
    return found


def _heads(folder: str) -> None:
    torch.save(heads_of_recipes((6, 0), comm.get_rank()), Path(folder, f"{comm.get_rank()}.pth"))


def test_heads_of_every_recipe_where_one_process_has_no_region(tmp_path: Path) -> None:
    launch(_heads, 2, args=(str(tmp_path),), device="cpu")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    whole = heads_of_recipes((6, 0), None)
    assert {cfg.MODEL.ROI_MASK_HEAD.NORM for _, cfg in recipes()} == {"", "SyncBN"}
    for (name, dtype), expected in whole.items():
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        for key, value in expected.items():
            found = first[name, dtype][key]
            if key.startswith("grad"):
                found = found + second[name, dtype][key]
            elif "running" in key:
                assert torch.equal(found, second[name, dtype][key]), (name, key)
            else:
                assert len(second[name, dtype][key]) == 0
            error = (found - value).norm() / value.norm().clamp(min=0.5)
            assert error < tolerance, (name, dtype, key, float(error))


OFFICIAL = (  # official parts used by configs/schedules/lsj.yaml
    *("MODEL.BACKBONE.NAME", "build_official_resnet_fpn_backbone"),
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
    *("MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.NORM", "SyncBN"),
    *("MODEL.FPN.NORM", "SyncBN", "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.ROI_MASK_HEAD.NAME", "OfficialMaskHead", "MODEL.ROI_MASK_HEAD.NORM", "SyncBN"),
)


def _train(folder: str, changes: tuple[Any, ...]) -> None:
    text = text_embeddings(["crow", "owl", "kite"], novel=["owl"], temperature=0.05)
    own = Path(folder, str(comm.get_rank()))
    own.mkdir()
    changes = ("MODEL.ROI_BOX_HEAD.NORM", "SyncBN", *changes)
    model = tiny_model(own, "ensemble", text, *changes).train()
    model = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    # the second rank has an image without objects or regions
    batch = [mapped_image(3, 5) if comm.is_main_process() else mapped_image(0, 0)]
    for _ in range(3):
        with EventStorage():
            losses = model(batch)
        assert all(torch.isfinite(loss) for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert isinstance(model, DistributedDataParallel)
    torch.save(model.module.state_dict(), Path(folder, f"{comm.get_rank()}.pth"))


@pytest.mark.parametrize("changes", [(), OFFICIAL], ids=["detectron2", "official"])
def test_training_where_one_process_has_nothing_to_learn_from(
    changes: tuple[Any, ...], tmp_path: Path
) -> None:
    launch(_train, 2, args=(str(tmp_path), changes), device="cpu")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    for key, value in first.items():
        assert torch.isfinite(value.float()).all(), key
        if "roi_heads" in key or changes:
            assert torch.equal(value, second[key]), key
