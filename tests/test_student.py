"""Student's t is SciPy's."""

from __future__ import annotations

import pytest
from scipy.special import stdtrit

from peftkit.student import two_sided_t


@pytest.mark.parametrize("freedom", [1, 1.01, 1.5, 2, 3, 4.7, 9, 20, 57.3, 200, 1e3, 1e5])
def test_it_is_exceeded_5_of_100_times(freedom: float) -> None:
    assert two_sided_t(freedom) == pytest.approx(float(stdtrit(freedom, 0.975)), rel=1e-9)
