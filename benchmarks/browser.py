"""A headless Chromium, driven through a pipe: it says what pages complain of, and reaches this machine alone."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--disable-features=Translate,OptimizationHints,MediaRouter", "--force-color-profile=srgb"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
_HERE = ("127.0.0.1", "localhost", "::1")
_ANSWER_S = 60.0
_COLORS = 192


class BrowserError(Exception):
    """Chromium does not do what it was asked."""


@dataclass
class Seen:
    """What a page did since it was opened.

    Attributes:
        complaints: errors on its console, uncaught exceptions, and what its policy refused.
        leaving: addresses that it asked for and that are not this machine's.
    """

    complaints: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)


class Browser:
    """One Chromium; a context manager.

    Raises:
        BrowserError: there is none, or it ends.
    """

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="bdray-browser-", ignore_cleanup_errors=True)
        self._number, self._rest, self._sessions = 0, b"", dict[str, Seen]()

    def __enter__(self) -> Self:
        if CHROMIUM is None:
            raise BrowserError("there is no chromium on the PATH")
        self._read, theirs_out = os.pipe()
        theirs_in, self._write = os.pipe()
        # Chromium takes commands from its descriptor 3 and answers on 4.
        joined = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", joined, "chromium", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def open(
        self,
        url: str,
        *,
        width: int,
        height: int,
        scheme: Literal["light", "dark"] = "light",
        stored: Mapping[str, str] | None = None,
    ) -> Page:
        """A new tab of so many CSS pixels.

        Args:
            scheme: what its reader prefers.
            stored: what earlier visits have left in the site's local storage.
        """
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session, target, width, height)
        self._sessions[session] = page.seen
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.ask(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.ask("Emulation.setDeviceMetricsOverride", size)
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.ask("Emulation.setEmulatedMedia", wanted)
        visits = (
            f"Object.entries({json.dumps(stored or {})}).forEach(([key, value]) => localStorage.setItem(key, value))"
        )
        page.ask("Page.addScriptToEvaluateOnNewDocument", {"source": visits})
        page.go(url)
        return page

    def ask(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> Any:
        """The result of a method of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params or {}}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            answer = self._next(deadline)
            if answer is None:
                raise BrowserError(f"no answer to {method}")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def hear(self, seconds: float) -> None:
        """Let pages go on for a while, and note what they do."""
        deadline = time.monotonic() + seconds
        while self._next(deadline) is not None:
            pass

    def _next(self, deadline: float) -> dict[str, Any] | None:
        """The next message; None when there is none until then."""
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            more = os.read(self._read, 1 << 20)
            if not more:
                raise BrowserError("chromium ended")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        seen = self._sessions.get(message.get("sessionId", ""))
        if seen is not None and "method" in message:
            _note(seen, message["method"], message["params"])
        return message


def _note(seen: Seen, method: str, params: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        address = urlsplit(params["request"]["url"])
        if address.scheme in ("http", "https", "ws", "wss") and address.hostname not in _HERE:
            seen.leaving.append(params["request"]["url"])
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        seen.complaints.append(" ".join(str(said.get("value", said.get("description"))) for said in params["args"]))
    elif method == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        seen.complaints.append(details.get("exception", {}).get("description") or details["text"])
    elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
        seen.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())


@dataclass(frozen=True)
class Page:
    """A tab."""

    browser: Browser
    session: str
    target: str
    width: int
    height: int
    seen: Seen = field(default_factory=Seen)

    def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """See `Browser.ask`."""
        return self.browser.ask(method, params, self.session)

    def go(self, url: str) -> None:
        """Leave for an address."""
        self.ask("Page.navigate", {"url": url})

    def run(self, script: str) -> Any:
        """What an expression, or the promise it makes, comes to."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        done = self.ask("Runtime.evaluate", asked)
        if "exceptionDetails" in done:
            raise BrowserError(str(done["exceptionDetails"].get("exception", {}).get("description", script)))
        return done["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60.0) -> None:
        """Until an expression is true.

        Raises:
            BrowserError: it is not by then; says what the page shows instead.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.run(script):
                return
            self.browser.hear(0.25)
        raise BrowserError(f"not so after {seconds:g} s: {script}\n{self.run('document.body.innerText')[:2000]}")

    def wait_for_text(self, *texts: str, seconds: float = 60.0) -> None:
        """Until the page shows all of them."""
        self.wait_for(f"{json.dumps(texts)}.every((text) => document.body?.innerText.includes(text))", seconds)

    def click(self, script: str) -> None:
        """On the element that an expression comes to, once it is there."""
        self.wait_for(f"!!({script})")
        self.run(f"({script}).click()")

    def replace(self, pattern: str, new: str) -> None:
        """Show another text wherever a regular expression fits: what a picture need not tell of the machine."""
        self.run(f"""
            const [pattern, text] = [new RegExp({json.dumps(pattern)}, "g"), {json.dumps(new)}];
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {{
              walker.currentNode.data = walker.currentNode.data.replace(pattern, text);
            }}
        """)

    def picture(self, top: int = 0, height: int | None = None) -> Image.Image:
        """What it shows from `top` on, in the page's pixels."""
        clip = {"x": 0, "y": top, "width": self.width, "height": height or self.height, "scale": 1}
        taken = self.ask("Page.captureScreenshot", {"format": "png", "clip": clip, "captureBeyondViewport": True})
        return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")

    def close(self) -> None:
        """The tab's end."""
        self.browser.ask("Target.closeTarget", {"targetId": self.target})


def save(picture: Image.Image, path: Path) -> None:
    """As a small file: a palette is enough for what pages show."""
    picture.quantize(_COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def complaints_of(seen: Seen, allowed: Sequence[str] = ()) -> list[str]:
    """What is wrong with a page, but for complaints that hold one of `allowed`."""
    own = [said for said in seen.complaints if not any(text in said for text in allowed)]
    return [*(f"console: {said}" for said in own), *(f"a request leaves: {url}" for url in seen.leaving)]
