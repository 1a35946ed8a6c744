"""Conversion of an official checkpoint's variables to this model's state and text embeddings.

Shapes: K classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.embeddings.text import unit_rows
from vild.modeling.official.variables import BLOCKS, HEAD, TEXT, model_variables

TEACHER = "ViT-B-32/openai"  # the teacher of the official models
TEMPERATURE = 0.01  # official frcnn_head.temperature is 1 / 0.01
SLOTS = ("/Momentum", "/Adam", "/Adam_1")  # optimizer state, one per variable
COUNTERS = ("global_step", "beta1_power", "beta2_power")
# The R152 archives have this in their variable names; the names in the official code do not.
REMOVED = "_sim_clr"
ADVICE = (
    "expected a checkpoint of ViLD or ViLD-ensemble from the official repository (resnet50_vild, "
    "resnet50_vild_ensemble, resnet152_vild or resnet152_vild_ensemble, .tar.gz)"
)


@dataclass(frozen=True)
class OfficialModel:
    """A converted checkpoint.

    Attributes:
        state: parameters and buffers under this model's names, float32.
        text: (K, D) float32, the rows of the classifier, L2-normalised.
        depth: of the ResNet.
        variant: ``vild`` or ``ensemble``, as in ``MODEL.VILD.VARIANT``.
    """

    state: dict[str, Tensor]
    text: Tensor
    depth: int
    variant: str

    @property
    def config(self) -> str:
        """Path of the matching configuration."""
        name = "vild" if self.variant == "vild" else "vild_ensemble"
        return f"configs/LVIS/official/{name}_r{self.depth}.yaml"


def convert_variables(variables: Mapping[str, np.ndarray]) -> OfficialModel:
    """Convert all variables of a checkpoint; each is used once.

    Args:
        variables: arrays by official name, without ``:0``; ``_sim_clr`` in a name is ignored.
            Optimizer variables and step counters are skipped.

    Raises:
        ValueError: it is the checkpoint of another model; variables are missing, unknown, of
            another shape or non-finite; or a variable occurs with different values with and
            without ``_sim_clr`` in its name. The message lists the first of them.
    """
    given = _of_the_model(variables)
    depth = _depth(given)
    for name in (f"{HEAD}/project-to-clip/kernel", TEXT):
        if name not in given or given[name].ndim != 2:
            raise ValueError(
                f"{ADVICE}; this one has no matrix {name}: it may be that of a plain Mask R-CNN"
            )
    ensemble = f"{HEAD}/distill_conv_0/kernel" in given
    dimension, classes = given[TEXT].shape
    wanted = model_variables(depth, ensemble, dimension)
    shapes = {variable.official: variable.shape for variable in wanted}
    _check({**shapes, TEXT: (dimension, classes)}, given)
    state = {
        variable.ours: torch.from_numpy(
            np.array(variable.arrange(given[variable.official]), np.float32, order="C")
        )
        for variable in wanted
    }
    text = _unit_rows(given[TEXT].T)
    return OfficialModel(state, text, depth, "ensemble" if ensemble else "vild")


def official_text(
    matrix: np.ndarray, rare_mask: np.ndarray | None, vocabulary: Vocabulary, dimension: int
) -> TextEmbeddings:
    """Convert the official classifier to text embeddings.

    Args:
        matrix: (D, K), not necessarily normalised (``clip_synonym_prompt.npy``).
        rare_mask: (K + 1,), background first, 0 for novel classes (``lvis_rare_masks.npy``); None
            keeps the vocabulary's novel flags.
        vocabulary: the K classes in order.
        dimension: D of the model.

    Raises:
        ValueError: a shape is wrong, a row cannot be normalised, or the mask has values other than
            0 and 1.
    """
    expected = (dimension, len(vocabulary))
    if matrix.shape != expected:
        raise ValueError(
            f"expected text embeddings (D, K) of shape {expected}, for the model's dimension and "
            f"{len(vocabulary)} classes in the order of LVIS v1, got {matrix.shape}. Those of the "
            "official repository are clip_synonym_prompt.npy; others belong to another teacher "
            "or dataset"
        )
    novel = vocabulary.novel
    if rare_mask is not None:
        flags = np.asarray(rare_mask).reshape(-1)
        if len(flags) != len(vocabulary) + 1 or not np.isin(flags, (0, 1)).all():
            raise ValueError(
                f"expected a mask of {len(vocabulary) + 1} zeros and ones, background first, got "
                f"{np.shape(rare_mask)}; that of the official repository is lvis_rare_masks.npy"
            )
        novel = tuple(bool(flag == 0) for flag in flags[1:])
    own = Vocabulary(vocabulary.names, vocabulary.synonyms, novel)
    return TextEmbeddings(_unit_rows(matrix.T), own, TEMPERATURE, TEACHER, templates="imported")


def _of_the_model(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the variables by their names in the official code, without optimizer state."""
    given: dict[str, np.ndarray] = {}
    for name, array in variables.items():
        plain = name.replace(REMOVED, "")
        if plain in COUNTERS or plain.endswith(SLOTS):
            continue
        if plain in given and not np.array_equal(given[plain], array):
            raise ValueError(
                f"{ADVICE}; this one has two different arrays for {plain}, with and without "
                f"{REMOVED} in the name: remove one of them"
            )
        given[plain] = array
    return given


def _depth(names: Iterable[str]) -> int:
    scopes = {name.split("/")[0] for name in names}
    found = [depth for depth in BLOCKS if f"resnet{depth}" in scopes]
    if len(found) != 1:
        shown = ", ".join(sorted(scopes)[:5]) or "nothing"
        raise ValueError(f"{ADVICE}; its variables are below resnet50 or resnet152, here: {shown}")
    return found[0]


def _check(shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, np.ndarray]) -> None:
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in given and given[name].shape != shape
    ]
    faults = {
        "missing": [name for name in shapes if name not in given],
        "unknown": [name for name in given if name not in shapes],
        "of another shape": misshapen,
        "without finite numbers": [
            name for name in shapes if name in given and not _is_finite(given[name])
        ],
    }
    lines = [
        f"{len(names)} {fault}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for fault, names in faults.items()
        if names
    ]
    if lines:
        raise ValueError(f"{ADVICE}. Of this one's {len(given)} variables, {'; '.join(lines)}")


def _is_finite(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating) and bool(np.isfinite(array).all())


def _unit_rows(matrix: np.ndarray) -> Tensor:
    return unit_rows(
        matrix, lambda row: f"expected text embeddings with a direction, but that of class {row}"
    )
