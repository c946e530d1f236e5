"""Real picture folders, small enough to be made for every test."""

from __future__ import annotations

import math
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from picture_folders import write_class_folders

from bdray.data import content


@pytest.fixture
def make_folders() -> Callable[..., Path]:
    return write_class_folders


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDRAY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _no_listing_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it took on a busy machine."""
    monkeypatch.setattr(content, "QUICK_SECONDS", math.inf)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address under which `tmp_path / "server"` is served over HTTP from this machine."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    # It keeps the proxies it was first made with, for all tests that come after.
    monkeypatch.setattr(urllib.request, "_opener", None)
    (tmp_path / "server").mkdir(exist_ok=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection goes to a port on which nothing listens."""
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture
def visible() -> Callable[[Path], list[str]]:
    """The names of all that lies below a folder, but for locks."""
    return lambda folder: sorted(path.name for path in folder.rglob("*") if not path.name.endswith(".lock"))
