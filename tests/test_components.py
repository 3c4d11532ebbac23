import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rs_biformer.components import components


def edges(pairs):
    return np.array(pairs, np.int64).reshape(-1, 2).T


def by_scipy(one, other, count):
    graph = coo_array((np.ones(len(one), bool), (one, other)), (count, count))
    return connected_components(graph, directed=False)


def test_parts_are_numbered_by_their_lowest_vertices():
    count, part = components(*edges([(5, 1), (3, 3), (4, 5), (0, 2)]), 6)
    assert (count, part.tolist()) == (3, [0, 1, 0, 2, 1, 1])


def test_without_edges_every_vertex_is_a_part():
    assert components(*edges([]), 3)[1].tolist() == [0, 1, 2]
    assert components(*edges([]), 0)[0] == 0


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 2.0])
def test_parts_are_those_of_scipy(density):
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 400, 20_000):
        one, other = rng.integers(0, count, (2, int(density * count)))
        parts, wanted = by_scipy(one, other, count)
        found, part = components(one, other, count)
        assert found == parts and len(np.unique(part * parts + wanted)) == parts


@pytest.mark.parametrize("order", ["up", "down", "mixed", "from both ends"])
def test_a_long_chain_is_one_part(order):
    count = 50_000
    places = {
        "up": np.arange(count),
        "down": np.arange(count)[::-1],
        "mixed": np.random.default_rng(1).permutation(count),
        "from both ends": np.argsort(np.minimum(np.arange(count), count - np.arange(count)), kind="stable"),
    }[order]
    found, part = components(places[:-1], places[1:], count)
    assert found == 1 and not part.any()
