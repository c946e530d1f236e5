"""Whether trials would come to the same on this node as on those that were checked before the sweep began."""

from __future__ import annotations

import json
from collections.abc import Sequence

import ray

from bdray.cluster.job import ClusterJob
from bdray.condition import Condition
from bdray.errors import BdrayError
from bdray.inventory import Installation
from bdray.store.file_names import SPACE
from bdray.store.storage import Storage


class UnlikeNodeError(BdrayError):
    """Trials are kept off this node. `failures.unlike_node` reads it out of what Ray says of the lost process."""

    def __init__(self, node_id: str, problems: Sequence[str]) -> None:
        super().__init__(f"node {node_id} is not alike: {'; '.join(problems)}")


def check_this_node(job: ClusterJob) -> None:
    """For a process on a node that joined while the sweep ran: trials may come to it before the driver has asked it.

    Raises:
        UnlikeNodeError: its code, plugins, versions, data or view of the storage are not as they must be.
    """
    node_id = ray.get_runtime_context().get_node_id()
    if job.requirements is None or node_id in job.requirements.checked:
        return
    problems = installation_problems(Installation.here(job.plugins), job.requirements.installation)
    if not job.sweep.exists(SPACE):
        problems.append(unshared(job.sweep))
    if problems := problems or data_problems(job, job.requirements.contents):
        raise UnlikeNodeError(node_id, problems)


def installation_problems(theirs: Installation, mine: Installation) -> list[str]:
    """What differs, in one part of a sentence."""
    differing = theirs.differences(mine)
    return [f"unlike the driver's, {', '.join(differing)}"] if differing else []


def unshared(sweep: Storage) -> str:
    """What is wrong with a node that has another folder in the storage's place."""
    return f"it does not see the driver's files in {sweep.uri}: the storage must be a folder that all nodes share"


def data_problems(job: ClusterJob, contents: Sequence[str]) -> list[str]:
    """Fetches and decodes the data sets of these conditions here; what is wrong with them."""
    problems = []
    for content in contents:
        condition, cache = Condition.parse(json.loads(content)), job.trial_options.get("cache")
        try:
            condition.data.prepare(cache)
            condition.clean.prepare(condition.data, cache)
        except BdrayError as error:
            problems.append(f"data set {condition.data.name}: {error}")
    return problems


def contents_of(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """One condition as JSON text for each data set and folder of clean pictures."""
    one_each = {(condition.data, condition.clean.root): condition for condition in conditions}
    return tuple(json.dumps(condition.content()) for condition in one_each.values())
