"""What Ray's own pages say of the processes of trials."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ray._private import worker
from ray._private.state import state
from ray.core.generated.gcs_pb2 import ActorTableData

from bdray.cluster import ClusterJob, ClusterRun, ClusterSettings, Task
from bdray.condition import Condition
from bdray.store.storage import Storage

pytestmark = [pytest.mark.system, pytest.mark.long]

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
    """Looks at the table of actors, which the dashboard shows, as soon as a condition has ended."""

    def __init__(self) -> None:
        self.shown: set[str] = set()

    def started(self, condition_id: str) -> None: ...

    def ended(self, condition_id: str, status: str) -> None:
        rows = state._connect_and_get_accessor().get_actor_table(None, None)
        actors = [ActorTableData.FromString(row) for row in rows]
        self.shown |= {actor.repr_name for actor in actors if actor.class_name == "Condition"}

    def restarts(self, condition_id: str, cause: str) -> None: ...

    def lost(self, condition_id: str, cause: str, detail: str) -> None: ...


def test_actors_are_told_apart_by_their_conditions(tmp_path: Path) -> None:
    (plugins := tmp_path / "plugins").mkdir()
    (plugins / "waiting_work.py").write_text(WORK)
    (here := tmp_path / "here").mkdir()
    base = {"data": "digits", "model": "resnet8", "trigger": "patch"}
    conditions = [Condition.parse({**base, "poison": {"rate": rate}}) for rate in (0.1, 0.2, 0.3)]
    names = [f"rate={one.poison.rate}-s0" for one in conditions]
    sweep = Storage.open(tmp_path / "runs" / "named")
    job = ClusterJob(
        sweep=sweep,
        storage=sweep.parent,
        tasks=[Task(one.condition_id, "{}", (), label=name) for one, name in zip(conditions, names, strict=True)],
        sys_path=(*sys.path, str(plugins), str(Path(__file__).parents[2])),
        cwd=str(here),
        work="waiting_work:together",
    )
    looking = Looking()
    with ClusterRun(ClusterSettings(num_cpus=2, dashboard=False)) as cluster:
        assert cluster.run(job, looking)
        written = Path(worker._global_node.get_logs_dir_path()).glob("worker-*.out")
        logs = "".join(path.read_text() for path in written)
    assert looking.shown == {f"named from {name} on" for name in names[:2]}
    for name in names:
        assert f"{name} begins\n" in logs
        assert f"{name} finished\n" in logs
