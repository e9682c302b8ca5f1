"""Tests of docs/check_pages.py: what a browser reports about small pages with known faults.

What belongs here: the checker. The real pages are checked by ``make check-pages``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import check_pages
from docs.check_pages import Browser, browser, check, find_browser, smallest_fonts

GOOD = "<article><table><tr><td>short</td></tr></table></article>"
DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 40" width="{width}" height="40">'
    '<style>text{{font:12px sans-serif}}</style><text x="1" y="20">word</text></svg>'
)


@pytest.fixture(scope="module")
def shown() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium")
    with browser(program) as running:
        yield running


def problems(shown: Browser, folder: Path, body: str, width: int = 390) -> list[str]:
    page = folder / "page.html"
    page.write_text(f"<!DOCTYPE html><style>body{{margin:0}}</style>{body}", encoding="utf-8")
    return [problem.text for problem in check(shown, [page], [width])]


def test_a_page_that_can_be_read_has_no_problems(shown: Browser, tmp_path: Path) -> None:
    assert problems(shown, tmp_path, GOOD) == []


@pytest.mark.parametrize("box", ["", "overflow-x:auto", "overflow:hidden"])
def test_a_table_that_is_wider_than_the_window(shown: Browser, tmp_path: Path, box: str) -> None:
    table = '<table style="width:500px;border-spacing:0"><tr><td>wide</td></tr></table>'
    body = f'<article><div style="{box}">{table}</div></article>'
    found = problems(shown, tmp_path, body)
    assert '110 pixels of a table are cut off: "wide"' in found
    assert ("110 pixels of the page are outside of the window" in found) == (not box)
    assert problems(shown, tmp_path, body, width=1280) == []


def test_text_that_runs_out_of_its_cell(shown: Browser, tmp_path: Path) -> None:
    cell = '<td style="width:100px;padding:0">' + "x" * 40 + "</td>"
    body = f'<article><table style="table-layout:fixed;width:100px"><tr>{cell}</tr></table>'
    found = problems(shown, tmp_path, body)
    assert any("outside of their cell" in text for text in found), found


def test_an_image_that_is_missing_or_cut_off(shown: Browser, tmp_path: Path) -> None:
    (tmp_path / "wide.svg").write_text(DRAWING.format(width=600), encoding="utf-8")
    body = '<article style="overflow:hidden"><img src="wide.svg"><img src="none.svg"></article>'
    assert problems(shown, tmp_path, body) == [
        "210 pixels are cut off: wide.svg",
        "no image: none.svg",
    ]


def test_a_diagram_with_text_that_is_too_small(shown: Browser, tmp_path: Path) -> None:
    (tmp_path / "small.svg").write_text(DRAWING.format(width=800), encoding="utf-8")
    image = '<article><img src="small.svg" style="width:100%"></article>'
    assert problems(shown, tmp_path, image) == ["text of 5.8 pixels in small.svg"]
    assert problems(shown, tmp_path, image, width=800) == []
    drawing = DRAWING.format(width=800).replace(' width="800"', ' width="100%"')
    assert problems(shown, tmp_path, f"<article>{drawing}</article>") == [
        "text of 5.8 pixels in a drawing"
    ]


def test_sizes_of_text_in_svg(tmp_path: Path) -> None:
    one, other, none = (tmp_path / f"{name}.svg" for name in ("one", "other", "none"))
    one.write_text(
        '<svg viewBox="0 0 360 10"><style>text{font:13px mono}.a{font-size:11px}</style></svg>',
        encoding="utf-8",
    )
    other.write_text('<svg viewBox="-5 0 760 572" font-size="12"></svg>', encoding="utf-8")
    none.write_text('<svg viewBox="0 0 9 9"></svg>', encoding="utf-8")
    assert smallest_fonts([one, other, none]) == {
        "one.svg": (11.0, 360.0),
        "other.svg": (12.0, 760.0),
    }


def test_without_a_browser_nothing_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("sys.argv", ["check_pages.py"])
    assert check_pages.main() == 0
    assert "there is no Chromium" in capsys.readouterr().out
