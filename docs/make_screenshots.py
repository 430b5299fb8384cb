"""Write docs/status-light.png and docs/status-dark.png: the status page of a running demo.

Run it as `.venv/bin/python docs/make_screenshots.py`; it needs Chromium.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.observe.web.browser import Browser  # noqa: E402

WARM_SECONDS = 75  # the page draws a minute
WIDTH, HEIGHT = 1100, 1125  # CSS pixels: down to the clients


def main() -> None:
    demo = subprocess.Popen([sys.executable, "-m", "proxy", "demo"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    try:
        url = next(match[0] for line in demo.stdout if (match := re.search(r"http://\S+", line)))
        with tempfile.TemporaryDirectory() as folder, closing(Browser(Path(folder))) as browser:
            tabs = {theme: browser.tab(WIDTH, HEIGHT, dark=theme == "dark") for theme in ("light", "dark")}
            for tab in tabs.values():
                tab.go(url)
                tab.wait("!document.getElementById('content').hidden")
            for _ in range(WARM_SECONDS):
                time.sleep(1)
                tabs["light"].run("1")  # reads the events of the browser, which would close an idle connection
            for theme, tab in tabs.items():
                tab.screenshot(ROOT / "docs" / f"status-{theme}.png", WIDTH, HEIGHT)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.communicate()


if __name__ == "__main__":
    main()
