"""Search methods: which conditions of a search space are run, one method a file."""

from bdray.searches.base import SEARCHES, Asker, Listed, Planned, SearchMethod
from bdray.searches.ground import Ground

__all__ = ["SEARCHES", "Asker", "Ground", "Listed", "Planned", "SearchMethod"]
