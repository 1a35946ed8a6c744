"""Box head and embedding head: layers, empty batches, running statistics, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from torch import Tensor, distributed, nn

from vild.modeling import EmbeddingHead, ViLDBoxHead
from vild.modeling.norms import SyncBatchNorm

from .waits import Waits

NORMS = ("SyncBN", "BN", "GN", "none")


def small_head(norm: str = "BN", **sizes: Any) -> EmbeddingHead:
    torch.manual_seed(0)
    sizes = {"conv_dim": 32, "num_conv": 2, "fc_dim": 64, "num_fc": 2} | sizes
    head = ViLDBoxHead(ShapeSpec(channels=8, height=3, width=3), norm=norm, **sizes)
    return EmbeddingHead(head, 16)


def pooled(regions: int) -> Tensor:
    return torch.randn(regions, 8, 3, 3, generator=torch.Generator().manual_seed(1))


def statistics(head: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in head.state_dict().items() if "running" in k}


def test_layers_are_the_papers_by_default() -> None:
    head = ViLDBoxHead(ShapeSpec(channels=256, height=7, width=7))
    assert [tuple(x.weight.shape) for x in head.convs] == [(256, 256, 3, 3)] * 4
    assert [tuple(x.weight.shape) for x in head.fcs] == [(1024, 256 * 49), (1024, 1024)]
    assert all(x.bias is not None for x in (*head.convs, *head.fcs))
    for norm in (*head.conv_norms, *head.fc_norms):
        assert isinstance(norm, SyncBatchNorm)
        assert isinstance(norm, nn.BatchNorm2d)  # Detectron2 exempts this type from weight decay
        assert (norm.eps, norm.momentum) == (1e-4, 0.1)
    assert head.output_shape == ShapeSpec(channels=1024)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_embeddings_are_unit_rows(norm: str, training: bool) -> None:
    head = small_head(norm).train(training)
    embeddings = head(pooled(5))
    assert embeddings.shape == (5, 16)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(5))
    embeddings[:, 0].sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_features_and_embeddings_in_two_steps() -> None:
    head = small_head().eval()
    features = head.box_head(pooled(5))
    assert features.shape == (5, 64)
    assert features.min() >= 0
    assert torch.equal(head.projection(features), head(pooled(5)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_no_region(norm: str, training: bool) -> None:
    head = small_head(norm)
    head(pooled(5))  # statistics that are no longer 0 and 1
    before = statistics(head)
    head.train(training)
    embeddings = head(pooled(0))
    assert embeddings.shape == (0, 16)
    embeddings.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    assert all(torch.equal(value, before[key]) for key, value in statistics(head).items())


@pytest.mark.parametrize("norm", ["SyncBN", "BN"])
def test_one_region_alone_in_training(norm: str) -> None:
    head = small_head(norm, num_conv=0)
    head(pooled(5))
    before = statistics(head)
    embedding = head(pooled(1))
    assert all(torch.equal(value, before[key]) for key, value in statistics(head).items())
    assert torch.allclose(embedding, head.eval()(pooled(1)))
    small_head(norm).train()(pooled(1))  # convolutions have enough values


@pytest.mark.parametrize("norm", ["SyncBN", "BN"])
def test_statistics_move_by_the_momentum(norm: str) -> None:
    head = small_head(norm, num_conv=0, num_fc=1, momentum=0.003)  # the official momentum
    (fc,), (layer,) = head.box_head.fcs, head.box_head.fc_norms
    mean = fc(pooled(5).flatten(1)).mean(dim=0)
    head(pooled(5))
    assert torch.allclose(layer.running_mean, 0.003 * mean, atol=1e-6)


@pytest.mark.parametrize("regions", [0, 1, 5])
def test_synchronised_statistics_are_exchanged_in_float32_without_waiting(
    regions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with and without regions exchange the same dtype; the host reads no value."""
    sent = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda x: sent.append((x.dtype, x.shape)))
    layer = SyncBatchNorm(8).train()
    features = torch.randn(regions, 8, 3, 3, dtype=torch.bfloat16)
    with Waits() as waits, torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(features)
    assert out.dtype == torch.bfloat16
    assert sent == [(torch.float32, (9,)), (torch.float32, (8,))]
    assert not waits.found


@pytest.mark.parametrize("norm", NORMS)
def test_float32_embeddings_under_autocast(norm: str) -> None:
    head = small_head(norm).train()
    expected = head(pooled(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = head.box_head(pooled(5))
        embeddings = head.projection(features)
        again = head.projection(features.float())
        assert head(pooled(0)).dtype == torch.float32
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, again)  # the projection itself is not rounded
    assert torch.allclose(embeddings, expected, atol=0.05)


def test_gradient() -> None:
    head = small_head("GN", conv_dim=32, num_conv=1, fc_dim=64, num_fc=1).double()
    features = torch.rand(2, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head.projection, features)


def test_misuse() -> None:
    with pytest.raises(ValueError, match=r"SyncBN, BN, GN or none, got 'FrozenBN'"):
        small_head("FrozenBN")
    with pytest.raises(ValueError, match=r"at least 64 values for GN.*got 32"):
        small_head("GN", fc_dim=32)
    with pytest.raises(ValueError, match="channels, height and width"):
        ViLDBoxHead(ShapeSpec(channels=256))
