"""The page in a real browser, where there is one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import HANG_S

from bdray.record import TrialRecord
from bdray.report.page import SweepDescription, make_report
from benchmarks.browser import CHROMIUM, Browser, complaints_of

pytestmark = pytest.mark.system
MakeRecord = Callable[..., TrialRecord]

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --enable-logging=stderr""".split()  # noqa: SIM905 - as they are typed

# Asked of the page's own script by what a reader would do: type words, click on a head twice.
READER = """
const rows = () => [...document.getElementById("table").tBodies[0].rows];
const filter = document.getElementById("filter");
filter.value = "blend";
filter.dispatchEvent(new Event("input"));
const filtered = rows().filter((row) => !row.hidden).length;
filter.value = "";
filter.dispatchEvent(new Event("input"));
const head = [...document.querySelectorAll("#table thead th")].find((th) => th.textContent === "ASR before");
const column = head.cellIndex;
const rates = () => rows().map((row) => row.cells[column].dataset.value).join(" ");
head.click();
const up = rates();
head.click();
document.title = [filtered, document.getElementById("count").textContent, up, rates()].join("|");
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_table_is_filtered_and_sorted_and_nothing_is_complained_about(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    rates = {"patch": 0.5, "blend": 0.9, "line": 0.25}
    records = [make_record((rate, 0.1), trigger=trigger) for trigger, rate in rates.items()]
    html = make_report(records, SweepDescription("demo")).html
    # The policy lets only the page's own script run, so the reader's takes its place in a page without policy.
    page = tmp_path / "page.html"
    policy = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
    page.write_text(policy.sub("", html).replace("</body>", f"<script>{READER}</script></body>"), encoding="utf-8")
    assert _opened(page, tmp_path)[0] == "1|3 of 3|0.25 0.5 0.9|0.9 0.5 0.25"

    page.write_text(html, encoding="utf-8")
    title, complaints = _opened(page, tmp_path)
    assert title == "demo – bdray report"
    assert complaints == []
    page.write_text(html.replace("</body>", "<script>document.title = 'run'</script></body>"), encoding="utf-8")
    title, complaints = _opened(page, tmp_path)
    assert title == "demo – bdray report", "a script that is not the page's own"
    assert len(complaints) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_of_a_running_sweep_loads_itself_again(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdray.report.page.AGAIN_S", 2)
    records, path = [make_record(seed=seed) for seed in range(2)], tmp_path / "page.html"

    def write(count: int, *, is_running: bool) -> None:
        described = SweepDescription("demo", planned=2, is_running=is_running)
        path.write_text(make_report(records[:count], described).html, encoding="utf-8")

    write(1, is_running=True)
    with Browser() as browser:
        page = browser.open(path.as_uri(), width=1000, height=800)
        page.wait_for_text("1 recorded of 2 planned", "Still running")
        write(2, is_running=False)
        page.wait_for_text("2 recorded of 2 planned")
        assert "Still running" not in page.run("document.body.innerText")
        browser.hear(3)
        assert page.run("performance.now()") > 2500, "the last page stays"
        assert complaints_of(page.seen) == []


FRAME = "document.querySelector('#overview .wide')"
FADED = f"getComputedStyle({FRAME}).maskImage !== 'none'"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_heat_map_wider_than_the_page_scrolls_in_its_frame() -> None:
    """Eighteen columns of the kept page: all are seen on a desk, and on a telephone it shows that there are more."""
    kept = Path(__file__).parents[2] / "sweeps" / "axes-cifar10" / "report.html"
    with Browser() as browser:
        desk = browser.open(kept.as_uri(), width=1400, height=900)
        desk.wait_for("document.readyState === 'complete'")
        assert desk.run(f"{FRAME}.scrollWidth <= {FRAME}.clientWidth")
        assert not desk.run(FADED)
        telephone = browser.open(kept.as_uri(), width=400, height=900)
        telephone.wait_for("document.readyState === 'complete'")
        assert telephone.run("document.documentElement.scrollWidth") == 400, "the page itself does not scroll"
        assert telephone.run(f"{FRAME}.scrollWidth > {FRAME}.clientWidth")
        telephone.wait_for(FADED)
        telephone.run(f"{FRAME}.scrollLeft = {FRAME}.scrollWidth")
        telephone.wait_for(f"!({FADED})")
        assert telephone.run(f"{FRAME}.querySelector('tbody th').getBoundingClientRect().left") >= 0, "rows keep names"


def _opened(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The page's title, once its scripts have run, and what the console says."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    return title[1], [line for line in done.stderr.splitlines() if "CONSOLE" in line]
