"""Lists of layers, as options of regularizers."""

import pytest

from bdray.errors import ComponentError
from bdray.regularizers import REGULARIZERS
from bdray.regularizers.layers import check_distinct, check_points


def test_a_layer_is_named_once() -> None:
    assert check_distinct(("a", "b")) == ("a", "b")
    with pytest.raises(ValueError, match="names a layer twice"):
        check_distinct(("a", "b", "a"))
    with pytest.raises(ComponentError, match="names a layer twice"):
        REGULARIZERS.build({"name": "manifold_mixup", "layers": ["stage1", "stage1"]})


def test_a_layer_that_the_network_has_not() -> None:
    check_points(("input", "stage1"), ("stage1", "stage2"), ("input",))
    check_points(("anything",), None, ())
    with pytest.raises(ComponentError, match=r"no layer 'stage9'; did you mean 'stage"):
        check_points(("stage9",), ("stage1", "stage2"), ("input",))
