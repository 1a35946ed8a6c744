from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vild.reporting.runs import Run
from vild.reporting.summary import (
    MISSING,
    build_tables,
    plot_summary,
    to_csv,
    to_markdown,
    write_summary,
)

CURVE = np.array([[0.0, 4], [10, 3], [20, 2]])


def lvis(name: str = "mine", **more: Any) -> Run:
    metrics = {"AP": 25.04, "APr": math.nan, "APc": 24.0, "APf": 30.25}
    return Run(name, "lvis_v1_val", {"segm": metrics, "bbox": {"APr": 1.0, "AP": 2.0}}, more)


def coco(name: str = "birds", **metrics: float) -> Run:
    metrics = {"AP": 1.0, "AP50-novel": 27.0, "AP50-base": 59.0, "AP50-all": 51.0, **metrics}
    return Run(name, "coco_2017_ovd_val", {"bbox": metrics}, {})


def test_what_is_not_there_is_an_en_dash() -> None:
    assert MISSING == "\N{EN DASH}"


def test_markdown_of_lvis() -> None:
    assert to_markdown(build_tables([lvis("a|b")])) == (
        "**Mask AP in percent**\n"
        "\n"
        "| method | data | figures | APr | APc | APf | AP |\n"
        "| --- | --- | --- | ---: | ---: | ---: | ---: |\n"
        f"| a\\|b | lvis_v1_val | measured | {MISSING} | 24.0 | 30.2 | 25.0 |\n"
    )


def test_names_are_text_in_markdown() -> None:
    name = "a|b\n| `x` <img src=x onerror=alert(1)> *z* _y_ [l](javascript:1) $m$ lvis_v1 \\"
    (line,) = to_markdown(build_tables([lvis(name)])).splitlines()[4:]
    expected = (
        r"a\|b \| \`x\` &lt;img src=x onerror=alert(1)&gt; \*z\* \_y\_ \[l\](javascript:1) \$m\$ "
        r"lvis_v1 \\"
    )
    assert line.startswith(f"| {expected} | lvis_v1_val | measured |")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_names_are_no_formulas_in_csv(name: str) -> None:
    assert f"\n'{name}," in to_csv(build_tables([lvis(name)]))


def test_csv_of_two_kinds() -> None:
    assert to_csv(build_tables([lvis("a,b"), coco()])) == (
        "method,data,figures,task,APr,APc,APf,AP,AP50 novel,AP50 base,AP50 all\n"
        '"a,b",lvis_v1_val,measured,segm,,24.000,30.250,25.040,,,\n'
        "birds,coco_2017_ovd_val,measured,bbox,,,,,27.000,59.000,51.000\n"
    )


def test_coco_is_reported_by_boxes() -> None:
    (table,) = build_tables([coco()])
    assert (table.kind, table.task, table.title) == ("coco", "bbox", "Box AP in percent")
    assert table.headings == ("AP50 novel", "AP50 base", "AP50 all")
    assert table.rows[0].values == (27, 59, 51)


def test_any_other_data_set_is_reported_by_ap() -> None:
    run = Run("x", "", {"bbox": {"AP": 3.0, "AP50": 5.0, "AP75": math.nan}}, {})
    assert f"| x | {MISSING} | measured | 3.0 | 5.0 | {MISSING} |\n" in to_markdown(
        build_tables([run])
    )


def test_the_task_can_be_chosen() -> None:
    (table,) = build_tables([lvis()], "bbox")
    assert table.rows[0].values[3] == 2
    with pytest.raises(ValueError, match="birds has no results for segm, only for bbox"):
        build_tables([coco()], "segm")


def test_published_rows_are_marked_and_below_the_measured_ones() -> None:
    (table,) = build_tables([lvis("one"), lvis("two")], reference=True)
    assert [row.published != "" for row in table.rows] == [False] * 2 + [True] * 6
    lines = to_markdown([table]).splitlines()
    assert (
        "| *ViLD-ensemble, R50* | *LVIS v1 val* | *published (paper)* "
        "| *16.6* | *24.6* | *30.3* | *25.5* |" in lines
    )
    assert all(("published" in line) != ("measured" in line) for line in lines[4:12])
    assert "2104.13921" in lines[-1]
    assert to_csv([table]).count(",published (") == 6


def test_published_rows_are_of_the_same_protocol() -> None:
    (table,) = build_tables([coco()], reference=True)
    assert table.rows[1].values == (27.6, 59.5, 51.3)
    assert len(table.rows) == 2
    (boxes,) = build_tables([lvis()], "bbox", reference=True)
    assert len(boxes.rows) == 1  # the published rows are for masks
    assert not boxes.source


def test_a_run_without_results_has_an_empty_row() -> None:
    training = Run("young", "", {}, {"total_loss": CURVE})
    (table,) = build_tables([training, lvis()])
    assert table.kind == "lvis"
    assert all(map(math.isnan, table.rows[0].values))
    row = " | ".join(["| young", MISSING, "measured", *[MISSING] * 3]) + " |\n"
    assert to_markdown(build_tables([training])).endswith(row)
    with pytest.raises(ValueError, match="at least one run"):
        build_tables([])


def test_the_image_has_a_panel_a_curve_and_the_runs_data_in_it() -> None:
    history = {"total_loss": CURVE, "loss_distill": CURVE, "segm/APr": CURVE[:1]}
    runs = [lvis("one", **history), lvis("two", total_loss=CURVE * 2)]
    figure = plot_summary(runs, build_tables(runs, reference=True))
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(panels) == {"", "mask APr", "total_loss", "loss_distill"}
    losses = panels["total_loss"].lines
    assert [line.get_ydata().tolist() for line in losses] == [[4, 3, 2], [8, 6, 4]]
    assert losses[0].get_color() != losses[1].get_color()
    assert panels["mask APr"].lines[0].get_marker() == "o"
    assert len(panels["loss_distill"].lines) == 1
    texts = [text.get_text() for text in panels[""].texts]
    assert {"one", "two", "24.0", "published (paper)"} <= set(texts)
    # published figures are grey, measured ones have the colour of their curve
    assert {t.get_color() for t in panels[""].texts if t.get_text() == "10.1"} == {"0.42"}
    chips = [tuple(patch.get_facecolor()) for patch in panels[""].patches]
    assert chips == [tuple(line.get_color()) for line in losses]


def test_words_in_the_image_do_not_run_into_each_other() -> None:
    runs = [lvis("a name that is much longer than its column is wide, so that it is cut")]
    figure = plot_summary(runs, build_tables(runs, reference=True))
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts]
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


@pytest.mark.parametrize("curves", [0, 5])
def test_files(tmp_path: Path, curves: int) -> None:
    runs = [lvis("one", **{f"loss_{n}": CURVE for n in range(curves)})]
    tables = build_tables(runs)
    paths = write_summary(tmp_path / "new", runs, tables)
    assert [path.name for path in paths] == ["summary.md", "summary.csv", "summary.png"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(p.name for p in paths)
    assert paths[0].read_text(encoding="utf-8") == to_markdown(tables)
    assert paths[1].read_text(encoding="utf-8") == to_csv(tables)
    figure = plot_summary(runs, tables)
    with Image.open(paths[2]) as image:
        image.load()
        assert image.width == 1320
        assert image.height == pytest.approx(figure.get_size_inches()[1] * 110, abs=1)
        assert (np.array(image.convert("L")) < 100).any()
    assert (image.height > 600) == (curves > 0)
