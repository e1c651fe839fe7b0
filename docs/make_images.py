"""Take the screenshots in `docs/images/` from real runs: `make images`.

Trains the presets `figure2`, `lr-sweep` and `figure1` in full (some twenty minutes on two cores),
or shows the newest runs below a root given as the argument.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.dashboard import PROJECT, Server, chromium

IMAGES = Path(__file__).resolve().parent / "images"
DRAWN = "document.querySelector('.bnviz-chart .plot')?.dataset.drawn === 'true'"
SHOTS = (
    ("lab.png", "?paper=true", 1400, 880, "light"),
    ("lab-dark.png", "?paper=true", 1400, 880, "dark"),
    ("lab-narrow.png", "", 420, 1400, "light"),
    ("compare.png", "compare", 1400, 1880, "light"),
    ("sweeps.png", "sweeps", 1400, 1150, "light"),
    ("distributions.png", "distributions", 1400, 1250, "light"),
    ("method.png", "method", 1400, 1800, "light"),
    ("paper.png", "paper", 1400, 1350, "light"),
    ("paper-systems.png", "paper?figure=Figures+2+and+3", 1400, 2400, "light"),
)


def shoot(
    browser: Browser, url: str, path: Path, width: int, height: int, scheme: str, wait_for: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(url)
    page.wait_for_function(wait_for, timeout=60_000)
    page.wait_for_timeout(2_000)  # the chart's fonts and Streamlit's animations
    page.screenshot(path=path)
    context.close()
    print(path.relative_to(PROJECT))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        IMAGES.mkdir(exist_ok=True)
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "runs"
        if not root.exists():
            for preset in ("figure2", "lr-sweep", "figure1"):  # the newest runs are shown at first
                train = [sys.executable, "-m", "bnviz", "run", preset, "--root", str(root)]
                subprocess.run(train, cwd=PROJECT, check=True)
        server = Server(root)
        try:
            for name, query, width, height, scheme in SHOTS:
                shoot(browser, server.url + query, IMAGES / name, width, height, scheme, DRAWN)
        finally:
            server.kill()
        empty = Server(Path(scratch) / "none")
        try:
            text = "document.body.innerText.includes('Start Figure 1')"
            shoot(browser, empty.url, IMAGES / "lab-empty.png", 1400, 880, "light", text)
        finally:
            empty.kill()


if __name__ == "__main__":
    main()
