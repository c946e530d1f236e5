"""Triggers: pure functions that stamp uint8 images, one family a file."""

from bdray.triggers.base import TRIGGERS, Trigger, build_trigger, unchanged

__all__ = ["TRIGGERS", "Trigger", "build_trigger", "unchanged"]
