"""A headless Chromium that is told over a pipe what to show (the DevTools protocol), as a device of any size."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """One tab. Close it with `with`. Messages are JSON that ends in a zero byte; Chromium reads file 3 and writes file
    4."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command += ["--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # A shell puts the pipes where Chromium looks for them.
        line = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", *command], pass_fds=(read_commands, write_answers), stderr=subprocess.DEVNULL
        )
        os.close(read_commands)
        os.close(write_answers)
        self._left, self._number, self._session = b"", 0, ""
        target = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self.ask("Page.enable")
        self.ask("Network.enable")
        self.ask(
            "Network.setCacheDisabled", cacheDisabled=True
        )  # a page that changed within a second would be the old one

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._commands)
        os.close(self._answers)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium ended"
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        return json.loads(text)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What Chromium answers to a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def show(self, address: str, width: int, height: int = 812) -> None:
        """Load a page as a device of `width` px shows it; below 700 px as a phone does."""
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self.ask("Emulation.setDeviceMetricsOverride", **device)
        self.ask("Page.navigate", url=address)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression, or of what it promises."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        answer = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))
