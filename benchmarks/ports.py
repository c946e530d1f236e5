"""Ports on loopback for servers of one's own."""

from __future__ import annotations

from socket import socket


def free_port() -> int:
    """One that nobody listens at just now."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
