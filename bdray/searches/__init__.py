"""Search methods: which conditions of a search space are run, one method a file."""

from bdray.searches.base import SEARCHES, Asker, Listed, Planned, SearchMethod
from bdray.searches.domain import SearchDomain

__all__ = ["SEARCHES", "Asker", "Listed", "Planned", "SearchDomain", "SearchMethod"]
