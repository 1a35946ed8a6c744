"""The two losses of ViLD (sec. 3.3): of ViLD-text and of ViLD-image.

Shapes: R regions, K classes, D embedding. Logits are (R, K + 1), background last; targets are in
[0, K], K = background. Both losses are computed in at least float32, even under autocast. Without
regions they are 0 with a defined gradient, because every rank must take part in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional

from vild.modeling.float32 import at_least_float32, without_autocast


def classification_loss(logits: Tensor, targets: Tensor, novel: Tensor | None = None) -> Tensor:
    """Compute L_text: softmax cross entropy over background and base classes, mean over regions.

    Novel classes are excluded from the softmax (logit -inf), as in the paper. The official code
    multiplies their logits by 0, so that each still adds e^0 to the denominator.

    Args:
        logits: (R, K + 1).
        targets: (R,) int64.
        novel: (K,) bool, True for classes hidden from training; None hides no class.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes do not match, or a target is outside [0, K] or novel.
    """
    num_classes = logits.shape[1] - 1
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"expected one target per region, {len(logits)}, got shape {tuple(targets.shape)}"
        )
    if novel is not None and tuple(novel.shape) != (num_classes,):
        raise ValueError(
            f"expected novel flags for {num_classes} classes (logits without background), got "
            f"shape {tuple(novel.shape)}"
        )
    hidden = logits.new_zeros(num_classes + 1, dtype=torch.bool)  # background is never hidden
    if novel is not None:
        hidden[:-1] = novel
    _check_targets(targets, hidden)
    with without_autocast(logits):
        logits = at_least_float32(logits)
        if not len(logits):
            return logits.sum() * 0
        if novel is not None:
            logits = logits.masked_fill(hidden, -torch.inf)
        return functional.cross_entropy(logits, targets)


def _check_targets(targets: Tensor, hidden: Tensor) -> None:
    """Check the targets with one copy from the device, unless there is an error to report."""
    background = len(hidden) - 1
    outside = (targets < 0) | (targets > background)
    leaked = hidden[targets.clamp(0, background)]
    if not (outside | leaked).any():
        return
    if outside.any():
        raise ValueError(
            f"expected targets in [0, {background}], {background} being background, got "
            f"{int(targets[outside][0])}"
        )
    raise ValueError(
        f"novel class {int(targets[leaked][0])} is the target of {int(leaked.sum())} of "
        f"{len(targets)} regions: train on a dataset without the annotations of novel classes"
    )


def distillation_loss(student: Tensor, teacher: Tensor, *, mean_over_ranks: bool = False) -> Tensor:
    """Compute L_image: L1 norm of student - teacher, mean over regions, before the weight w.

    Args:
        student: (R, D) L2-normalised.
        teacher: (R, D), any float dtype. Normalised here, because the norms of rows stored as
            float16 are off by about 1e-4. No gradient flows to it.
        mean_over_ranks: divide by the mean number of regions per rank instead of this rank's
            number. After DistributedDataParallel averages the gradients, the step then equals that
            of one process with the whole batch; otherwise regions on ranks with few regions would
            weigh more. All ranks must call this function.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes do not match.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"expected student and teacher of one shape (R, D), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    with without_autocast(student):
        student = at_least_float32(student)
        goal = functional.normalize(at_least_float32(teacher.detach()), dim=1).to(student.dtype)
        total = (student - goal).abs().sum()
        if mean_over_ranks and distributed.is_available() and distributed.is_initialized():
            count = total.new_full((), len(student))  # on the device, without a host copy
            distributed.all_reduce(count)
            mean_count = count / distributed.get_world_size()  # may be below 1
            return total / mean_count.masked_fill(count == 0, 1)
        return total / max(len(student), 1)
