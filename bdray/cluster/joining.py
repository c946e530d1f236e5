"""Nodes that join while a sweep runs: each is checked as those were that were there before; trials keep off any that
differs."""

from __future__ import annotations

import logging
import threading
from typing import Self

import ray

from bdray.cluster.failures import unlike_node
from bdray.cluster.job import ClusterJob, NodeRequirements
from bdray.cluster.nodes import Node, able_nodes, node_of_process, unlike, unprepared
from bdray.errors import StorageError

POLL_S = 5.0
"""How often it is looked who is there."""


class Joining:
    """Asks nodes that were not there before, from a thread; a context manager.

    Two answers count: the node's own to the driver, and that of a trial's process, which may come there earlier
    (`node_check.check_this_node`).

    Args:
        job: what workers set themselves up with; its tasks are not needed.
        requirements: what nodes are compared with.
    """

    def __init__(self, job: ClusterJob, requirements: NodeRequirements) -> None:
        self._job, self._requirements = job, requirements
        self._known = set(requirements.checked)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._asked: set[str] = set()
        self._avoided: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="bdray-joining", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        # Not waited for while a node may take minutes to answer.
        self._thread.join(POLL_S)

    def avoided(self) -> frozenset[str]:
        """Ids of the nodes that trials are kept off."""
        with self._lock:
            return frozenset(self._avoided)

    def excuses(self, said: str) -> bool:
        """Whether a lost process is the fault of its node, not of its condition, by what Ray says of it: the node is
        not alike, or it is not known yet whether it is (it may not even be able to import bdray)."""
        if found := unlike_node(said):
            self._avoid(*found)
            return True
        node_id = node_of_process(said)
        with self._lock:
            # Where Ray does not tell, it may have been one that is being asked.
            return bool(self._asked) if node_id is None else node_id not in self._known - self._avoided

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            try:
                self._ask([node for node in able_nodes() if node.node_id not in self._known])
            except (ray.exceptions.RayError, StorageError) as error:
                # The next look may do better; what is wrong with the storage others say.
                logging.getLogger("bdray").debug("nodes that join cannot be asked: %s", error)

    def _ask(self, new: list[Node]) -> None:
        if not new:
            return
        with self._lock:
            self._asked = {node.node_id for node in new}
        try:
            found = unlike(self._job, new, self._requirements.installation)
            good = [node for node, problems in found if not problems]
            found += unprepared(self._job, good, self._requirements.contents)
            for node, problems in found:
                if problems:
                    self._avoid(node.node_id, "; ".join(problems), node.name)
            with self._lock:
                self._known |= {node.node_id for node in new}
        finally:
            with self._lock:
                self._asked = set()

    def _avoid(self, node_id: str, problem: str, name: str = "") -> None:
        """One sentence a node, whichever task sees it first."""
        with self._lock:
            is_news = node_id not in self._avoided
            self._avoided.add(node_id)
        if is_news:
            said = f"{name or f'node {node_id[:6]}'} has joined and gets no trials: {problem}"
            logging.getLogger("bdray").warning(said)
