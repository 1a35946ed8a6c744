"""The experiment on shapes: commands, table and verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import benchmark_shapes
import make_shapes
import quickstart
import submit_train
import train_coco_mini
import train_shapes_teacher
from experiments import quick
from experiments.claims import claims_to_markdown, judge
from experiments.methods import METHODS, distill
from experiments.pipeline import TRAIN_NET, Pipeline, teacher_version
from experiments.stages import Stage, StageRunner
from experiments.table import METRICS, collect, summary, to_markdown
from vild.config import read_config
from vild_cli.training import parse


def all_stages(pipeline: Pipeline) -> list[Stage]:
    stages = pipeline.prepare()
    for name, method in METHODS.items():
        stages += method.stages(pipeline, name)
    return stages


def configuration(stage: Stage, repository: Path) -> Any:
    args = parse(list(stage.command[1:]))
    return read_config(repository / args.config_file, args.opts)


def test_every_configuration_of_a_seed_is_of_that_seed(repository: Path) -> None:
    folder = Path("output/x/seed7")
    stages = {s.name: s for s in all_stages(Pipeline(folder, 7, prefix="p_"))}
    StageRunner(list(stages.values()), "unused")  # checks the order of dependencies
    trainings = [s for s in stages.values() if s.command[0] == TRAIN_NET]
    assert len(trainings) > 20
    outputs = set()
    for stage in trainings:
        cfg = configuration(stage, repository)
        outputs.add(cfg.OUTPUT_DIR)
        own = [*cfg.DATASETS.TEST, *cfg.DATASETS.PROPOSAL_FILES_TEST]
        if "--eval-only" not in stage.command:
            own += [*cfg.DATASETS.TRAIN, cfg.MODEL.VILD.DISTILL.STORE]
            assert cfg.SEED == 7
            novel = cfg.DATASETS.TRAIN == ("shapes_seed7_train",)
            assert novel == ("supervised_training" in stage.name or "oracle" in stage.name)
        assert own
        assert all("shapes_seed7_" in each for each in own)
        assert str(folder / "text.safetensors") == cfg.MODEL.VILD.TEXT_EMBEDDINGS
        begins_anew = stage.name == "p_rpn_baseline"
        assert begins_anew or str(folder) in cfg.MODEL.WEIGHTS
    assert len(outputs) == len(trainings)


def test_weights_of_distillation_are_the_papers_for_another_dimension(repository: Path) -> None:
    assert distill(0.5)[1] == "1.414"
    stages = {s.name: s for s in all_stages(Pipeline())}
    found = {
        name: configuration(stages[f"{name}_training"], repository).MODEL.VILD.DISTILL.WEIGHT
        for name in ("vild_0", "vild_0.1", "vild", "vild_1", "ensemble")
    }
    assert found == {
        "vild_0": 0,
        "vild_0.1": 0.283,
        "vild": 1.414,
        "vild_1": 2.828,
        "ensemble": 1.414,
    }


def test_the_table_has_means_and_deviations(tmp_path: Path) -> None:
    pipelines = [Pipeline(tmp_path / str(seed), seed) for seed in (1, 2)]
    for pipeline, ap in zip(pipelines, (10.0, 20.0), strict=True):
        file = pipeline.metrics("text")
        file.parent.mkdir(parents=True)
        box = {"AP": ap, "APr": ap / 2, "APc": 1.0, "APf": 2.0, "AP-base": 3.0}
        file.write_text(json.dumps({"metrics": {"bbox": box}}), encoding="utf-8")
    results = collect(pipelines, ["text"])
    assert summary(results, "text", "AP") == (15.0, pytest.approx(50**0.5))
    assert summary(collect(pipelines[:1], ["text"]), "text", "AP") == (10.0, 0.0)
    assert to_markdown(results, {"text": "ViLD-text"}).splitlines()[2] == (
        "| ViLD-text | 15.0 ± 7.1 | 7.5 ± 3.5 | 1.0 ± 0.0 | 2.0 ± 0.0 |"
    )


@pytest.mark.parametrize(("ensemble", "holds"), [(30.1, True), (30.0, False), (20.0, False)])
def test_the_quickstart_says_whether_it_holds(tmp_path: Path, ensemble: float, holds: bool) -> None:
    pipeline = Pipeline(tmp_path)
    for name, ap in (("both_heads", ensemble), ("text_head", 30.0)):
        file = pipeline.metrics(name)
        file.parent.mkdir(parents=True)
        text = json.dumps({"metrics": {"bbox": {"APr": ap}}})
        file.write_text(text, encoding="utf-8")
    found, sentence = quick.verdict(pipeline)
    assert found == holds
    assert f"{ensemble:.1f}" in sentence
    assert ("NOT" in sentence) != holds


def test_the_quickstart_fails_where_it_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quick, "OUTPUT", tmp_path)
    monkeypatch.setattr(quick, "build_stages", lambda pipeline: [])
    monkeypatch.setattr(quick, "verdict", lambda pipeline: (False, "it does NOT help"))
    monkeypatch.setattr("sys.argv", ["quickstart.py"])
    assert quickstart.main() == 1
    assert "expected the ensemble above its text head" in capsys.readouterr().err
    monkeypatch.setattr(quick, "verdict", lambda pipeline: (True, "it helps"))
    assert quickstart.main() == 0


def test_the_quickstart_is_made_of_the_configs_own_paths(repository: Path) -> None:
    stages = quick.build_stages(Pipeline())
    StageRunner(stages, "unused")
    for stage in stages:
        if stage.command[0] == TRAIN_NET and "--eval-only" not in stage.command:
            cfg = configuration(stage, repository)
            assert cfg.MODEL.VILD.TEXT_EMBEDDINGS == "output/shapes/text.safetensors"
            assert cfg.DATASETS.TRAIN == ("shapes_train_base",)
            if "quick_ensemble" in " ".join(stage.command):
                assert cfg.MODEL.VILD.DISTILL.REGIONS == quick.REGIONS
    assert sum(stage.seconds for stage in stages) < 9 * 60
    # reads the shipped teacher; all other embeddings depend on this stage
    assert [s.name for s in stages if s.version == teacher_version()] == ["text_embeddings"]


def test_a_stage_is_done_when_its_last_files_are_there() -> None:
    pipeline = Pipeline()
    for stage in all_stages(pipeline):
        names = {path.name for path in stage.outputs}
        if stage.command[0] == TRAIN_NET:
            is_training = "--eval-only" not in stage.command
            assert ("model_final.pth" in names) == is_training
            is_tested = "DATASETS.TEST ()" not in " ".join(stage.command)
            assert (f"{pipeline.data}_val_metrics.json" in names) == is_tested
        elif stage.command[0].startswith("tools/extract_") and "--split" in stage.command:
            assert "manifest.json" in names


@pytest.mark.parametrize(
    ("tool", "arguments", "complaint"),
    [
        (make_shapes, "--out-dir FILE/x", "FILE is a file"),
        (make_shapes, "--out-dir FOLDER", "expected an empty folder or a 'shapes' dataset"),
        (make_shapes, "--train-images 0", "expected an integer of at least 1, got '0'"),
        (make_shapes, "--seed -1", "expected a seed from 0 to"),
        (make_shapes, "--contact-sheet FOLDER", "--contact-sheet to be a file that can be written"),
        (train_shapes_teacher, "--out-dir FILE", "--out-dir to be a folder that can be written"),
        (train_shapes_teacher, "--iterations 0", "expected an integer of at least 1, got '0'"),
        (train_coco_mini, "--data FOLDER --text-embeddings x.npy", "expected a file at"),
        (quickstart, "--images 0 5", "expected an integer of at least 1, got '0'"),
        (benchmark_shapes, "--out-dir FILE", "--out-dir to be a folder that can be written"),
        (
            benchmark_shapes,
            "--out-dir NEW --seeds 1 1",
            "expected --seeds of at least 0, each once",
        ),
        (benchmark_shapes, "--jobs 0", "expected an integer of at least 1, got '0'"),
        (submit_train, "--log-dir FILE", "--log-dir to be a folder that can be written"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_work(
    tool: ModuleType,
    arguments: str,
    complaint: str,
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert run(tool, *arguments.split()) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_the_benchmark_runs_three_seeds_that_are_not_those_of_the_settings() -> None:
    args = benchmark_shapes.build_parser().parse_args([])
    assert args.seeds == [5, 6, 7]
    assert args.only == list(METHODS)


def three_seeds(**base: tuple[float, float, float]) -> dict[str, dict[str, dict[str, float]]]:
    """Make results with the same figure in every column; a tuple has one per seed."""
    return {
        name: {str(n): dict.fromkeys(METRICS, v) for n, v in enumerate(values)}
        for name, values in base.items()
    }


@pytest.mark.parametrize(
    ("vild", "verdict"),
    [((16.0, 16.0, 17.0), "holds"), ((12, 12, 13), "does not hold"), ((13, 16, 14), "undecided")],
)
def test_a_claim_holds_beyond_the_deviation_or_not_at_all(
    vild: tuple[float, float, float], verdict: str
) -> None:
    findings = judge(three_seeds(vild=vild, text=(10.0, 10.0, 10.0)))
    first = findings[0]
    assert first.claim.text.startswith("APr of ViLD / APr of ViLD-text")
    assert first.margins == pytest.approx([v / 10 - 1.4 for v in vild])
    assert first.verdict == verdict
    # claims about methods that were not run are omitted
    assert all(set(f.claim.methods) <= {"vild", "text"} for f in findings)
    assert f"| {verdict} |" in claims_to_markdown(findings)


def test_more_distillation_is_judged_step_by_step() -> None:
    names = ("vild_0", "vild_0.1", "vild", "vild_1")
    values = {n: (v, v, v) for n, v in zip(names, (10.0, 11.0, 13.0, 12.0), strict=True)}
    found = {f.claim.text: f.mean for f in judge(three_seeds(**values))}
    assert found["APr: w = 0.1 minus w = 0"] == pytest.approx(1.0)
    assert found["APr: w = 1 minus w = 0.5"] == pytest.approx(-1.0)
    assert found["AP of base classes: w = 0 minus w = 1"] == pytest.approx(-2.0)
