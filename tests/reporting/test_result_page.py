"""The result page, including its rendering in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vild.reporting.plots import ClassAP, plot_class_ap, plot_similarities, read_class_ap
from vild.reporting.result_page import PageFigure, PageSection, PageTable, write_page
from vild.reporting.summary import MISSING

NASTY = '<script>document.title = "broken"</script> & "quotes"'


def figures() -> list[PageFigure]:
    plot = Figure(figsize=(4, 2))
    plot.add_subplot().plot([1, 2, 3])
    image = np.random.RandomState(0).randint(0, 255, (60, 80, 3)).astype(np.uint8)
    return [
        PageFigure.from_plot(plot, "a line", "rises"),
        PageFigure.from_image(image, f"noise {NASTY}", NASTY),
    ]


def make_page(folder: Path) -> Path:
    table = PageTable(
        ("method", "command", "AP"),
        ((NASTY, "python a.py '(1, 2)'", "12.5"), ("ViLD", "python b.py", MISSING)),
        numbers=2,
        code=True,
    )
    page = folder / "index.html"
    sections = [PageSection("Results", NASTY, table), PageSection("Images", figures=figures())]
    write_page(page, "A title", NASTY, sections)
    return page


def test_one_file_in_which_text_is_text(tmp_path: Path) -> None:
    text = make_page(tmp_path).read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]
    assert "<script" not in text
    assert "http" not in text  # nothing is loaded from elsewhere


def test_in_a_browser(tmp_path: Path, browser: Any) -> None:
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.goto(make_page(tmp_path).as_uri())
    assert page.title() == "A title"
    cells = page.locator("tbody tr").nth(0).locator("td").all_inner_texts()
    assert cells == [NASTY, "python a.py '(1, 2)'", "12.5"]
    page.locator("img").last.scroll_into_view_if_needed()
    widths = page.locator("img").evaluate_all("all => all.map(image => image.naturalWidth)")
    assert widths == [440, 80]
    # nothing is wider than the window, even on a phone
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.screenshot(path=str(tmp_path / "shot.png"), full_page=True)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert shot.shape[0] > 600
    assert 5 < shot.std() < 120
    assert not said


def test_class_ap_is_read_and_drawn(tmp_path: Path) -> None:
    file = tmp_path / "a_per_class.csv"
    file.write_text(
        "class,novel,frequency,instances,bbox AP\ncrow,0,f,3,50.0\nowl,1,r,2,25.0\nemu,0,c,0,\n",
        encoding="utf-8",
    )
    classes = read_class_ap(file)
    assert classes[:2] == [ClassAP("crow", False, 50.0), ClassAP("owl", True, 25.0)]
    (axes,) = plot_class_ap(classes, {"owl": 30.0, "emu": 1.0}, ("ours", "other")).axes
    assert [bar.get_height() for bar in axes.patches] == [50.0, 25.0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["crow", "owl"]
    marks = [line for line in axes.get_lines() if line.get_label() == "other"]
    assert marks[0].get_xydata().tolist() == [[1.0, 30.0]]
    with pytest.raises(ValueError, match="expected the columns class, novel and 'segm AP'"):
        read_class_ap(file, "segm")
    with pytest.raises(ValueError, match="No such file"):
        read_class_ap(tmp_path / "none.csv")


def test_names_of_runs_are_no_formulas() -> None:
    figure = plot_class_ap([ClassAP("crow", False, 50.0)], {"crow": 30.0}, (r"$\frac$", "$a$"))
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == [r"\$a\$", r"\$\frac\$, base: mean 50.0"]


def test_similarities_have_novel_classes_last() -> None:
    matrix = np.arange(9.0).reshape(3, 3)
    figure = plot_similarities(
        {"one": matrix, "two": matrix}, ("a", "b", "c"), (True, False, False)
    )
    first, second, _ = figure.axes
    assert first.images[0].get_array().tolist() == [[4, 5, 3], [7, 8, 6], [1, 2, 0]]
    assert [tick.get_text() for tick in second.get_yticklabels()] == ["b", "c", "a"]
