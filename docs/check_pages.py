"""Checks in a browser that the pages of the documentation can be read at two widths.

Sphinx accepts a table that is wider than a telephone. Only a browser, which lays a page out, knows
what of it can be seen. This opens every built page in headless Chromium, as wide as a notebook and
as wide as a telephone, and reports

* tables of which a part is cut off, or can only be seen by scrolling sideways,
* pages that scroll sideways, and images that are wider than their column,
* diagrams whose text is too small.

Blocks of code may scroll, because wrapped lines would be another text. ``make check-pages`` builds
the pages and runs this. Where Chromium is not installed it says so and checks nothing.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from websockets.sync.client import connect
from websockets.sync.connection import Connection

DOCS = Path(__file__).resolve().parent
BUILT = DOCS / "_build" / "html"
WIDTHS = (1280, 390)  # CSS pixels: a notebook, a telephone
SMALLEST = 9.5  # CSS pixels: the least size of text in a diagram
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE = 60.0  # seconds for the start of the browser, or for one command; for a busy machine


@attrs.frozen
class Problem:
    """Something that cannot be read. ``width``: of the window; ``text``: what it is."""

    page: str
    width: int
    text: str

    def __str__(self) -> str:
        return f"{self.page} at {self.width} pixels: {self.text}"


# Returns the problems of a page as strings. Lengths are in CSS pixels; 1 is allowed for rounding.
# `fonts`: for each diagram, the size of its smallest text and its width, both in its own units.
_MEASURE = r"""
(fonts, smallest) => {
  const found = [], root = document.documentElement, width = root.clientWidth;
  const words = (e) => '"' + e.textContent.trim().replace(/\s+/g, " ").slice(0, 50) + '"';
  const shown = (e) => e.getClientRects().length > 0;
  const report = (pixels, what) => { if (pixels > 1) found.push(`${Math.round(pixels)} ${what}`); };
  // The part of the window in which `e` is visible without scrolling sideways.
  const visible = (e) => {
    let [left, right] = [0, width];
    for (let outer = e.parentElement; outer; outer = outer.parentElement) {
      if (getComputedStyle(outer).overflowX === "visible") continue;
      const box = outer.getBoundingClientRect();
      [left, right] = [Math.max(left, box.left), Math.min(right, box.right)];
    }
    return [left, right];
  };
  report(root.scrollWidth - width, "pixels of the page are outside of the window");
  for (const table of document.querySelectorAll("table")) {
    if (!shown(table)) continue;
    const box = table.getBoundingClientRect(), [left, right] = visible(table);
    const cut = Math.max(left - box.left, box.right - right);
    report(cut, `pixels of a table are cut off: ${words(table)}`);
    for (const cell of table.querySelectorAll("td, th")) {
      const range = document.createRange();
      range.selectNodeContents(cell);
      const outside = range.getBoundingClientRect().right - cell.getBoundingClientRect().right;
      report(outside, `pixels of text are outside of their cell: ${words(cell)}`);
    }
  }
  for (const image of document.querySelectorAll("article img")) {
    if (!shown(image)) continue;
    const box = image.getBoundingClientRect(), name = image.src.replace(/.*\//, "");
    if (!image.complete || image.naturalWidth === 0) found.push(`no image: ${name}`);
    if (!image.closest(".wide")) {
      const [left, right] = visible(image);
      report(Math.max(left - box.left, box.right - right), `pixels are cut off: ${name}`);
    }
    if (fonts[name]) {
      const size = fonts[name][0] * box.width / fonts[name][1];
      if (size < smallest) found.push(`text of ${size.toFixed(1)} pixels in ${name}`);
    }
  }
  for (const drawing of document.querySelectorAll("article svg")) {
    const sizes = [...drawing.querySelectorAll("text")].map(
      (e) => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a);
    const size = Math.min(...sizes), box = drawing.getBoundingClientRect();
    if (size < smallest) found.push(`text of ${size.toFixed(1)} pixels in a drawing`);
    if (sizes.length && !drawing.closest(".wide"))
      report(box.right - visible(drawing)[1], "pixels of a drawing are cut off");
  }
  return found;
}
"""


class Browser:
    """A headless browser with one page, driven by the DevTools protocol."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._commands = 0
        self._session: str | None = None
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        attached = self._do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._do("Page.enable")

    def open(self, page: Path, width: int) -> None:
        """Show ``page`` in a window of ``width`` CSS pixels, and wait until it is loaded."""
        self._do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._do("Page.navigate", until="Page.loadEventFired", url=page.as_uri())
        # Images below the window are loaded, and fonts are exchanged, after the load event.
        self.run("Promise.all([...document.images].map((i) => i.decode().catch(() => 0)))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self._do(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        size = self._do("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._do("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _do(self, method: str, *, until: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result. ``until``: an event to wait for, too."""
        self._commands += 1
        command: dict[str, Any] = {"id": self._commands, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        self._connection.send(json.dumps(command))
        result: dict[str, Any] | None = None
        while result is None or until is not None:
            message = json.loads(self._connection.recv(timeout=_PATIENCE))
            if message.get("id") == self._commands:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result = message["result"]
            elif message.get("method") == until:
                until = None
        return result


def find_browser() -> str | None:
    """The path of Chromium: ``CHROMIUM``, or the first that is installed."""
    given = os.environ.get("CHROMIUM")
    return given or next((path for name in _BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Run ``program`` with a profile of its own, and end it at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        flags += ["--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium has none for root
        with subprocess.Popen([program, *flags], stderr=subprocess.PIPE) as process:
            try:
                with connect(_address(process), max_size=None, open_timeout=_PATIENCE) as socket:
                    yield Browser(socket)
            finally:
                process.terminate()


def _address(process: subprocess.Popen[bytes]) -> str:
    """The URL that the browser prints when it can be reached."""
    assert process.stderr is not None
    said = b""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and (line := process.stderr.readline()):
        said += line
        if match := re.search(rb"DevTools listening on (ws://\S+)", line):
            return match[1].decode()
    raise RuntimeError(f"the browser did not start: {said.decode(errors='replace')[-500:]}")


def smallest_fonts(images: Iterable[Path]) -> dict[str, tuple[float, float]]:
    """By the name of each SVG image, the size of its smallest text, and its width, in its units."""
    found = {}
    for image in images:
        text = image.read_text(encoding="utf-8")
        sizes = re.findall(r"font(?:-size)?[:=]\"?[^;}\">]*?([0-9.]+)(?:px|\"|;|})", text)
        box = re.search(r'viewBox="\S+ \S+ (\S+) \S+"', text)
        if sizes and box is not None:
            found[image.name] = (min(map(float, sizes)), float(box[1]))
    return found


def check(
    shown: Browser, pages: Sequence[Path], widths: Sequence[int], pictures: Path | None = None
) -> Iterator[Problem]:
    """The problems of ``pages``. ``pictures``: a folder for a picture of each page."""
    fonts = smallest_fonts({image for page in pages for image in page.parent.rglob("*.svg")})
    for page in pages:
        for width in widths:
            shown.open(page, width)
            script = f"({_MEASURE})({json.dumps(fonts)}, {SMALLEST})"
            for text in shown.run(script):
                yield Problem(page.name, width, text)
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                (pictures / f"{page.stem}-{width}.png").write_bytes(shown.picture())


def main() -> int:
    """Check the pages that are named, or all; the exit status."""
    parser = argparse.ArgumentParser(description="Check the built pages in headless Chromium.")
    parser.add_argument("pages", nargs="*", type=Path, help="files (default: all in _build/html)")
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, help="CSS pixels")
    parser.add_argument("--pictures", type=Path, help="write a picture of each page to this folder")
    options = parser.parse_args()
    program = find_browser()
    if program is None:
        print("pages not checked: there is no Chromium; install it, or set CHROMIUM to its path")
        return 0
    pages = [page.resolve() for page in options.pages] or sorted(BUILT.glob("*.html"))
    if not pages:
        print(f"no pages in {BUILT}: run make docs")
        return 1
    with browser(program) as shown:
        problems = list(check(shown, pages, options.widths, options.pictures))
    for problem in problems:
        print(problem)
    print(f"{len(pages)} pages, {len(options.widths)} widths, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
