"""The precision of inference: what ``auto`` is on each device, and which operations it changes."""

from __future__ import annotations

import argparse

import pytest
import torch

from vild.precision import autocast, resolve_precision
from vild_cli.arguments import add_precision_argument
from vild_cli.training import parse

TESTS_OF_CPUS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cuda", (9, 0), "bf16"),
        ("cuda:1", (8, 0), "bf16"),
        ("cuda", (7, 5), "fp32"),
        ("meta", (9, 0), "fp32"),
    ],
)
def test_auto_on_gpus(
    device: str, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert resolve_precision("auto", device) == expected


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (True, False, "bf16"),
        (False, True, "bf16"),
        (False, False, "fp32"),
        (None, None, "fp32"),  # PyTorch 2.4 cannot tell
    ],
)
def test_auto_on_processors(
    avx512: bool | None, amx: bool | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, answer in zip(TESTS_OF_CPUS, (avx512, amx), strict=True):
        if answer is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("fp16", torch.device("cpu")) == "fp16"  # what is asked for stays


@pytest.mark.parametrize("precision", ["fp8", "", "float32"])
def test_unknown_precisions(precision: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a precision of auto, fp32, bf16, fp16, got '"):
        resolve_precision(precision, "cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_autocast(precision: str, dtype: torch.dtype) -> None:
    with autocast(precision, "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([]).precision == "fp32"  # of an evaluation: published figures stay
    assert parse(["--eval-only", "--precision", "auto"]).precision == "auto"
    parser = argparse.ArgumentParser()
    add_precision_argument(parser, "auto")
    assert parser.parse_args([]).precision == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["--precision", "fp8"])
    assert "invalid choice: 'fp8'" in capsys.readouterr().err.splitlines()[-1]
