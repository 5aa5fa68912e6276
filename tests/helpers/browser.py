"""A headless Chromium, driven through its pipe in the DevTools protocol: without a driver and without a library."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The program; None where there is none."""

_SECONDS = 60.0
_KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
_TEXTS = {"Enter": "\r", " ": " "}


class Browser:
    """One tab. `errors` are what its console reports: what its policy blocks, and scripts that fail."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for its profile."""
        assert CHROMIUM is not None
        options = [
            "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
        ]  # fmt: skip
        # It reads commands from file 3 and writes answers to file 4.
        redirected = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
        self._process = subprocess.Popen(
            ["sh", "-c", redirected, "sh", CHROMIUM, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._session: str | None = None
        self._sent, self._unread = 0, b""
        self.errors: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._session = None
            self.send("Browser.close")
        else:
            self._process.kill()
        self._process.communicate(timeout=_SECONDS)

    def send(self, method: str, **params: Any) -> Any:
        """Sends a command -> its result."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        deadline = time.monotonic() + _SECONDS
        while (answer := self._read(deadline)).get("id") != self._sent:
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"]))
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\0" not in self._unread:
            readable, _, _ = select.select([pipe], [], [], deadline - time.monotonic())
            part = os.read(pipe, 2**16) if readable else b""
            assert part, "the browser does not answer"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        """Opens an address and waits until its scripts have run."""
        self.send("Page.navigate", url=address)
        self.wait_for(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Runs a script in the page -> the value of its last expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Waits until an expression of the page is true."""
        deadline = time.monotonic() + _SECONDS
        while not self.run(condition):
            assert time.monotonic() < deadline, f"not so after {_SECONDS:g} seconds: {condition}"
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Presses keys, one after the other. `modifiers`: 2 is Ctrl, 8 is Shift."""
        for key in keys:
            code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": modifiers}
            self.send("Input.dispatchKeyEvent", type="keyDown", text=_TEXTS.get(key, ""), **code)
            self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def point(self, selector: str) -> tuple[float, float]:
        """Moves the mouse to the middle of an element -> where that is."""
        x, y = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)}); found.scrollIntoView();"
            "const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        """Clicks an element."""
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drop(self, what: str | Path, selector: str) -> None:
        """Drags text, or a file, over an element and lets it fall."""
        x, y = self.point(selector)
        items = [{"mimeType": "text/plain", "data": what}] if isinstance(what, str) else []
        data = {"items": items, "files": [] if items else [str(what)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, path: Path, selector: str) -> None:
        """Chooses a file for an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
