"""Search spaces: what their YAML may say, and which conditions it comes to. Plans without torch and without Ray.

source (text with line numbers) -> grammar (checked pieces) -> expansion (conditions) -> load (the search space)
"""

from bdray.space.expansion import pairwise_subset
from bdray.space.grammar import Resources
from bdray.space.load import SearchSpace, load_plugins_of, load_space, parse_seed_list

__all__ = ["Resources", "SearchSpace", "load_plugins_of", "load_space", "pairwise_subset", "parse_seed_list"]
