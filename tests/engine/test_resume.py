"""An interrupted and resumed training gives the same result as an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from vild.checkpoint import AtomicCheckpointer, load_weights
from vild.engine import Trainer
from vild.engine.hooks import CheckpointAndStop

from .. import small_shapes
from ..forked import Forked
from ..making import text_embeddings, tiny_model
from .run_training import read_losses

ITERATIONS = 24  # enough for five kills, some steps apart


def start(folder: Path, run: str, workers: int) -> Forked:
    return Forked(["-m", "tests.engine.run_training", folder, run, ITERATIONS, workers])


@pytest.mark.slow
def test_killed_at_five_moments_and_resumed(tmp_path: Path) -> None:
    """Use 0 and 2 loader workers alternately; all signals but one also reach the workers."""
    small_shapes.make(tmp_path, 6)
    whole = start(tmp_path, "whole", 0)
    output = whole.communicate()
    assert whole.returncode == 0, output[-3000:]
    expected = read_losses(tmp_path / "whole" / "losses.jsonl")
    assert sorted(expected) == list(range(ITERATIONS))
    assert len({losses["lr"] for losses in expected.values()}) > 4  # warm-up and both decays

    rng = random.Random(0)
    log = tmp_path / "broken" / "losses.jsonl"
    kill, term, ctrl_c = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    for turn, number in enumerate([kill, ctrl_c, term, term, kill]):
        process = start(tmp_path, "broken", workers=2 * (turn % 2))
        done = len(log.read_text().splitlines()) if log.is_file() else 0
        wanted = done + rng.randint(1, 3)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.is_file() and len(log.read_text().splitlines()) >= wanted:
                break
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(rng.random() * 0.2)
        if turn == 2:
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)
        output = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), output
        if number != signal.SIGKILL:
            assert f"{number.name}: writing a checkpoint after this step" in output
            last = (tmp_path / "broken" / "last_checkpoint").read_text()
            assert last == f"model_{max(read_losses(log)):07d}.pth"
    process = start(tmp_path, "broken", 2)
    output = process.communicate()
    assert process.returncode == 0, output[-3000:]

    found = read_losses(log)
    assert sorted(found) == sorted(expected)
    for iteration, losses in expected.items():
        assert set(found[iteration]) == set(losses)
        for key, value in losses.items():
            assert abs(found[iteration][key] - value) <= 1e-6 * abs(value), (iteration, key)
    final = [
        torch.load(tmp_path / run / "model_final.pth", weights_only=False)["model"]
        for run in ("whole", "broken")
    ]
    assert all(torch.equal(value, final[1][key]) for key, value in final[0].items())


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    return tiny_model(tmp_path, "ensemble", text_embeddings(3))


def test_a_checkpoint_is_whole_or_not_there(
    model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")

    def breaks_off(data: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000003")
    assert [f.name for f in tmp_path.glob("*.pth")] == ["model_0000001.pth"]
    assert not list(tmp_path.glob(".*"))
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")


def test_a_truncated_last_checkpoint_is_named_and_not_passed_over(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    checkpointer = AtomicCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.save("model_0000003")
    file = tmp_path / "model_0000003.pth"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"model_0000003\.pth is damaged.*") as error:
        checkpointer.resume_or_load("", resume=True)
    assert "--resume-from model_0000001.pth" in str(error.value)
    checkpointer.load(str(tmp_path / "model_0000001.pth"))
    (tmp_path / "model_0000001.pth").unlink()
    with pytest.raises(ValueError, match="No other checkpoint is in its folder"):
        checkpointer.load(str(file))
    with pytest.raises(ValueError, match=r"expected a checkpoint at .*gone\.pth"):
        checkpointer.load(str(tmp_path / "gone.pth"))


def test_a_checkpoint_of_another_variant_is_refused(tmp_path: Path) -> None:
    text = text_embeddings(3)
    single = tiny_model(tmp_path, "vild", text)
    DetectionCheckpointer(single, str(tmp_path)).save("single")
    file = str(tmp_path / "single.pth")
    load_weights(tiny_model(tmp_path, "text", text), file)
    ensemble = tiny_model(tmp_path, "ensemble", text)
    with pytest.raises(ValueError, match=r"lacks .*roi_heads\.image_head.*another variant"):
        load_weights(ensemble, file)
    other = tiny_model(tmp_path, "vild", text_embeddings(3, 8))
    with pytest.raises(ValueError, match=r"another shape \(roi_heads\.box_predictor\.projection"):
        load_weights(other, file)
    load_weights(ensemble, file, unused=("roi_heads.image_head",))
    DetectionCheckpointer(ensemble, str(tmp_path)).save("ensemble")
    file = str(tmp_path / "ensemble.pth")
    with pytest.raises(ValueError, match=r"ViLD-ensemble, but the configuration has no image head"):
        load_weights(single, file)
    load_weights(single, file, unused=("roi_heads.image_head",))


def test_losses_that_are_no_numbers_name_their_images(tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 3)
    cfg = small_shapes.config(tmp_path, "vild", SOLVER__IMS_PER_BATCH=2, SOLVER__MAX_ITER=3)
    trainer = Trainer(cfg)
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.projection.bias[0] = torch.nan
    batch = next(iter(trainer.data_loader))
    images = [mapped["image_id"] for mapped in batch]
    with pytest.raises(FloatingPointError, match=r"'loss_cls': nan.*BASE_LR") as error:
        trainer.train()
    assert f"the images of this step: {images}" in str(error.value)


def test_a_divergence_seen_by_detectron2_names_the_images_too(tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 3)
    cfg = small_shapes.config(tmp_path, "vild", SOLVER__IMS_PER_BATCH=2, SOLVER__MAX_ITER=3)
    trainer = Trainer(cfg)
    with torch.no_grad():
        trainer.model.proposal_generator.rpn_head.objectness_logits.bias[0] = torch.nan
    images = [mapped["image_id"] for mapped in next(iter(trainer.data_loader))]
    with pytest.raises(FloatingPointError, match=r"contain Inf/NaN.*BASE_LR") as error:
        trainer.train()
    assert f"the images of this step: {images} (process 0)" in str(error.value)


def test_what_a_training_begins_with_or_resumes_from_has_to_fit(tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 3)
    changes = {"DATASETS__TEST": (), "SOLVER__IMS_PER_BATCH": 2, "SOLVER__MAX_ITER": 1}

    def trainer(variant: str, **more: Any) -> Trainer:
        return Trainer(small_shapes.config(tmp_path, variant, **changes, **more))

    def begin(content: Any) -> None:
        file = tmp_path / "begin.pth"
        torch.save(content, file)
        trainer("vild", MODEL__WEIGHTS=str(file)).resume_or_load(resume=False)

    first = trainer("vild")
    first.train()
    weights = first.model.state_dict()
    begin({"model": {k: v for k, v in weights.items() if "bottom_up" in k}})
    with pytest.raises(ValueError, match=r"contains none of the model's parameters"):
        begin({"model": {"nothing": torch.ones(1)}})
    with pytest.raises(ValueError, match="NaN or infinity"):
        begin(
            {"model": {"backbone.fpn_lateral2.weight": weights["backbone.fpn_lateral2.weight"] / 0}}
        )

    with pytest.raises(ValueError, match=r"of another shape: roi_heads\.box_head\.fcs\.0\.weight"):
        trainer("vild", MODEL__ROI_BOX_HEAD__FC_DIM=128).resume_or_load()
    with pytest.raises(ValueError, match=r"missing: roi_heads\.image_head"):
        trainer("ensemble").resume_or_load()
    # the same parameters
    with pytest.raises(
        ValueError, match=r"VARIANT 'text', as in the configuration, got one of 'vild'"
    ):
        trainer("text").resume_or_load()
    again = trainer("vild")
    again.resume_or_load(file="model_final.pth")
    assert again.start_iter == 1


def test_the_one_who_listened_before_is_told_after_the_checkpoint(tmp_path: Path) -> None:
    """submitit relies on this to resubmit the job."""
    events: list[str] = []

    class Checkpointer:
        def save(self, name: str, **_: Any) -> None:
            events.append(name)

    class Told(Exception):
        pass

    def listener(number: int, _: Any) -> None:
        events.append(f"told {number}")
        raise Told

    before = signal.signal(signal.SIGUSR1, listener)
    try:
        hook = CheckpointAndStop(Checkpointer())  # type: ignore[arg-type]
        hook.trainer = type("T", (), {"iter": 7})()
        hook.before_train()
        hook.after_step()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Told):
            hook.after_step()
        hook.after_train()
        assert signal.getsignal(signal.SIGUSR1) is listener
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert events == ["model_0000007", f"told {signal.SIGUSR1}"]
