# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Drives a headless Chromium over the two pipes of its DevTools protocol, with nothing but the standard library."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


class Browser:
    """A page in a browser of its own; `errors` are what its console complained of.

    Args:
        profile: an empty folder for the browser's profile.
    """

    def __init__(self, profile: Path) -> None:
        # The browser takes commands from file descriptor 3 and answers on 4.
        self._process = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                'exec "$@" 3<&0 4>&1 0</dev/null 1>&2',
                "sh",
                EXECUTABLE,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._write, self._read = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._buffer, self._count, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 60)
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, "the browser ended" if ready else "the browser does not answer"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, content = event.get("method"), event.get("params", {})
        bad_log = method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning")
        bad_call = method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert")
        if method == "Runtime.exceptionThrown" or bad_log or bad_call:
            self.errors.append(json.dumps(content))
        elif method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])

    def open(self, path: Path, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Opens a file in a window of a size, in a light or a dark scheme."""
        self._resize(width, height)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && document.querySelectorAll('svg *').length > 0")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def hover(self, element: str) -> None:
        """Moves the mouse to the middle of what a JavaScript expression gives, which is brought into sight."""
        self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """Writes a picture of the whole page."""
        self._resize(*self.evaluate("[innerWidth, document.documentElement.scrollHeight]"))
        picture = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
