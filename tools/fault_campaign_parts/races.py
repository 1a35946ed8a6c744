"""Races of processes that work on the same files at the same time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic, sleep

from fault_campaign_parts.artefacts import digests
from fault_campaign_parts.bench import TRAIN, TRAIN_IMAGES, Bench, script
from fault_campaign_parts.children import Child, Gate, Outcome, Target, guarded, run
from fault_campaign_parts.commands import (
    VOCABULARIES,
    download_archives,
    run_stages,
    word_encoder,
)
from fault_campaign_parts.readers import read_proposals
from fault_campaign_parts.report import Case, Result
from vild.data import Vocabulary
from vild.proposals import ProposalStore
from vild.storage import UnfinishedStoreError

ALL, ANY, ONE = "all succeed", "one or more succeed", "exactly one succeeds"


@dataclass(frozen=True)
class Race:
    """Processes that are started at the same moment.

    Attributes:
        name: row of the report.
        make: returns the targets for a folder.
        promise: which processes must succeed: ``ALL``, ``ANY`` or ``ONE``. The others must fail
            with a one-line error, and the artefacts must equal those of one process alone.
        repeats: number of races.
        prepare: writes files before the race.
        alone: targets to run one by one for comparison; ``make`` by default.
        after: checks the files after the race; returns an exit code.
    """

    name: str
    make: Callable[[Path], Sequence[Target]]
    promise: str = ALL
    repeats: int = 7
    prepare: Callable[[Path], None] | None = None
    alone: Callable[[Path], Sequence[Target]] | None = None
    after: Callable[[Path], int] | None = None


def all_races(bench: Bench) -> list[Race]:
    """Return the table of races."""

    def same(
        words: Callable[..., Sequence[object]], count: int = 2, *more: str
    ) -> Callable[[Path], Sequence[Target]]:
        return lambda folder: [script(*words(folder, *more)) for _ in range(count)]

    def ranks(folder: Path) -> Sequence[Target]:
        machines = ("--num-machines", "4", "--machine-rank")
        return [script(*bench.embeddings_command(folder, *machines, str(r))) for r in range(4)]

    def other_specs(folder: Path) -> Sequence[Target]:
        limits = ("8", "6", "4")
        return [script(*bench.embeddings_command(folder, "--regions", n)) for n in limits]

    def two_vocabularies(folder: Path) -> Sequence[Target]:
        file = folder / "text.safetensors"
        return [script(*bench.text_command(file, "--novel", word)) for word in NOVEL]

    text = partial(_file_command, bench.text_command)
    return [
        Race("one store, 4 ranks", ranks, repeats=8, alone=same(bench.embeddings_command, 1)),
        Race("one store, 2 runs with one spec", same(bench.embeddings_command), ANY, 8),
        Race("one store, 3 runs with other specs", other_specs, ONE, 10),
        Race("one store of proposals, 3 imports", same(bench.convert_command, 3), ANY, 8),
        Race(
            "reader while a store is written",
            partial(reader_and_writer, bench),
            repeats=8,
            alone=same(bench.convert_command, 1),
        ),
        Race(
            "4 readers of an unchecked store",
            readers,
            prepare=partial(unchecked, bench),
            after=partial(remembered, bench),
        ),
        Race(
            "one word cache",
            lambda f: [guarded(partial(embed, f, number)) for number in range(3)],
            repeats=10,
            alone=lambda folder: [],
            after=all_words,
        ),
        Race("one file of text embeddings", same(text, 3), repeats=5),
        Race("one file of text embeddings, other classes", two_vocabularies, repeats=5),
        Race("one OUTPUT_DIR, 2 trainings", same(bench.train_command), ANY, 8),
        Race("one OUTPUT_DIR, 2 evaluations", same(bench.evaluate_command), ANY, 6),
        Race("one folder, 2 demos", same(bench.demo_command), ANY, 6),
        Race("one folder, 2 exports", same(bench.export_command), ANY, 4),
        Race("one dataset, 3 make_shapes", same(_shapes(bench), 3), ANY),
        Race("one download", lambda f: [guarded(partial(download_archives, bench, f))] * 3, ANY),
        Race("one experiment, 2 runners", lambda f: [partial(run_stages, f)] * 2, ANY),
    ]


NOVEL = ("dotted red circle", "striped blue circle")


def _file_command(command: Callable[..., Sequence[str]], folder: Path) -> Sequence[str]:
    return command(folder / "text.safetensors")


def _shapes(bench: Bench) -> Callable[[Path], Sequence[str]]:
    return lambda folder: bench.shapes_command(folder / "shapes", "--workers", "1")


def race_cases(races: Sequence[Race]) -> list[Case]:
    """Return the cases of this part."""
    return [
        Case("races", race.name, f"races/{race.name}/{number}", partial(hold, race, number), 3.0)
        for race in races
        for number in range(race.repeats)
    ]


def hold(race: Race, number: int, folder: Path, random: Random) -> Result:
    """Run one race; in every second one, the processes start up to one run's duration apart."""
    result = Result()
    alone: list[dict[str, str]] = []
    took = 0.1
    own = folder / "race"  # the same path each time, since files may contain it
    for target in (race.alone or race.make)(own):
        _begin(race, own)
        outcome = run(target, folder / "alone")
        if outcome.code:
            result.problems.append(f"alone it fails: {outcome.text[-500:]}")
            return result
        took = max(took, outcome.seconds)
        alone.append(digests(own))
        shutil.rmtree(own)
    _begin(race, own)
    gate = Gate()
    children = [
        Child(_delayed(target, random.uniform(0, took) * (number % 2)), folder / "child", gate=gate)
        for target in race.make(own)
    ]
    gate.release(len(children))
    outcomes = [child.wait() for child in children]
    judge(result, race, alone, outcomes, digests(own))
    if race.after is not None:
        outcome = run(partial(race.after, own), folder / "after")
        if outcome.code:
            result.problems.append(f"afterwards: {outcome.text.strip()[-300:]}")
    return result


