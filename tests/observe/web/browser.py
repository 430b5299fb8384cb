"""A headless Chromium, driven over its DevTools protocol with a WebSocket client.

https://chromedevtools.github.io/devtools-protocol/. One connection carries every tab (`flatten`). A result has the
number of its command; messages without a number are events.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

SECONDS = 15.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # tests in a container run as root, for which the sandbox is not available
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)


def chromium() -> str:
    """The path of Chromium. Fails with the command that installs it if it is missing."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    assert path is not None, "these tests drive Chromium: apt-get install chromium"
    return path


class Browser:
    """One browser process, with its profile in `folder`."""

    def __init__(self, folder: Path) -> None:
        command = [chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port_file = folder / "DevToolsActivePort"
        deadline = time.monotonic() + SECONDS
        while len(lines := port_file.read_text().splitlines() if port_file.exists() else []) < 2:
            assert time.monotonic() < deadline, f"Chromium did not start within {SECONDS} s"
            assert self._process.poll() is None, "Chromium has ended"
            time.sleep(0.02)
        self._stack = ExitStack()
        socket = connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None, proxy=None, close_timeout=1)
        self._connection = self._stack.enter_context(socket)
        self._numbers = itertools.count(1)
        self._tabs: dict[str, Tab] = {}

    def tab(self, width: int = 1200, height: int = 900, *, dark: bool = False) -> Tab:
        """A new tab with its own browser context; the size is in CSS pixels."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(lambda method, **given: self.call(method, session, **given))
        tab.open(width, height, dark)
        return tab

    def call(self, method: str, session: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        command: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        self._connection.send(json.dumps(command if session is None else {**command, "sessionId": session}))
        while True:
            message = json.loads(self._connection.recv(timeout=SECONDS))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            if tab := self._tabs.get(message.get("sessionId", "")):
                tab.happened(message["method"], message["params"])

    def close(self) -> None:
        self._stack.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Tab:
    """One page. `complaints` are the errors and warnings of its console, `requests` the URLs of its requests."""

    def __init__(self, call: Callable[..., dict[str, Any]]) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._call = call

    def open(self, width: int, height: int, dark: bool) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def happened(self, method: str, event: dict[str, Any]) -> None:
        match method:
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "warning", "assert"):
                self.complaints.append(" ".join(str(part.get("value", part)) for part in event["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(event["exceptionDetails"]))
            case "Log.entryAdded" if event["entry"]["level"] in ("error", "warning"):
                entry = event["entry"]
                self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])

    def go(self, url: str) -> None:
        result = self._call("Page.navigate", url=url)
        assert "errorText" not in result, result
        self.wait("document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true; return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, (
                f"not within {seconds} s: {expression}; the page shows: {self.text('body')}"
            )
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}.get(key, 0)
        down = {"type": "keyDown", "key": key, "windowsVirtualKeyCode": code}
        self._call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def hover(self, selector: str) -> None:
        """Move the mouse to the middle of an element, which is scrolled into view."""
        x, y = self._middle(selector)
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click an element with the mouse."""
        x, y = self._middle(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def touch(self, selector: str) -> None:
        """Tap an element with a finger."""
        x, y = self._middle(selector)
        self._call("Emulation.setTouchEmulationEnabled", enabled=True)
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _middle(self, selector: str) -> tuple[float, float]:
        found = f"document.querySelector({json.dumps(selector)})"
        box = self.run(
            f"(() => {{ {found}.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            f" const {{x, y, width, height}} = {found}.getBoundingClientRect(); return [x, y, width, height] }})()"
        )
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def write(self, text: str) -> None:
        """Insert text into the focused element."""
        self._call("Input.insertText", text=text)

    def bypass_policy(self) -> None:
        """Disable the Content-Security-Policy of the next page, which would refuse a test's own script."""
        self._call("Page.setBypassCSP", enabled=True)

    def screenshot(self, path: Path, width: int, height: int) -> None:
        """Save the page, down to this height, as a PNG."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        picture = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(picture["data"]))
