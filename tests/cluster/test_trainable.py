"""What Ray's own pages say of the processes of trials."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ray.util.state import get_log, list_actors

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.condition import Condition
from bdray.store.storage import Storage
from bdray.store.sweep_folder import label_of

pytestmark = pytest.mark.system

WORK = """
from pathlib import Path
from tests.shared.waiting import until

def together(job, task):
    here = Path(job.cwd)
    (here / task.condition_id).touch()
    until(lambda: len(list(here.iterdir())) >= 2)
    return "finished"
"""


class Looking:
    """Looks at the list of actors as soon as a condition has ended, and at their logs when all have."""

    def __init__(self) -> None:
        self.shown: set[str] = set()
        self.ids: list[str] = []

    def started(self, condition_id: str) -> None: ...

    def ended(self, condition_id: str, status: str) -> None:
        actors = list_actors(filters=[("class_name", "=", "Condition")], detail=True)
        self.shown |= {actor.repr_name or "" for actor in actors}
        self.ids = [actor.actor_id for actor in actors]

    def restarts(self, condition_id: str, cause: str) -> None: ...

    def lost(self, condition_id: str, cause: str, detail: str) -> None: ...


def test_actors_are_told_apart_by_their_conditions(tmp_path: Path) -> None:
    (plugins := tmp_path / "plugins").mkdir()
    (plugins / "waiting_work.py").write_text(WORK)
    (here := tmp_path / "here").mkdir()
    base = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    conditions = [Condition.parse({**base, "poison": {"rate": rate}}) for rate in (0.1, 0.2, 0.3)]
    sweep = Storage.open(tmp_path / "runs" / "named")
    job = ClusterJob(
        sweep=sweep,
        storage=sweep.parent,
        tasks=[Task(one.condition_id, json.dumps(one.content()), ()) for one in conditions],
        sys_path=(*sys.path, str(plugins), str(Path(__file__).parents[2])),
        cwd=str(here),
        work="waiting_work:together",
    )
    looking = Looking()
    with ClusterRun(ClusterSettings(num_cpus=2)) as cluster:
        assert cluster.run(job, looking)
        logs = "".join(line for actor in looking.ids for line in get_log(actor_id=actor))
    names = [label_of(one) for one in conditions]
    assert looking.ids, "no actor was seen"
    assert looking.shown == {f"named from {name} on" for name in names[:2]}
    for name in names:
        assert f"{name} begins\n" in logs
        assert f"{name} finished\n" in logs
