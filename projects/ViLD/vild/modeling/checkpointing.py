"""Checkpoints that are whole or not there, and errors that say which file is meant."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from vild.data.files import atomic_path

IMAGE_HEAD = "roi_heads.image_head."  # of ViLD-ensemble


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file appears under its name once it is whole.

    A process that is killed while it writes leaves the checkpoint before as the last one.

    Attributes:
        missing: parameters and buffers that the last checkpoint did not have.
        misshapen: those that it had in another shape.
        unexpected: what it had and the model has not.
    """

    missing: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and make it the last checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        file = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", file)
        with atomic_path(file) as temporary:
            torch.save({**data, **kwargs}, temporary)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the last checkpoint."""
        with atomic_path(Path(self.save_dir, "last_checkpoint")) as temporary:
            Path(temporary).write_text(last_filename_basename, encoding="utf-8")

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            ValueError: there is none, or it is not whole; nothing else is loaded in its stead.
        """
        try:
            return super().load(path, *args, **kwargs)
        except (AssertionError, FileNotFoundError) as error:
            raise ValueError(f"expected a checkpoint at {path}: {error}") from None
        except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
                raise
            others = sorted(
                (f for f in Path(path).parent.glob("model_*.pth") if f.name != Path(path).name),
                key=lambda f: f.stat().st_mtime,
            )
            advice = (
                f"The one before is {others[-1]}; `--resume-from {others[-1].name}` goes on from it"
                if others
                else "There is no other one beside it"
            )
            raise ValueError(
                f"the checkpoint {path} is not whole ({str(error).splitlines()[0]}). {advice}"
            ) from None
        finally:
            # newer Detectrons note the address for the time of loading, and keep it after an error
            if hasattr(self, "_parsed_url_during_load"):
                self._parsed_url_during_load = None

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        # Detectron2 takes what it has logged out of these lists
        self.missing = tuple(incompatible.missing_keys)
        self.misshapen = tuple(name for name, *_ in incompatible.incorrect_shapes)
        self.unexpected = tuple(incompatible.unexpected_keys)
        return incompatible

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pth"):
            return super()._load_file(filename)
        # the trainer's state holds more than tensors, which torch's restricted reading refuses
        loaded = torch.load(filename, map_location="cpu", weights_only=False)
        return loaded if "model" in loaded else {"model": loaded}


def load_weights(model: nn.Module, path: str, unused: tuple[str, ...] = ()) -> None:
    """Load a checkpoint to detect with, and refuse one that is not of this model.

    Detectron2 only logs which parameters stay as they were made, and a model that is partly random
    detects nothing without a word.

    Args:
        model: that was built, whatever its weights.
        path: checkpoint; parameters of a ``.pth`` file are looked at, other files are converted by
            name.
        unused: beginnings of the names of parameters that the model does without, in the model or
            in the checkpoint.

    Raises:
        ValueError: there is no whole checkpoint; parameters are missing or of another shape (the
            first ones are named); or it is of ViLD-ensemble and the model is not.
    """
    checkpointer = AtomicCheckpointer(model)
    checkpointer.load(path, checkpointables=[])
    if not path.endswith(".pth"):
        return
    odd = {*checkpointer.missing, *checkpointer.misshapen}
    parameters = (name for name, _ in model.named_parameters())
    missing = [name for name in parameters if name in odd and not name.startswith(unused)]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{path} lacks {len(missing)} of the model's parameters, or has them in another shape "
            f"({shown}): it is a checkpoint of another variant or architecture. Use the "
            "configuration that it was trained with"
        )
    # half of ViLD-ensemble is no ViLD and no ViLD-text: its figures would pass for theirs
    if not IMAGE_HEAD.startswith(unused) and any(
        name.startswith(IMAGE_HEAD) for name in checkpointer.unexpected
    ):
        raise ValueError(
            f"{path} is a checkpoint of ViLD-ensemble, and the configuration has no image head for "
            "it. Use the configuration that it was trained with; MODEL.VILD.FUSION_WEIGHTS "
            "'[1.0, 1.0]' scores by its text head alone"
        )
