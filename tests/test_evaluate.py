"""The evaluation's statistics against numpy's and against closed forms."""

import numpy as np
import pytest

from toy import stats


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_correlation_pooled_over_clips_is_that_of_all_their_frames(rng):
    x, y = rng.normal(3, 2, (2, 6, 50))
    y += 0.5 * x
    sums = np.stack([stats.moments(a, b) for a, b in zip(x, y)])
    expected = np.corrcoef(x.ravel(), y.ravel())[0, 1]
    assert stats.pooled_correlation(sums.sum(0)) == pytest.approx(expected, abs=1e-12)
    assert stats.correlation(x[0], y[0]) == pytest.approx(np.corrcoef(x[0], y[0])[0, 1])
    still = np.ones(50)
    assert stats.correlation(still, y[0]) == 0 == stats.pooled_correlation(
        stats.moments(still, y[0]))
    assert np.isnan(stats.correlation(x[0], still))


def test_bootstrap_of_a_mean_has_its_standard_error(rng):
    values = rng.normal(5, 2, 400)
    value, low, high = stats.bootstrap(stats.counted(values))
    error = values.std() / np.sqrt(400)
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(value - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.1 * error)


def test_bootstrap_of_a_correlation_follows_fishers_z(rng):
    x, noise = rng.normal(size=(2, 300, 1))          # each clip one frame: all are independent
    sums = np.stack([stats.moments(a, b) for a, b in zip(x, 0.8 * x + 0.6 * noise)])
    value, low, high = stats.bootstrap(sums, stats.pooled_correlation)
    reach = 1.96 / np.sqrt(297)
    expected = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
    assert (low, high) == pytest.approx(tuple(expected), abs=0.015)


def test_clips_without_a_value_do_not_count():
    value, low, high = stats.bootstrap(stats.counted([1.0, np.nan, 2.0, np.nan]))
    assert value == 1.5 and 1 <= low <= high <= 2
    hits_of_frames = np.array([[3.0, 4.0], [0.0, 6.0]])
    assert stats.share(hits_of_frames.sum(0)) == 0.3


def test_wilsons_interval():
    value, low, high = stats.wilson(stats.counted([1.0] * 40))
    assert value == 1 and high == pytest.approx(1)
    assert low == pytest.approx(40 / (40 + 1.96**2))
    value, low, high = stats.wilson(stats.counted([1.0, 0.0] * 20))
    assert value == 0.5 == pytest.approx((low + high) / 2)


@pytest.mark.parametrize("late", [-3, 0, 5])
def test_lag_is_how_much_later_the_first_curve_is(rng, late):
    y = np.convolve(rng.normal(size=140), np.ones(5) / 5, "valid")
    x = np.roll(y, late) + 0.05 * rng.normal(size=len(y))
    assert stats.best_lag(x[10:110], y[10:110]) == late
    assert np.isnan(stats.best_lag(np.zeros(100), y[10:110]))
