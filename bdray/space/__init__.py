"""Search spaces: what their YAML may say, and which conditions it comes to. Plans without torch and without Ray.

source (text with line numbers) -> axes, resources, overrides -> grammar (all checked pieces) -> building, expansion
(conditions) -> load (the search space) -> plan
"""

from bdray.space.expansion import pairwise_subset
from bdray.space.load import SearchSpace, load_plugins_of, load_space
from bdray.space.overrides import parse_seed_list
from bdray.space.resources import Resources

__all__ = ["Resources", "SearchSpace", "load_plugins_of", "load_space", "pairwise_subset", "parse_seed_list"]
