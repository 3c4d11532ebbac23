"""A headless Chromium driven through its DevTools protocol: open a page, run scripts, move the mouse, take pictures."""

import json
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60


class Page:
    """An open page. `complaints` are the errors and warnings that its console has shown, and requests for addresses
    that do not begin with one of `allowed`."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number, self.complaints, self._loaded = socket, 0, [], False
        self.allowed = ("file:", "data:")
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv())
        kind, details = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(details["exceptionDetails"]["text"])
        elif kind == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(details["args"]))
        elif kind == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.complaints.append(details["entry"]["text"])
        elif kind == "Network.requestWillBeSent" and not details["request"]["url"].startswith(self.allowed):
            self.complaints.append(f"asks the network for {details['request']['url']}")
        elif kind == "Page.loadEventFired":
            self._loaded = True
        return message

    def open(self, path: Path | str, *, width: int = 1280, height: int = 900, touch: bool = False) -> None:
        """Load a page in a window of this size and wait until it is there."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self._loaded = False
        self.send("Page.navigate", url=path if isinstance(path, str) else path.as_uri())
        while not self._loaded:
            self._receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """Press the mouse at one point of the window, move to the other, release."""
        points = [("mousePressed", start), ("mouseMoved", stop), ("mouseReleased", stop)]
        for kind, (x, y) in points:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def move(self, x: float, y: float) -> None:
        """Move the mouse, without a button, to a point of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 and kind == "keyDown" else ""
            )

    def wait(self, script: str) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self.run(script):
            assert time.monotonic() < deadline, f"{script} did not come true; the console says {self.complaints}"
            time.sleep(0.05)

    def picture(self, path: Path) -> Path:
        """The whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(b64decode(shot["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it prints."""
        path.write_bytes(b64decode(self.send("Page.printToPDF", printBackground=True)["data"]))
        return path


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser with its profile in `folder`; skips the test where there is none."""
    websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium to open the page in")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [program, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = _address(folder / "DevToolsActivePort", process)
        browser = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        browser.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
        target = json.loads(browser.recv())["result"]["targetId"]
        socket = websocket.create_connection(
            f"{address.partition('/devtools')[0]}/devtools/page/{target}", timeout=SECONDS, suppress_origin=True
        )
        yield Page(socket)
        socket.close()
        browser.close()
    finally:
        process.terminate()
        process.wait(SECONDS)


def _address(port_file: Path, process: subprocess.Popen) -> str:
    """Where the browser listens, which it writes to a file of its profile."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = port_file.read_text().split() if port_file.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.05)
    raise RuntimeError(f"chromium did not start within {SECONDS} s, exit code {process.poll()}")
