"""An experiment of several commands: each runs once, in order, and resumes after any stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from experiments.progress import StageBar, format_time
from experiments.stages import Stage, StageFailed, StageRunner, read_records

# appends a line to its output `a.txt`; waits while a file `a.hold` exists
SCRIPT = """
import sys, time
from pathlib import Path
out, word = Path(sys.argv[1]), sys.argv[2]
with out.open("a") as file:
    file.write(word + "\\n")
print("wrote", word, flush=True)
while out.with_suffix(".hold").exists():
    time.sleep(0.02)
if word == "bad":
    sys.exit("no luck")
"""


def run_as_program(folder: Path) -> None:
    """Run the stages in a separate process, which can receive signals."""
    try:
        run(chain(folder), folder)
    except KeyboardInterrupt:
        sys.exit(130)


def stage(folder: Path, name: str, *after: str, word: str = "good") -> Stage:
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    output = folder / f"{name}.txt"
    return Stage(name, f"do {name}", (str(script), str(output), word), (output,), after)


def chain(folder: Path) -> list[Stage]:
    return [stage(folder, "a"), stage(folder, "b", "a"), stage(folder, "c", "b")]


def run(stages: list[Stage], folder: Path, jobs: int = 1) -> bool:
    return StageRunner(stages, folder / "records", jobs).run()


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.txt").read_text(encoding="utf-8").split()


def test_each_command_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = chain(tmp_path)
    assert run(stages, tmp_path)
    said = capsys.readouterr().out
    assert [said.index(s.shown) for s in stages] == sorted(said.index(s.shown) for s in stages)
    assert not run(stages, tmp_path)
    assert all(lines(tmp_path, name) == ["good"] for name in "abc")
    records = read_records(tmp_path / "records")
    assert [r.title for r in records] == ["do a", "do b", "do c"]
    assert [r.command for r in records] == [s.shown for s in stages]
    assert all(r.seconds > 0 and r.peak_bytes > 2**20 for r in records)


def test_a_changed_command_runs_again_with_all_that_need_it(tmp_path: Path) -> None:
    stages = chain(tmp_path)
    run(stages, tmp_path)
    stages[1] = stage(tmp_path, "b", "a", word="better")
    assert run(stages, tmp_path)
    # outputs of the previous run were removed, not appended to
    assert [lines(tmp_path, name) for name in "abc"] == [["good"], ["better"], ["good"]]
    first, _, last = read_records(tmp_path / "records")
    assert last.identity["after"] != {"b": first.run}


def test_a_changed_configuration_runs_again(tmp_path: Path) -> None:
    base, leaf, other = (tmp_path / f"{name}.yaml" for name in ("base", "leaf", "other"))
    base.write_text("A: 1\n", encoding="utf-8")
    leaf.write_text("_BASE_: [base.yaml]\nB: 1\n", encoding="utf-8")
    other.write_text("_BASE_: leaf.yaml\n", encoding="utf-8")
    (first, *_) = chain(tmp_path)
    first = replace(first, command=(*first.command, str(other)))
    assert run([first], tmp_path)
    assert not run([first], tmp_path)
    base.write_text("A: 2\n", encoding="utf-8")
    assert run([first], tmp_path)
    assert lines(tmp_path, "a") == ["good"]


def test_another_version_of_what_a_command_reads_runs_again(tmp_path: Path) -> None:
    stages = chain(tmp_path)
    run(stages, tmp_path)
    stages[0] = replace(stages[0], version="weights 2")
    assert run(stages, tmp_path)
    assert [r.identity["version"] for r in read_records(tmp_path / "records")] == [
        "weights 2",
        "",
        "",
    ]
    assert not run(stages, tmp_path)


def test_a_lost_output_is_made_again(tmp_path: Path) -> None:
    stages = chain(tmp_path)
    run(stages, tmp_path)
    (tmp_path / "b.txt").unlink()
    assert run(stages, tmp_path)
    assert lines(tmp_path, "b") == ["good"]
    assert not run(stages, tmp_path)


def test_outputs_that_a_command_looks_after_are_kept(tmp_path: Path) -> None:
    (first, *_) = chain(tmp_path)
    run([first], tmp_path)
    changed = replace(stage(tmp_path, "a", word="more"), keep=True)
    run([changed], tmp_path)
    assert lines(tmp_path, "a") == ["good", "more"]


def test_a_failed_command_ends_the_run_and_is_tried_again(tmp_path: Path) -> None:
    stages = chain(tmp_path)
    stages[1] = stage(tmp_path, "b", "a", word="bad")
    with pytest.raises(StageFailed, match=r"do b failed: exit code 1[\s\S]*no luck") as failure:
        run(stages, tmp_path)
    assert stages[1].shown in str(failure.value)
    assert not (tmp_path / "c.txt").exists()
    stages[1] = stage(tmp_path, "b", "a")
    run(stages, tmp_path)
    assert [lines(tmp_path, name) for name in "abc"] == [["good"]] * 3


def test_a_command_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    (first, *_) = chain(tmp_path)
    with pytest.raises(StageFailed, match=r"it did not write .*elsewhere"):
        run([replace(first, outputs=(tmp_path / "elsewhere",))], tmp_path)


def test_side_by_side(tmp_path: Path) -> None:
    """Two commands that wait for each other finish only if both run at the same time."""
    script = tmp_path / "meet.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nmine, other = map(Path, sys.argv[1:])\n"
        "mine.touch()\nwhile not other.exists():\n    time.sleep(0.02)\n",
        encoding="utf-8",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    stages = [
        Stage("one", "one", (str(script), str(one), str(two)), (one,)),
        Stage("two", "two", (str(script), str(two), str(one)), (two,)),
    ]
    assert run(stages, tmp_path, jobs=2)


def test_refuses_stages_in_the_wrong_order(tmp_path: Path) -> None:
    first, second, _ = chain(tmp_path)
    with pytest.raises(ValueError, match=r"'b' before \['a'\]"):
        StageRunner([second, first], tmp_path)
    with pytest.raises(ValueError, match="'a' twice"):
        StageRunner([first, first], tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        StageRunner([first], tmp_path, jobs=0)
    with pytest.raises(ValueError, match="found none"):
        read_records(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_every_stage(tmp_path: Path, number: signal.Signals) -> None:
    for name in "abc":
        (tmp_path / f"{name}.hold").touch()
        # forked, because importing torch again takes seconds
        process = get_context("fork").Process(target=run_as_program, args=(tmp_path,))
        process.start()
        wait_for(tmp_path / f"{name}.txt")
        with pytest.raises(ValueError, match="another run is in progress"):
            run(chain(tmp_path), tmp_path)
        os.kill(process.pid, number)
        process.join(30)
        assert process.exitcode == (-number if number == signal.SIGKILL else 130)
        if number == signal.SIGKILL:  # its command still runs and holds the lock
            with pytest.raises(ValueError, match="a command of a killed run"):
                run(chain(tmp_path), tmp_path)
        (tmp_path / f"{name}.hold").unlink()
        wait_until_free(tmp_path)
    run(chain(tmp_path), tmp_path)
    # started twice, keeping the output of the first start
    assert all(lines(tmp_path, name) == ["good", "good"] for name in "abc")


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    before = file.stat().st_size if file.exists() else 0
    while not file.exists() or file.stat().st_size == before:
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.02)


def wait_until_free(folder: Path) -> None:
    """Wait until no command of a killed runner is left."""
    for _ in range(500):
        try:
            StageRunner([], folder / "records").run()
        except ValueError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("a command is left")


def test_times_for_people() -> None:
    assert format_time(7.6) == "8 s"
    assert format_time(125) == "2 min 5 s"


def test_the_bar_estimates_by_what_was_seen(capsys: pytest.CaptureFixture[str]) -> None:
    bar = StageBar(total=100, done=0)
    bar.finished("do a", 40, 80)  # twice as long as estimated
    bar.show([(20, 10)], "iter: 7")
    assert bar.bar.n == pytest.approx(40 + 9.8)
    assert "about 1 min 41 s left; iter: 7" in bar.bar.postfix
    assert "do a: 1 min 20 s" in capsys.readouterr().out
