"""The documentation: its commands are understood, its links lead somewhere, its example runs."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from vild_cli.training import parse

from .forked import run

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "datasets").glob("*.md"),
        *(ROOT / "projects" / "ViLD").glob("*.md"),
    ]
)
NEEDS = ("needs LVIS", "needs a cluster")  # why no test can run a block of commands
BLOCK = re.compile(r"(?:^<!-- (.*) -->\n+)?((?:^    .*\n)+)", re.MULTILINE)
PROGRAMS = ("python", "make", "torchrun", "sbatch")


def marked_blocks(page: Path) -> list[tuple[str, list[str]]]:
    """Blocks of commands: the HTML comment before each, and its lines with continuations joined."""
    found: list[tuple[str, list[str]]] = []
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for comment, block in BLOCK.findall(text):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        commands = [line.strip() for line in lines]
        if any(line.split()[0] in PROGRAMS for line in commands if line):
            found.append((comment, commands))
    return found


def blocks(page: Path) -> list[list[str]]:
    """Blocks of commands, each a list of lines."""
    return [lines for _, lines in marked_blocks(page)]


def commands(page: Path) -> list[str]:
    """Commands of blocks and of tables."""
    lines = [line for block in blocks(page) for line in block]
    lines += re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    lines = [re.sub(r"^([A-Z_]+=\S+ )+", "", line) for line in lines]
    own = re.compile(
        r"(python|torchrun|sbatch) .*(tools|projects|datasets)/\S+\.(py|sbatch)|make [a-z]"
    )
    return [line.split(" # ")[0].split("  #")[0].strip() for line in lines if own.match(line)]


class Understood(Exception):
    """Raised in the place of what a command would do, with the arguments that nobody wanted."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    read = argparse.ArgumentParser.parse_known_args

    def stop(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        raise Understood(read(self, args, namespace)[1])

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    for command in commands(page):
        words = shlex.split(command.replace("RANK", "0"))
        if words[0] == "make":
            assert next(w for w in words[1:] if "=" not in w) in targets, command
            continue
        place = next(n for n, w in enumerate(words) if w.endswith((".py", ".sbatch")))
        script = ROOT / words[place]
        assert script.is_file(), command
        configs = [w for w in words if w.endswith(".yaml") and w.startswith("configs/")]
        assert all((ROOT / config).is_file() or "{" in config for config in configs), command
        if script.suffix == ".py" and words[place + 1 :]:
            with pytest.raises(Understood) as understood:
                start(script, words[place + 1 :], monkeypatch)
            # the rest of this one's goes to train_net.py
            assert script.name == "submit_train.py" or not understood.value.args[0], command


def start(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a tool as its command does."""
    if script.name == "train_net.py":
        parse(arguments)
        return
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    spec = importlib.util.spec_from_file_location("documented", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "documented", module)
    spec.loader.exec_module(module)
    module.main()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http", "mailto")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, link


def test_commands_of_the_guides_run_in_a_test_or_say_what_they_need() -> None:
    """Those of the other two run below."""
    for name in ("GETTING_STARTED", "MULTI_NODE"):
        for comment, block in marked_blocks(ROOT / "docs" / f"{name}.md"):
            assert comment in NEEDS, block


@pytest.mark.slow
def test_the_examples_of_custom_data_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "CUSTOM_DATA.md"
    text = page.read_text(encoding="utf-8")
    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "things.yaml").write_text(yaml, encoding="utf-8")
    for folder in ("tools", "projects", "configs", "datasets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "shapes").symlink_to("things")  # the configuration's text embeddings
    smaller = {
        "--train-images 200 --val-images 50": "--train-images 8 --val-images 3",
        "train_net.py": "train_net.py --num-gpus 0",
        "OUTPUT_DIR": "SOLVER.MAX_ITER 2 SOLVER.STEPS () TEST.DETECTIONS_PER_IMAGE 10 OUTPUT_DIR",
        "datasets/shapes/": "things/",  # in the place of the quickstart's images and detector
        "output/shapes/": "output/things/",
        '--vocabulary "striped': '--confidence-threshold 0 --vocabulary "striped',
    }
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    for block in [*blocks(page), *blocks(ROOT / "docs" / "CUSTOM_VOCABULARY.md")]:
        for command in block:
            for large, small in smaller.items():
                command = command.replace(large, small)
            words, cache = shlex.split(command)[1:], str(tmp_path / "cache")
            code, output = run(words, tmp_path, OMP_NUM_THREADS="1", VILD_CACHE=cache)
            assert code == 0, f"{command}\n{output[-3000:]}"
    out = tmp_path / "output" / "things"
    assert (out / "ensemble" / "things_val_metrics.json").is_file()
    assert (out / "index.html").stat().st_size > 100_000
    assert len(list((out / "found").iterdir())) == 3
    assert (tmp_path / "birds.safetensors").is_file()
