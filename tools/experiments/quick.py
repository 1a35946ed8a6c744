"""The short experiment of `make quickstart`: fewer images and iterations than the recipes."""

from __future__ import annotations

from pathlib import Path

from experiments.methods import METHODS
from experiments.pipeline import Pipeline
from experiments.stages import Stage
from vild.precision import resolve_precision

# rows of the table -> names of their evaluation stages
ROWS = {
    "both_heads": "ViLD-ensemble",
    "text_head": "its text head alone (ViLD-text)",
    "clip": "CLIP on cropped regions",
}
IMAGES = (1200, 400)
REGIONS = 30  # as configs/shapes/quick_ensemble.yaml has it
OUTPUT = Path("output/quickstart")
PAGE = OUTPUT / "index.html"
FIRST_PAGE = OUTPUT / "first.html"


def quick_pipeline(
    folder: Path = Pipeline.folder,
    seed: int = 0,
    options: tuple[str, ...] = (),
    prefix: str = "",
    images: tuple[int, int] = IMAGES,
) -> Pipeline:
    """Return a pipeline with fewer images, in bf16 if the processor supports it."""
    precision = resolve_precision("auto", "cpu")
    return Pipeline(folder, seed, options, prefix, images, precision, REGIONS)


def quick_stages(pipeline: Pipeline) -> list[Stage]:
    """Return all stages in order: the first draws the images, and each of ``ROWS`` has one."""
    ensemble = "vild_ensemble"
    stages = pipeline.prepare("quick_baseline")
    title = "evaluate the CLIP itself on cropped regions"
    stages.append(pipeline.evaluate("clip", "clip_on_crops", title, trained="rpn_baseline"))
    stages.append(
        pipeline.train(
            "ensemble",
            "quick_ensemble",
            "train ViLD-ensemble on base classes",
            weights=pipeline.baseline,
            test=False,
            seconds=120,
        )
    )
    for name, title, options in (
        ("both_heads", "evaluate ViLD-ensemble", ()),
        ("text_head", "evaluate its text head alone", METHODS["text_head"].options),
    ):
        stages.append(pipeline.evaluate(name, ensemble, title, *options, trained="ensemble"))
    return stages


def build_stages(pipeline: Pipeline) -> list[Stage]:
    """Return all stages, in order."""
    stages = quick_stages(pipeline)
    clip = next(n for n, stage in enumerate(stages) if stage.name == "clip")
    stages.insert(clip + 1, first_page_stage(pipeline))
    return [*stages, page_stage(pipeline, stages)]


def first_page_stage(pipeline: Pipeline) -> Stage:
    """Return the stage that shows CLIP's own detections before the main training."""
    return Stage(
        "first_page",
        f"write a first page to look at meanwhile, {FIRST_PAGE}: what CLIP alone finds",
        (
            *("tools/result_page.py", "--dataset", f"{pipeline.data}_val"),
            *("--out", str(FIRST_PAGE), "--title", "CLIP on cropped regions, on two cores"),
            *("--run", f"{ROWS['clip']}={pipeline.folder / 'clip'}"),
            *("--threshold", "0.9"),  # a softmax without background scores high everywhere
        ),
        (FIRST_PAGE,),
        ("clip",),
        seconds=10,
    )


def page_stage(pipeline: Pipeline, stages: list[Stage]) -> Stage:
    """Return the stage that writes the result page."""
    runs = (f"{label}={pipeline.folder / name}" for name, label in ROWS.items())
    weights = pipeline.folder / "ensemble" / "model_final.pth"
    return Stage(
        "page",
        "write the result page",
        (
            *("tools/result_page.py", "--dataset", f"{pipeline.data}_val", "--out", str(PAGE)),
            *("--title", "ViLD on two cores: what the quickstart found"),
            *(word for run in runs for word in ("--run", run)),
            *("--config-file", "configs/shapes/vild_ensemble.yaml", "--weights", str(weights)),
            *("--regions", str(pipeline.folder / "embeddings" / f"{pipeline.data}_val")),
            *("--stages", str(OUTPUT / "stages"), *pipeline.options),
        ),
        (PAGE,),
        tuple(stage.name for stage in stages),
        seconds=25,
    )


def verdict(pipeline: Pipeline) -> tuple[bool, str]:
    """Return whether the ensemble beats its text head on novel classes, and a sentence."""
    novel = {name: pipeline.figures(name)["APr"] for name in ("both_heads", "text_head")}
    holds = novel["both_heads"] > novel["text_head"]
    return holds, (
        f"AP of novel classes: ViLD-ensemble {novel['both_heads']:.1f}, its text head alone "
        f"{novel['text_head']:.1f}: distillation {'helps' if holds else 'does NOT help'}."
    )
