"""The methods that the paper compares, in the order of its tables."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.pipeline import Pipeline
from experiments.stages import Stage

# The L1 norm of a difference of unit vectors grows with sqrt(D). The paper's w is for CLIP's
# D = 512; the teacher of shapes has D = 64, so the same w is scaled by sqrt(512 / 64) here.
W_SCALE = (512 / 64) ** 0.5


def distill(w: float) -> tuple[str, str]:
    """Return the configuration option for a w of the paper."""
    return "MODEL.VILD.DISTILL.WEIGHT", f"{w * W_SCALE:.3f}"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        label: label in the table.
        config: file in configs/shapes, without its extension.
        options: KEY VALUE pairs.
        scores: training stage whose checkpoint is evaluated; empty if the method has its own.
        novel_labelled: whether it is also trained on annotations of novel classes.
    """

    label: str
    config: str
    options: tuple[str, ...] = ()
    scores: str = ""
    novel_labelled: bool = False

    def stages(self, pipeline: Pipeline, name: str) -> list[Stage]:
        """Return the training stage, unless another's checkpoint is used, and the evaluation."""
        title = f"{self.label}, seed {pipeline.seed}"
        if self.scores:
            trained = self.scores
            return [pipeline.evaluate(name, self.config, title, *self.options, trained=trained)]
        trained = training(name)
        options = self.options
        if self.novel_labelled:
            options += ("DATASETS.TRAIN", f'("{pipeline.data}_train",)')
        return [
            pipeline.train(
                trained,
                self.config,
                f"train {title}",
                *options,
                weights=pipeline.baseline,
                test=False,
            ),
            pipeline.evaluate(name, self.config, f"evaluate {title}", trained=trained),
        ]


def training(method: str) -> str:
    """Return the name of a method's training stage, which is also its folder."""
    return f"{method}_training"


def fused(label: str, base: float, novel: float) -> Method:
    """Return the trained ensemble with other fusion weights for base and for novel classes."""
    weights = ("MODEL.VILD.FUSION_WEIGHTS", f"[{base}, {novel}]")
    return Method(label, "vild_ensemble", weights, scores=training("ensemble"))


METHODS = {
    "oracle": Method(
        "ViLD-text, novel classes labelled",
        "vild_text",
        ("MODEL.VILD.ZERO_SHOT", "False"),
        novel_labelled=True,
    ),
    "supervised": Method("supervised, novel classes labelled", "supervised", novel_labelled=True),
    "supervised_base": Method("supervised, base classes", "supervised"),
    "clip": Method("CLIP on cropped regions", "clip_on_crops", scores="rpn_baseline"),
    "text": Method("ViLD-text", "vild_text"),
    "text_clip": Method("ViLD-text + CLIP", "vild_text_clip", scores=training("text")),
    "image": Method("ViLD-image", "vild_image", distill(0.5)),
    "vild_0": Method("ViLD, w = 0", "vild_vild", distill(0)),
    "vild_0.1": Method("ViLD, w = 0.1", "vild_vild", distill(0.1)),
    "vild": Method("ViLD, w = 0.5", "vild_vild", distill(0.5)),
    "vild_1": Method("ViLD, w = 1", "vild_vild", distill(1)),
    "ensemble": Method("ViLD-ensemble, w = 0.5", "vild_ensemble", distill(0.5)),
    "text_head": fused("- its text head alone", 1.0, 1.0),
    "image_head": fused("- its image head alone", 0.0, 0.0),
    # not in the paper: shows the effect of the text head on novel classes in the fusion
    "image_for_novel": fused("- novel classes by its image head alone", 0.6667, 0.0),
}
