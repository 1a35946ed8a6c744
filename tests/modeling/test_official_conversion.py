"""Conversion of official checkpoints: every variable is used once, or an error lists it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from vild.checkpoint import load_weights
from vild.config import read_config
from vild.data import Vocabulary
from vild.modeling.official import convert_variables, official_text
from vild.modeling.official.variables import HEAD, TEXT, model_variables

from ..making import text_embeddings
from ..official import CONFIGS, MODELS, config, converted, load, recorded, variables


def empty(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize("name", MODELS)
def test_every_recorded_variable_is_used_once(name: str) -> None:
    known = model_variables(50, name == "double_branch", 512)
    official = [variable.official for variable in known] + [TEXT]
    assert sorted(official) == sorted(variables(name))
    assert len({variable.ours for variable in known}) == len(known)
    model = converted(name)
    assert (model.depth, model.variant) == (50, "vild" if name == "vanilla" else "ensemble")
    assert Path(model.config).name == f"{MODELS[name]}.yaml"
    assert (CONFIGS / Path(model.config).name).is_file()


@pytest.mark.parametrize(
    ("name", "ensemble", "count"), [("vild_r152", False, 935), ("vild_ensemble_r152", True, 973)]
)
def test_r152(name: str, ensemble: bool, count: int, tmp_path: Path) -> None:
    """It has 155 convolutions instead of 53, with 5 variables each; the rest is as in R50."""
    known = model_variables(152, ensemble, 512)
    assert (
        len(known) + 1
        == count
        == len(variables("double_branch" if ensemble else "vanilla")) + ((155 - 53) * 5)
    )
    assert known[-1].official == "mask_head/mask_fcn_logits/bias"
    assert any(variable.official == "resnet152/conv2d_154/kernel" for variable in known)
    given = {variable.official: empty(variable.shape) for variable in known}
    model = convert_variables({**given, TEXT: np.ones((512, 3), np.float32)})
    assert Path(model.config).stem == name
    text = text_embeddings(3, 512)
    text.save(tmp_path / "text.safetensors")
    cfg = read_config(CONFIGS / f"{name}.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 3),
            *("MODEL.VILD.TEXT_EMBEDDINGS", str(tmp_path / "text.safetensors")),
        ]
    )
    load(build_model(cfg), model.state)


def test_the_converted_file_is_loaded(tmp_path: Path) -> None:
    model = build_model(config("vanilla", tmp_path))
    state = converted("vanilla").state
    file = tmp_path / "model.pth"
    torch.save({"model": state, "converted_from": "here"}, file)
    for read in (partial(load_weights, model), DetectionCheckpointer(model).load):
        for parameter in model.parameters():
            parameter.data.zero_()
        read(str(file))
        for name, value in state.items():
            assert torch.equal(model.state_dict()[name], value), name

    ensemble = build_model(config("double_branch", tmp_path))
    with pytest.raises(ValueError, match="another variant or architecture"):
        load_weights(ensemble, str(file))


def changed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    arrays = dict(variables("vanilla"))
    for name, array in changes.items():
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
    return arrays


def test_the_optimizers_variables_are_passed_over() -> None:
    bias = f"{HEAD}/box-predict/bias"
    extra = {"global_step": np.int64(180_000), f"{bias}/Momentum": np.zeros(4, np.float32)}
    model = convert_variables(changed(**extra))
    assert set(model.state) == set(converted("vanilla").state)


RENAMED = [
    ("resnet50/", "resnet50_sim_clr/"),  # the scope of the backbone
    ("/kernel", "_sim_clr/kernel"),  # in the middle of a name
    ("/gamma", "/gamma_sim_clr"),  # at its end
    ("fpn/", "_sim_clrfpn/"),
]


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_sim_clr_in_names_is_ignored(old: str, new: str) -> None:
    """The published R152 archives contain it in their variable names."""
    arrays = {name.replace(old, new): array for name, array in variables("vanilla").items()}
    assert arrays.keys() != variables("vanilla").keys()
    arrays[f"{HEAD}/fc6_sim_clr/bias/Momentum_sim_clr"] = np.zeros(1024, np.float32)
    model, expected = convert_variables(arrays), converted("vanilla")
    assert (model.depth, model.variant) == (50, "vild")
    assert model.state.keys() == expected.state.keys()
    assert all(torch.equal(model.state[name], value) for name, value in expected.state.items())
    assert torch.equal(model.text, expected.text)


def test_two_arrays_of_one_variable() -> None:
    name, other = "resnet50/conv2d/kernel", "resnet50_sim_clr/conv2d/kernel"
    same = variables("vanilla")[name]
    model = convert_variables(changed(**{other: same}))
    assert model.state.keys() == converted("vanilla").state.keys()
    for array in (same + 1, same[:1], np.array("text")):
        with pytest.raises(ValueError, match=f"two different arrays for {name}, with and without"):
            convert_variables(changed(**{other: array}))


BIAS = f"{HEAD}/box-predict/bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({BIAS: None}, f"1 missing: {BIAS}"),
        ({"fpn/p7/bias": np.zeros(2)}, "1 unknown: fpn/p7/bias"),
        ({BIAS: np.zeros(8, np.float32)}, rf"1 of another shape: {BIAS} \[8\] instead of \[4\]"),
        ({BIAS: np.full(4, np.nan)}, f"1 without finite numbers: {BIAS}"),
        ({BIAS: np.array([b"a"] * 4)}, f"1 without finite numbers: {BIAS}"),
        ({TEXT: None}, f"no matrix {TEXT}: it may be that of a plain Mask R-CNN"),
        ({TEXT: np.ones((768, 5), np.float32)}, r"project-to-clip/kernel \[1024, 512\] instead of"),
        ({TEXT: np.zeros((512, 5), np.float32)}, "class 0 is zero or not finite"),
    ],
)
def test_other_variables_are_refused_by_name(
    changes: dict[str, np.ndarray | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert_variables(changed(**changes))


def test_a_plain_mask_rcnn_is_refused() -> None:
    """Its class-predict is a linear layer with a bias on the box head's features."""
    arrays = {
        name: array
        for name, array in variables("vanilla").items()
        if "to-clip" not in name and "background" not in name
    }
    arrays |= {TEXT: np.ones((1024, 91), np.float32)}
    arrays |= {f"{HEAD}/class-predict/bias": np.ones(91, np.float32)}
    with pytest.raises(ValueError, match="it may be that of a plain Mask R-CNN"):
        convert_variables(arrays)


