"""The methods that the paper compares, in the order of its tables."""

from __future__ import annotations

from dataclasses import dataclass

from shapes_experiment.pipeline import Pipeline
from vild.engine.stages import Stage

# The L1 norm of a difference of unit vectors grows with the root of D. The paper's w is for CLIP's
# D = 512; the teacher of shapes has 64, so the same w is sqrt(512 / 64) times as much here.
W_SCALE = (512 / 64) ** 0.5


def distill(w: float) -> tuple[str, str]:
    """The configuration's weight for a w of the paper."""
    return "MODEL.VILD.DISTILL.WEIGHT", f"{w * W_SCALE:.3f}"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        label: in the table.
        config: file in configs/shapes, without its ending.
        options: KEY VALUE pairs.
        scores: stage of the training whose checkpoint it scores; empty: it is trained itself.
        novel_labelled: whether it is trained on annotations of novel classes too.
    """

    label: str
    config: str
    options: tuple[str, ...] = ()
    scores: str = ""
    novel_labelled: bool = False

    def stages(self, pipeline: Pipeline, name: str) -> list[Stage]:
        """Its training, unless it scores that of another method, and its evaluation."""
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
                *(trained, self.config, f"train {title}", *options),
                weights=pipeline.baseline,
                test=False,
            ),
            pipeline.evaluate(name, self.config, f"evaluate {title}", trained=trained),
        ]


def training(method: str) -> str:
    """Stage, and folder, of a method's training."""
    return f"{method}_training"


def fused(label: str, base: float, novel: float) -> Method:
    """The trained ensemble with other weights of its text head, for base and for novel classes."""
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
    # not of the paper: what the text head does to novel classes in the fusion
    "image_for_novel": fused("- novel classes by its image head alone", 0.6667, 0.0),
}
