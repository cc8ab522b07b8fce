import math

import numpy as np
import pytest
from scipy.stats import binomtest

from tunnel_lightning.runs.intervals import wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 10), (263, 500), (10, 10), (9999, 10_000)])
def test_equals_scipy(right, n):
    z = 1.959963984540054
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n, z) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(right / n, n)
    assert 0 <= low <= right / n <= high <= 1
    assert high - low > 0


def test_nan_and_no_images():
    low, high = wilson([0.5, math.nan, 0.5], [100, 100, 0])
    assert low[0] < 0.5 < high[0]
    assert np.isnan([*low[1:], *high[1:]]).all()
    assert np.isnan(wilson(math.nan, 10)).all()
