"""Checkpoints that are whole or not there, and errors that say which file is meant."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from vild.data.files import atomic_path


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file appears under its name once it is whole.

    A process that is killed while it writes leaves the checkpoint before as the last one.
    """

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

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pth"):
            return super()._load_file(filename)
        # the trainer's state holds more than tensors, which torch's restricted reading refuses
        loaded = torch.load(filename, map_location="cpu", weights_only=False)
        return loaded if "model" in loaded else {"model": loaded}


def require_all_weights(model: torch.nn.Module, path: str, unused: tuple[str, ...] = ()) -> None:
    """Refuse a checkpoint that leaves some of the model's parameters as they were made.

    Detectron2 only logs them, and a model that is partly random detects nothing without a word.

    Args:
        model: that was built, whatever its weights.
        path: checkpoint, a ``.pth`` file; others are converted by name and not looked at.
        unused: beginnings of the names of parameters that the model does without.

    Raises:
        ValueError: parameters are missing or of another shape; the first ones are named.
    """
    if not path.endswith(".pth") or not Path(path).is_file():
        return
    loaded = torch.load(path, map_location="cpu", weights_only=False)
    state = loaded.get("model", loaded)
    missing = [
        name
        for name, parameter in model.named_parameters()
        if not name.startswith(unused)
        and (name not in state or tuple(state[name].shape) != tuple(parameter.shape))
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{path} lacks {len(missing)} of the model's parameters, or has them in another shape "
            f"({shown}): it is a checkpoint of another variant or architecture. Use the "
            "configuration that it was trained with"
        )