def _begin(race: Race, folder: Path) -> None:
    folder.mkdir()
    if race.prepare is not None:
        race.prepare(folder)


def _delayed(target: Target, seconds: float) -> Target:
    def delayed() -> int | None:
        sleep(seconds)
        return target()

    return delayed


def judge(
    result: Result,
    race: Race,
    alone: Sequence[dict[str, str]],
    outcomes: Sequence[Outcome],
    found: dict[str, str],
) -> None:
    """Check the promise."""
    result.counts["races"] += 1
    succeeded = [number for number, outcome in enumerate(outcomes) if outcome.code == 0]
    result.counts["processes that succeed"] += len(succeeded)
    result.counts["processes refused"] += len(outcomes) - len(succeeded)
    for outcome in outcomes:
        if outcome.complaint():
            result.problems.append(outcome.complaint())
        if outcome.code:
            result.notes.append(outcome.last_line())
    kept = {ALL: len(succeeded) == len(outcomes), ANY: bool(succeeded), ONE: len(succeeded) == 1}
    if not kept[race.promise]:
        last = [outcome.last_line() for outcome in outcomes if outcome.code]
        result.problems.append(f"{len(succeeded)} of {len(outcomes)} succeed: {last}"[:400])
    if not alone:
        return
    # if the processes write different content, it must be that of a successful one
    possible = [alone[number] for number in succeeded if number < len(alone)] or alone
    if found in possible:
        result.counts["identical"] += 1
    else:
        differ = {n for n in found if all(found[n] != files.get(n) for files in alone)}
        result.problems.append(f"what is left is of no process: {sorted(differ)[:5]}")


def reader_and_writer(bench: Bench, folder: Path) -> Sequence[Target]:
    """Return an import of a store and a reader that opens the store until it is finished."""

    def read() -> int:
        begin, refusals = monotonic(), 0
        while monotonic() - begin < 60:
            try:
                store = ProposalStore(folder / TRAIN)
            except UnfinishedStoreError:
                refusals += 1
                continue
            if len(store) + len(store.failed) != TRAIN_IMAGES:
                print(f"error: a store of {len(store)} images was opened")
                return 1
            same = read_proposals(folder / TRAIN) == read_proposals(bench.converted / TRAIN)
            print(f"refused {refusals} times as unfinished")
            return 0 if same else 1
        print("error: it was never finished")
        return 1

    return [script(*bench.convert_command(folder)), guarded(read)]


def unchecked(bench: Bench, folder: Path) -> None:
    """Write a store without its record of checks."""
    shutil.copytree(bench.proposals, folder / TRAIN)
    (folder / TRAIN / ".checked.json").unlink()


def readers(folder: Path) -> Sequence[Target]:
    """Return four readers."""
    return [guarded(lambda: read_proposals(folder / TRAIN) and None)] * 4


def remembered(bench: Bench, folder: Path) -> int:
    """Check that the record of checks is there and the store unchanged."""
    known = (folder / TRAIN / ".checked.json").is_file()
    return int(not known or read_proposals(folder / TRAIN) != read_proposals(bench.proposals))


def embed(folder: Path, number: int) -> None:
    """Embed one of the vocabularies with the cache."""
    word_encoder(folder / "cache").embed(Vocabulary.from_names(VOCABULARIES[number]))


def all_words(folder: Path) -> int:
    """Check that the cache has the words of all processes."""
    encoder = word_encoder(folder / "cache")
    for words in VOCABULARIES:
        encoder.embed(Vocabulary.from_names(words))
    if encoder.encoded:
        print(f"error: {encoder.encoded} words are not in the cache")
    return encoder.encoded