@pytest.mark.parametrize("names", [[], ["conv1/kernel"], ["resnet34/conv2d/kernel"]])
def test_checkpoints_of_something_else_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"below resnet50 or resnet152, here: (nothing|conv1|res)"):
        convert_variables({name: np.zeros(1, np.float32) for name in names})


def test_text_embeddings_and_novel_flags() -> None:
    arrays = recorded("double_branch")
    names = Vocabulary.from_names(f"class {n}" for n in range(60))
    text = official_text(arrays["text_embeddings_DxK"], arrays["rare_mask"], names, 512)
    assert text.vocabulary.novel == tuple((arrays["rare_mask"][1:] == 0).tolist())
    assert 0 < sum(text.vocabulary.novel) < 60
    torch.testing.assert_close(text.embeddings, converted("double_branch").text)
    assert text.temperature == 0.01
    as_known = official_text(arrays["text_embeddings_DxK"], None, names, 512)
    assert as_known.vocabulary == names


def test_lvis_classes_are_in_the_official_order() -> None:
    """LVIS v1 and the official mask agree that the rare classes are novel."""
    lvis = Vocabulary.from_dataset("lvis_v1_val")
    mask = np.array([1.0, *(0.0 if novel else 1.0 for novel in lvis.novel)])
    text = official_text(np.ones((4, 1203), np.float32), mask, lvis, 4)
    assert text.vocabulary == lvis
    assert sum(lvis.novel) == 337


@pytest.mark.parametrize(
    ("matrix", "mask", "message"),
    [
        ((768, 3), None, r"\(D, K\) of shape \(512, 3\).*got \(768, 3\).*clip_synonym_prompt"),
        ((3, 512), None, r"got \(3, 512\)"),
        ((512, 4), None, "got.*others belong to another teacher or dataset"),
        ((512, 3), [1, 0, 1], r"a mask of 4 zeros and ones, background first, got \(3,\)"),
        ((512, 3), [1, 0, 1, 2], "zeros and ones"),
    ],
)
def test_other_text_embeddings_are_refused(
    matrix: tuple[int, int], mask: list[int] | None, message: str
) -> None:
    names = Vocabulary.from_names(["owl", "crow", "kite"])
    flags = None if mask is None else np.array(mask)
    with pytest.raises(ValueError, match=message):
        official_text(np.ones(matrix, np.float32), flags, names, 512)
