"""Tells an address of the user's when a sweep ends, is stopped, or meets its first failure; only when asked.

The address may itself be a secret (a chat's incoming webhook): messages name no more of it than the server.
"""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from bdray.credentials import public, server_of
from bdray.errors import UserError

NOTIFY = "BDRAY_NOTIFY"
"""The environment variable that `--notify` stands above."""

Event = Literal["finished", "failed", "stopped"]

_PATIENCE_S = 10.0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Notifier:
    """Posts small JSON objects: `event`, `sweep`, `text`, and counts.

    Args:
        url: where to; None: nowhere.
        complain: is told in one line when it could not be sent. A sweep never waits for that and never fails of it.

    Raises:
        UserError: the address is none of HTTP.
    """

    def __init__(self, url: str | None, complain: Callable[[str], None]) -> None:
        if url is not None and not _is_address(url):
            raise UserError("--notify: must be the address of a server, such as https://HOST/PATH")
        self._url, self._complain = url, complain
        self._sending: list[threading.Thread] = []
        self._has_failed = False

    def first_failure(self, sweep: str, condition_id: str, cause: str) -> None:
        """A condition failed; only the first one is told. Returns at once."""
        if self._has_failed or self._url is None:
            return
        self._has_failed = True
        text = f"{sweep}: {condition_id} failed: {cause}"
        content = {"condition_id": condition_id, "cause": public(cause)}
        thread = threading.Thread(target=self.send, args=("failed", sweep, text), kwargs=content, daemon=True)
        self._sending.append(thread)
        thread.start()

    def send(self, event: Event, sweep: str, text: str, **content: Any) -> None:
        """Post one; waits for the answer, but not long."""
        if self._url is None:
            return
        body = json.dumps({"event": event, "sweep": sweep, "text": public(text), **content}).encode()
        try:
            with urllib.request.urlopen(_request(self._url, body), timeout=_PATIENCE_S):
                pass
        except (OSError, ValueError) as error:
            # What urllib says of an address may hold all of it.
            status = f"answers {error.code}" if isinstance(error, urllib.error.HTTPError) else "cannot be reached"
            self._complain(f"--notify: {server_of(self._url)} {status}; '{event}' was not told")

    def finish(self) -> None:
        """Wait for what is still being sent."""
        for thread in self._sending:
            thread.join(_PATIENCE_S)


def _request(url: str, body: bytes) -> urllib.request.Request:
    """Urllib takes no login in an address; a server wants it as a header."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "bdray"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return urllib.request.Request(bare, data=body, headers=headers, method="POST")
