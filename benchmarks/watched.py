"""A running sweep as Prometheus sees it (Linux, root, the tools of the tests, Debian's Prometheus).

The services and nodes of `benchmarks.cluster` and a Prometheus with `docker/prometheus.yml`, which shares the head's
`/tmp/ray` as in `docker/compose.yaml`. While a sweep runs, every query of Grafana's dashboard is asked again and again,
and what Prometheus knows is compared with the plan and the records. Grafana itself is not started: it is in none of the
registries that can be reached here.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdray.cluster.gauges import METRICS
from bdray.condition import Condition
from bdray.space import SearchSpace, load_space
from benchmarks.cluster import COMMANDS, DRIVER, HEAD, NAMES, RUNS, Rehearsal, space_of
from benchmarks.hosts import Host, network, why_not
from benchmarks.services import ROOT, PostgreSQL, make_secrets, takes_connections, until

PROMETHEUS = "prometheus"
LIMIT_S, POLL_S = 1800.0, 5.0
NEAR = 1e-3
_ASK = """
import json, sys, urllib.parse, urllib.request
answers = {}
for query in json.loads(sys.argv[1]):
    url = "http://prometheus:9090/api/v1/query?" + urllib.parse.urlencode({"query": query})
    answers[query] = json.load(urllib.request.urlopen(url, timeout=20))["data"]["result"]
print(json.dumps(answers))
"""

Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Series by query, as Prometheus' HTTP interface gives them."""


def dashboard_queries() -> dict[str, str]:
    """The queries of Grafana's dashboard by panel, with all sweeps chosen."""
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "bdray.json").read_text())
    panels = ((panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"])
    return {title: query.replace("$sweep", ".*") for title, query in panels}


class Watch:
    """What Prometheus said, compared with the plan."""

    def __init__(self, host: Host, space: SearchSpace, conditions: Sequence[Condition]) -> None:
        self._host, self._space = host, space
        self._conditions = {condition.condition_id: condition for condition in conditions}
        self.queries = dashboard_queries()
        self.most: dict[str, int] = dict.fromkeys(self.queries, 0)
        """Series of a panel at once at most."""
        self.seen: dict[str, set[str]] = {name: set() for name in METRICS}
        """Conditions that each metric was seen of."""
        self.wrong: set[str] = set()

    def look(self) -> None:
        """Ask everything once."""
        answers = self.ask(*self.queries.values(), *(f"ray_{name}" for name in METRICS))
        for title, query in self.queries.items():
            self.most[title] = max(self.most[title], len(answers.get(query, ())))
        for name in METRICS:
            for series in answers.get(f"ray_{name}", ()):
                self._check(name, series["metric"], float(series["value"][1]))

    def ask(self, *queries: str) -> Answers:
        """Nothing while Prometheus does not answer."""
        return dict(json.loads(self._host.run(_ASK, json.dumps(queries), environment={}) or "{}"))

    def _check(self, name: str, labels: Mapping[str, str], value: float) -> None:
        if labels["sweep"] != "hosts":
            self.wrong.add(f"{name} of sweep {labels['sweep']}")
        if name == "bdray_conditions":
            self.seen[name].add(labels["state"])
            return
        condition = self._conditions[labels["condition"]]
        self.seen[name].add(condition.condition_id)
        share = self._space.resources_for(condition)
        right = {
            "bdray_epoch": 0 <= value <= condition.train.epochs and value == int(value),
            "bdray_gpu_share": abs(value - float(share.gpu)) < NEAR,
            "bdray_cpu_share": abs(value - float(share.cpu)) < NEAR,
        }.get(name, value > 0)
        if not right:
            self.wrong.add(f"{name} of {condition.condition_id} is {value}")

    def table(self) -> str:
        """Markdown: a row a panel, then a row a metric."""
        lines = ["| panel | query | series at once at most |", "|---|---|---|"]
        lines += [f"| {title} | `{query}` | {self.most[title]} |" for title, query in self.queries.items()]
        lines += ["", "| metric | seen of |", "|---|---|"]
        total = len(self._conditions)
        for name, seen in self.seen.items():
            of = ", ".join(sorted(seen)) if name == "bdray_conditions" else f"{len(seen)} of {total} conditions"
            lines.append(f"| `ray_{name}` | {of} |")
        return "\n".join(lines)


def start_prometheus(hosts: Mapping[str, Host], folder: Path) -> None:
    """By its image's own command line, with the configuration that `docker/compose.yaml` mounts."""
    config, data = ROOT / "docker" / "prometheus.yml", folder / "prometheus"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}"]
    hosts[PROMETHEUS].supervise(*command, environment={})
    head = hosts[HEAD]
    until("Prometheus", lambda: takes_connections(head, "prometheus:9090", {}), folder)


def watched(folder: Path) -> tuple[Watch, list[str]]:
    """The sweep from its start to its end; what was seen, and what is wrong with it."""
    space = load_space(folder / RUNS / "hosts.yaml")
    with network(folder, (*NAMES, PROMETHEUS), {PROMETHEUS: HEAD}) as hosts:
        rehearsal = Rehearsal(hosts, folder, s3=False)
        rehearsal.start()
        start_prometheus(hosts, folder)
        watch, began, tries = Watch(hosts[HEAD], space, space.conditions()), time.monotonic(), 1
        driver = rehearsal.drive()
        while driver.poll() != 0 and time.monotonic() - began < LIMIT_S:
            watch.look()
            time.sleep(POLL_S)
            if driver.poll() not in (None, 0) and tries < COMMANDS:
                driver, tries = rehearsal.drive(), tries + 1
        if driver.poll() is None:
            hosts[DRIVER].kill()
        total, problems = len(space.conditions()), sorted(watch.wrong)
        last = watch.ask('max(last_over_time(ray_bdray_conditions{state="finished"}[1h]))', "sum(up)", "count(up)")
        finished, up, targets = (float(answer[0]["value"][1]) if answer else 0.0 for answer in last.values())
        if driver.wait() != 0:
            problems.append(f"the sweep ended with {driver.returncode}")
        if finished != total:
            problems.append(f"{finished:.0f} of {total} conditions are finished, says Prometheus")
        problems += [f"nothing was seen in {title}" for title, most in watch.most.items() if not most]
        print(f"{time.monotonic() - began:.0f} s; Prometheus scrapes {up:.0f} of {targets:.0f} nodes", flush=True)
    return watch, problems


def main() -> int:
    """The status is 1 when Prometheus knows anything else than the plan and the records."""
    missing = "" if shutil.which(PROMETHEUS) else "Prometheus is not installed (Debian: apt-get install prometheus)"
    if why := why_not() or PostgreSQL.why_not() or missing:
        print(f"skipped: {why}")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="bdray-hosts-"))
    folder.chmod(0o711)
    make_secrets(folder)
    (folder / RUNS).mkdir()
    (folder / RUNS / "hosts.yaml").write_text(space_of(epochs=12, short=True))
    watch, problems = watched(folder)
    print(watch.table())
    for problem in problems:
        print(f"wrong: {problem}")
    if not problems:
        shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
