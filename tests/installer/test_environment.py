"""Which environment is used, and what is left behind when something goes wrong."""

from __future__ import annotations

import ast
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

import setup_env
from installer import environment, install
from installer.errors import SetupError
from installer.packages import CLIP, MendedPackage
from installer.pip import Pip
from installer.probe import check_torch_pair, probe
from installer.wheels import BUILD_NOTE


@pytest.fixture(scope="module")
def here() -> dict[str, Any]:
    """What is known of this environment."""
    modules = (name for name in environment.REQUIRED if name != "vild")
    return probe(Path(sys.executable), "numpy", *modules)


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Place of a .venv, with the slow parts of the set-up replaced by markers."""

    def create(venv: Path) -> None:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        environment._write_stamp(venv, {"finished": False})

    monkeypatch.setattr(environment, "_create", create)
    monkeypatch.setattr(environment, "_fill", lambda python: None)
    monkeypatch.setattr(environment, "_layer", lambda venv: [])
    return tmp_path / ".venv"


def test_a_second_run_installs_nothing(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment._prepare_venv(venv) == venv / "bin" / "python"

    def fail(_: Path) -> None:
        raise AssertionError("installed again")

    monkeypatch.setattr(environment, "_fill", fail)
    monkeypatch.setattr(environment, "_is_complete", lambda python: True)
    environment._prepare_venv(venv)


@pytest.mark.parametrize("fault", [SetupError("no index"), KeyboardInterrupt()])
def test_nothing_half_made_stays(
    venv: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(_: Path) -> None:
        raise fault

    monkeypatch.setattr(environment, "_fill", fail)
    with pytest.raises(type(fault)):
        environment._prepare_venv(venv)
    assert not venv.exists()


def test_a_killed_set_up_starts_again(venv: Path) -> None:
    environment._create(venv)  # as a killed run leaves it: made, not finished
    (venv / "rubbish").touch()
    environment._prepare_venv(venv)
    assert not (venv / "rubbish").exists()


def test_a_broken_venv_is_named_and_left_alone(venv: Path) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "precious").touch()
    with pytest.raises(SetupError, match=r"incomplete or broken. Remove it \(rm -r "):
        environment._prepare_venv(venv)
    assert (venv / "precious").exists()


def test_a_layer_whose_ground_is_gone_is_named(venv: Path) -> None:
    environment._create(venv)
    stamp = {"finished": True, "inputs": "", "layered_on": [str(venv / "gone")]}
    environment._write_stamp(venv, stamp)
    with pytest.raises(SetupError, match="layered on an environment that no longer exists"):
        environment._prepare_venv(venv)


def _fake_torch(folder: Path, torch_cuda: bool, torchvision_cuda: bool) -> None:
    for name in ("torch", "torchvision"):
        (folder / name).mkdir()
    cuda = "13.2" if torch_cuda else None
    (folder / "torch" / "version.py").write_text(f"cuda = {cuda!r}\n", encoding="utf-8")
    (folder / "torch" / "__init__.py").write_text("from . import version\n", encoding="utf-8")
    library = b"ELF...libcudart.so.13..." if torchvision_cuda else b"ELF..."
    (folder / "torchvision" / "_C_stable.so").write_bytes(library)
    (folder / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n", encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("cudas", "message"),
    [
        ((False, True), "do not match: torch is built for the CPU only, torchvision for CUDA"),
        ((True, False), "do not match: torch is built for CUDA, torchvision for the CPU only"),
        ((True, True), "does not run .*nms does not exist"),
    ],
)
def test_torch_and_torchvision_must_be_a_pair(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cudas: tuple[bool, bool],
    message: str,
) -> None:
    _fake_torch(tmp_path, *cudas)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe(Path(sys.executable), "torch", "torchvision")
    with pytest.raises(SetupError, match=message):
        check_torch_pair(found, "the environment")


def test_this_environment_s_pair_is_accepted(here: dict[str, Any]) -> None:
    check_torch_pair(here, "this environment")


def test_an_existing_detectron2_is_reported_and_left_alone(
    here: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("__version__ = '9.9'\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"pip was called: {args}")

    def probe_detectron2(python: Path, *modules: str) -> dict[str, Any]:
        return {**here, **probe(python, *(m for m in modules if m.startswith("detectron2")))}

    monkeypatch.setattr(install, "probe", probe_detectron2)
    monkeypatch.setattr(Pip, "run", refuse)
    with caplog.at_level(logging.INFO, "setup"):
        install.install_patched_packages(Pip(Path(sys.executable)))
    assert f"detectron2 9.9 found in {tmp_path / 'detectron2'}: used as it is" in caplog.text
    # this one is an empty shell, which is said but not mended
    assert "`import detectron2.modeling` fails" in caplog.text


def test_an_older_build_of_ours_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").touch()
    note = tmp_path / "clip" / BUILD_NOTE
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    built: list[str] = []

    def build(package: MendedPackage, pip: Pip, work_dir: Path) -> Path:
        built.append(package.module)
        return work_dir / "x.whl"

    def probe_clip(python: Path, *modules: str) -> dict[str, Any]:
        here = {"version": "1", "origin": ""}
        return {**dict.fromkeys(modules, here), "pair": {}, **probe(python, "clip")}

    monkeypatch.setattr(install, "probe", probe_clip)
    monkeypatch.setattr(install, "build_wheel", build)
    monkeypatch.setattr(Pip, "run", lambda self, *args, doing: None)
    note.write_text(f"Recipe {CLIP.recipe}.", encoding="utf-8")
    install.install_patched_packages(Pip(Path(sys.executable)))
    assert built == []
    note.write_text("Recipe of long ago.", encoding="utf-8")
    install.install_patched_packages(Pip(Path(sys.executable)))
    assert built == ["clip"]
    note.unlink()  # not ours
    install.install_patched_packages(Pip(Path(sys.executable)))
    assert built == ["clip"]


def test_an_lvis_that_cannot_evaluate_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "__init__.py").touch()
    (tmp_path / "lvis" / "eval.py").write_text("x.astype(dtype=np.float)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "np.float" in probe(Path(sys.executable), "lvis")["lvis"]["error"]


def test_an_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not run"):
        probe(tmp_path / "python", "torch")


def test_old_python_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env, "MIN_PYTHON", (99, 0))
    monkeypatch.setattr(sys, "argv", ["setup_env.py"])
    assert setup_env.main() == 1
    assert "ViLD needs Python 99.0 or newer" in capsys.readouterr().err


def test_old_python_can_read_the_entry_script() -> None:
    ast.parse(Path(setup_env.__file__).read_text(encoding="ascii"), feature_version=(3, 4))


def test_every_required_module_is_here() -> None:
    assert environment._is_complete(Path(sys.executable))


def test_versions_that_are_there_bind_what_is_added(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    calls: list[tuple[str, Path | None]] = []
    monkeypatch.setattr(
        Pip, "run", lambda self, *args, doing: calls.append((doing, self.constraints))
    )
    monkeypatch.setattr(environment, "install_patched_packages", lambda pip: None)
    monkeypatch.setattr(environment, "_runs", lambda *args: True)
    monkeypatch.setattr(environment, "probe", lambda python, *names: here)
    environment._fill(tmp_path / "bin" / "python")
    doing, constraints = calls[-1]
    assert doing == "installing the project and its dependencies"
    assert constraints is not None
    lines = constraints.read_text(encoding="utf-8").splitlines()
    assert [line.split("==")[0] for line in lines] == ["torch", "torchvision", "numpy"]


def test_constraints_reach_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "c.txt").write_text("pip==0.0.1\n", encoding="utf-8")
    pip = Pip(Path(sys.executable))
    pip.constraints = tmp_path / "c.txt"
    with pytest.raises(SetupError, match=r"no suitable version|conflict with what"):
        pip.run("install", "pip", doing="installing pip")
    pip.constraints = None
    pip.run("install", "pip", doing="installing pip")
