"""What an autoscaler would add: asked by requests that wait, as trials would, and taken back when it has answered.

Ray keeps the kinds of node of its own autoscaler (`ray up`, KubeRay) where no driver sees them; what it can never place
the autoscaler itself says. Where there is none, or an old one, nothing is added.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import placement_group, remove_placement_group

from bdray.cluster.node_resources import NodeResources

ANSWER_S = 60.0
"""How long an autoscaler may take to look at what waits; it looks every few seconds, and less often while it adds."""

_LOOK_S = 0.5


@contextmanager
def waiting(shares: Sequence[NodeResources]) -> Iterator[None]:
    """Within this block something waits for each of these, so that an autoscaler adds nodes for it."""
    groups = [placement_group([_bundle(share)]) for share in shares]
    try:
        yield
    finally:
        for group in groups:
            remove_placement_group(group)


def has_autoscaler() -> bool:
    """Whether one has ever said anything."""
    status = _status()
    return status is not None and status.autoscaling_state.autoscaler_state_version > 0


def added(shares: Sequence[NodeResources]) -> list[NodeResources]:
    """Those of `shares` for which an autoscaler has or adds a node; all where it does not answer in time."""
    if not shares or not has_autoscaler():
        return []
    with waiting(shares):
        refused = _refused()
    return [share for share in shares if _bundle(share) not in refused]


def _refused() -> list[Mapping[str, float]]:
    """What the autoscaler can place nowhere of what waits now."""
    status, deadline = _status(), time.monotonic() + ANSWER_S
    # A look at the cluster counts its states, so one that it has seen later has what waits now.
    now = status.cluster_resource_state.cluster_resource_state_version if status else 0
    while status is None or status.autoscaling_state.last_seen_cluster_resource_state_version <= now:
        if time.monotonic() > deadline:
            return []
        time.sleep(_LOOK_S)
        status = _status()
    gangs = status.autoscaling_state.infeasible_gang_resource_requests
    asked = [request for gang in gangs for request in gang.requests]
    asked += [one for gang in gangs for part in gang.bundle_selectors for one in part.resource_requests]
    return [dict(request.resources_bundle) for request in asked]


def _status() -> Any:
    """What the cluster and its autoscaler say; None where they say nothing."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    with suppress(Exception):
        # Ray raises plain exceptions here.
        reply = GetClusterStatusReply()
        reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
        return reply
    return None


def _bundle(share: NodeResources) -> dict[str, float]:
    return {name: float(amount) for name, amount in {"CPU": share.cpu, "GPU": share.gpu}.items() if amount}
