"""What is taken for a geometry."""

import numpy as np
import pytest
import shapely

from rs_biformer.raster.layer import parsed

SQUARE = shapely.box(0, 0, 1, 1)


@pytest.mark.parametrize("odd", [1e308, -1e200, np.inf, np.nan])
def test_a_geometry_with_a_corner_nowhere_is_none(odd):
    with np.errstate(all="ignore"):
        shapes = [SQUARE, shapely.polygons([[0, 0], [1, 0], [odd, 1], [0, 0]]), None, shapely.box(-20, 5, 8e6, 9e6)]
    found = parsed(shapely.to_wkb(np.array(shapes, object)))
    assert list(found) == [SQUARE, None, None, shapes[3]]
