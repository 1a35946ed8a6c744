"""Checkpointing: atomic writes, reading of all formats, and checks for complete weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from vild.checkpoint.files import read_checkpoint
from vild.storage.errors import UnsafeFileError
from vild.utils.files import atomic_path

IMAGE_HEAD = "roi_heads.image_head."  # only in ViLD-ensemble
_BLOCK = re.compile(r"(?:^|\.)(res\d)[._](\d+)[._]")  # ResNets of Detectron2 and Detectron


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes and with checks of what it loads.

    If the process is killed during a write, the previous checkpoint remains the last one.

    Attributes:
        missing: parameters and running statistics that the loaded checkpoint lacks.
        misshapen: parameters that the checkpoint has in another shape.
        unexpected: entries of the checkpoint that the model does not have.
        matched: number of the model's parameters and buffers that were loaded.
    """

    missing: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    matched: int = 0
    _resumes: bool = False  # whether the training state is loaded too
    _resumed: str = ""  # path of the checkpoint while resuming from it

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and make it the last checkpoint.

        Raises:
            OSError: the file cannot be written; the last checkpoint is unchanged.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        file = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", file)
        # opened here because torch.save, given a path, hides the reason of a failure
        with atomic_path(file) as temporary, temporary.open("wb") as out:
            torch.save({**data, **kwargs}, out)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record the name of the last checkpoint, atomically."""
        with atomic_path(Path(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename, encoding="utf-8")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint.

        Args:
            path: a file that :func:`vild.checkpoint.files.read_checkpoint` reads, or an
                address such as ``detectron2://...``.
            checkpointables: what to load besides the model; None loads everything, to resume
                training.

        Returns:
            The entries of the checkpoint that were not used.

        Raises:
            ValueError: the checkpoint does not exist, is damaged, would run code, has non-finite
                values or belongs to another ResNet; or, when resuming, its parameters differ from
                the model's or it has no training state.
        """
        self._resumes = checkpointables is None
        self._resumed = path if self._resumes and self.checkpointables else ""
        try:
            return super().load(path, checkpointables)
        except (AssertionError, OSError) as error:
            raise ValueError(f"expected a checkpoint at {path}: {error}") from None
        except RuntimeError as error:
            if "catalog" not in str(error):  # Detectron2's error for an unknown catalog:// name
                raise
            raise ValueError(f"expected a checkpoint at {path}: {error}") from None
        finally:
            self._resumed = ""
            # newer Detectron2 versions keep the address in this attribute after an error
            if hasattr(self, "_parsed_url_during_load"):
                self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            loaded = read_checkpoint(Path(filename))
        except UnsafeFileError as error:
            raise ValueError(
                f"{error}: expected a checkpoint of tensors and plain values. If you trust its "
                f"source, convert it once: python tools/convert_checkpoint.py {filename} "
                f"{Path(filename).stem}.safetensors --trusted"
            ) from None
        # unpickling damaged data may raise almost any exception
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{filename} is damaged or not a checkpoint ({type(error).__name__}: {reason}). "
                f"{self._advice(Path(filename))}"
            ) from None
        weights = loaded.get("model") if isinstance(loaded, dict) else loaded
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"{filename}: expected a dict of parameters, or one with a dict under 'model', got "
                f"{type(weights).__name__}. Is it the checkpoint of a detector?"
            )
        for name, value in weights.items():
            if not isinstance(name, str) or not _is_array(value):
                raise ValueError(
                    f"{filename}: expected arrays of numbers by name, got {type(value).__name__} "
                    f"under {name!r}. Is it the checkpoint of a detector?"
                )
        return loaded

    def _advice(self, file: Path) -> str:
        """Suggest another checkpoint in place of a damaged one."""
        others = sorted(
            (f for f in file.parent.glob("model_*.pth") if f != file),
            key=lambda f: f.stat().st_mtime,
        )
        if not others:
            return "No other checkpoint is in its folder"
        if self._resumes:
            return (
                f"The previous one is {others[-1]}; `--resume-from {others[-1].name}` continues "
                "from it"
            )
        return f"The newest other checkpoint in its folder is {others[-1]}"

    def _load_model(self, checkpoint: Any) -> Any:
        given: set[str] = set()

        def note(state: Mapping[str, Any], prefix: str, *_: Any) -> None:
            given.update(state)

        # Detectron2's report is incomplete: frozen norms fill in missing running statistics
        hook = self.model._register_load_state_dict_pre_hook(note)
        try:
            incompatible = super()._load_model(checkpoint)
        finally:
            hook.remove()
        # Detectron folds the running statistics into the weights of the norms
        folded = checkpoint.get("__author__") == "Caffe2"
        self.misshapen = tuple(name for name, *_ in incompatible.incorrect_shapes)
        # a copy, because Detectron2 removes entries from these lists as it logs them
        self.unexpected = tuple(incompatible.unexpected_keys)
        state = self.model.state_dict()
        absent = incompatible.missing_keys if folded else state.keys() - given
        ignored = {*self.misshapen, "pixel_mean", "pixel_std"}
        self.missing = tuple(
            name
            for name in state
            if name in absent and name not in ignored and not name.endswith("num_batches_tracked")
        )
        self.matched = len(state.keys() & given)
        broken = [name for name in state if name in given and not torch.isfinite(state[name]).all()]
        if broken:
            raise ValueError(
                f"the checkpoint has NaN or infinity in {len(broken)} parameters "
                f"({_some(broken)}): the training that wrote it diverged. Use an earlier one"
            )
        if self._resumed:
            self._check_resumable(checkpoint)
        self._check_backbone(given)
        return incompatible

    def _check_backbone(self, given: Iterable[str]) -> None:
        """Raise ValueError if the checkpoint is of another ResNet, which would load partially.

        A stage that only one of the two has is accepted: some detectors omit the last stage.
        """
        held, wanted = _blocks((*given, *self.unexpected)), _blocks(self.model.state_dict())
        for stage in sorted(held.keys() & wanted.keys()):
            if held[stage] != wanted[stage]:
                raise ValueError(
                    f"expected the checkpoint of a ResNet with {len(wanted[stage])} blocks in "
                    f"{stage}, got {len(held[stage])}: set MODEL.RESNETS.DEPTH to the checkpoint's "
                    "depth, or use a checkpoint of this depth"
                )
        # convolutions of the common stages; Detectron2 skips those that do not fit
        unused = [n for n in self.unexpected if n.endswith(".weight") and "norm" not in n]
        odd = [n for n in (*self.misshapen, *unused) if _blocks([n]).keys() & wanted.keys()]
        if odd and _blocks(self.model.state_dict().keys() & set(given)):
            raise ValueError(
                f"expected a checkpoint of the configuration's ResNet, got another kind of ResNet "
                f"with other layers ({_some(odd)}). Check MODEL.RESNETS"
            )

    def _check_resumable(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise ValueError unless all parameters match and the training state is present."""
        misfits = [
            f"{kind} {_some(names)}"
            for kind, names in (
                ("missing:", self.missing),
                ("of another shape:", self.misshapen),
                ("unknown to the model:", self.unexpected),
            )
            if names
        ]
        if misfits:
            raise ValueError(
                f"cannot resume from {self._resumed}: its parameters do not fit the model "
                f"({'; '.join(misfits)}). Resume with the configuration of the interrupted run; to "
                "start a new run from these weights, pass them as MODEL.WEIGHTS with another "
                "OUTPUT_DIR and without --resume"
            )
        lacking = [key for key in self.checkpointables if key not in checkpoint]
        if lacking:
            raise ValueError(
                f"cannot resume from {self._resumed}: it has weights but no training state "
                f"({', '.join(lacking)}). To start training from it, pass it as MODEL.WEIGHTS"
            )


def load_weights(model: nn.Module, path: str, unused: tuple[str, ...] = ()) -> None:
    """Load a detector's weights for inference, and refuse an incomplete checkpoint.

    Detectron2 only logs which parameters keep their random values. All tools that run a detector
    load it with this function.

    Args:
        model: the detector.
        path: checkpoint; see :meth:`AtomicCheckpointer.load`.
        unused: name prefixes of parameters that may be absent from the model or the checkpoint.

    Raises:
        ValueError: ``path`` is empty or cannot be read; parameters or running statistics are
            missing, have another shape or non-finite values (the message lists the first ones); or
            it is a checkpoint of ViLD-ensemble and the model has no image head.
    """
    if not path:
        raise ValueError(
            "expected a checkpoint of the detector, got none: set MODEL.WEIGHTS or --weights"
        )
    checkpointer = AtomicCheckpointer(model)
    checkpointer.load(path, checkpointables=[])
    odd = {*checkpointer.missing, *checkpointer.misshapen}
    missing = [name for name in model.state_dict() if name in odd and not name.startswith(unused)]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the model's parameters, or has them in another shape "
            f"({_some(missing)}): it is only a backbone, or a checkpoint of another variant or "
            "architecture. Use a checkpoint of this configuration"
        )
    # half of ViLD-ensemble would load as ViLD or ViLD-text and give misleading metrics
    if not IMAGE_HEAD.startswith(unused) and any(
        name.startswith(IMAGE_HEAD) for name in checkpointer.unexpected
    ):
        raise ValueError(
            f"{path} is a checkpoint of ViLD-ensemble, but the configuration has no image head. "
            "Use the configuration that it was trained with; with MODEL.VILD.FUSION_WEIGHTS "
            "'[1.0, 1.0]', only its text head counts"
        )


def _blocks(names: Iterable[str]) -> dict[str, set[int]]:
    """Return the residual blocks that the parameters belong to: stage -> block numbers."""
    blocks: dict[str, set[int]] = {}
    for name in names:
        if found := _BLOCK.search(name):
            blocks.setdefault(found[1], set()).add(int(found[2]))
    return blocks


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    )


def _some(names: Iterable[str]) -> str:
    """Join the first three names."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
