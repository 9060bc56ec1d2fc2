"""Mixup, cutmix and erasing against their formulae, one image at a time, and their distributions."""

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Generator

from scalesearch.training.mixing import cutmix_boxes, draw_beta, erase, mix, mixup_shares


def batch(count, side, seed=0):
    generator = Generator().manual_seed(seed)
    images = torch.randn(count, 3, side, side, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.randint(0, 10, (count,), generator=generator)


@pytest.mark.parametrize("alpha", [0.02, 0.2, 1.0, 4.0])
def test_beta_values(alpha):
    values = draw_beta(alpha, 20_000, Generator().manual_seed(0)).numpy()
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
    inner = values[(values > 1e-12) & (values < 1 - 1e-12)]  # outside, doubles near 1 are too coarse for the comparison
    low, high = beta.cdf([1e-12, 1 - 1e-12], alpha, alpha)
    assert kstest(inner, lambda x: (beta.cdf(x, alpha, alpha) - low) / (high - low)).pvalue > 1e-3
    assert abs((values <= 1e-12).mean() - low) < 3.5 * (low * (1 - low) / len(values)) ** 0.5 + 1e-9


def test_the_larger_share_stays():
    shares = mixup_shares(0.2, 20_000, Generator().manual_seed(0)).numpy()
    assert shares.min() >= 0.5 and shares.dtype == np.float32
    grid = np.linspace(0.5, 0.999, 50)
    expected = beta.cdf(grid, 0.2, 0.2) - beta.cdf(1 - grid, 0.2, 0.2)
    assert np.abs((shares[:, None] <= grid).mean(0) - expected).max() < 2 / len(shares) ** 0.5


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_boxes_are_squares_cut_off_at_the_border(alpha):
    """Against google/automl's cutmix_mask written with numpy: both ends at most half a side from a random pixel."""
    side, rng = 37, np.random.default_rng(0)
    ours = cutmix_boxes(alpha, 30_000, side, Generator().manual_seed(0)).numpy()
    middle = rng.integers(0, side, (30_000, 2))
    reach = (np.sqrt(1 - rng.beta(alpha, alpha, 30_000)) * side).astype(int)[:, None] // 2
    first, last = np.clip(middle - reach, 0, side), np.clip(middle + reach, 0, side)
    theirs = np.concatenate([first, last - first], 1)
    assert (ours >= 0).all() and (ours[:, :2] + ours[:, 2:] <= side).all()
    for column in range(4):
        counts = [np.bincount(values[:, column], minlength=side + 1) / 30_000 for values in (ours, theirs)]
        assert np.abs(np.cumsum(counts[0]) - np.cumsum(counts[1])).max() < 1.95 * (2 / 30_000) ** 0.5  # Smirnov, 0.1 %
    assert abs((ours[:, 2] * ours[:, 3]).mean() / (theirs[:, 2] * theirs[:, 3]).mean() - 1) < 0.05


@pytest.mark.parametrize("count", [8, 7, 2, 1])
@pytest.mark.parametrize(("up", "cut"), [(True, False), (False, True), (True, True)])
def test_mixtures_one_image_at_a_time(count, up, cut):
    side = 9
    images, labels = batch(count, side)
    original = images.clone()
    shares = mixup_shares(1.0, count, Generator().manual_seed(1)) if up else None
    boxes = cutmix_boxes(1.0, count, side, Generator().manual_seed(2)) if cut else None
    mixed, partners, weights = mix(images, labels, shares, boxes)
    half = count // 2 if up and cut else count if up else 0
    for i in range(count):
        partner = half - 1 - i if i < half else half + count - 1 - i
        expected = original[i].clone()
        if i < half:
            share = shares[i].item()
            expected = share * original[i] + (1 - share) * original[partner]
        else:
            top, left, height, width = boxes[i].tolist()
            expected[:, top:top + height, left:left + width] = original[partner, :, top:top + height, left:left + width]
            share = 1 - height * width / side**2
        assert torch.allclose(mixed[i], expected, atol=1e-6)
        assert partners[i] == labels[partner] and weights[i].item() == pytest.approx(share, abs=1e-6)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_erased_pixels_are_zero_and_the_others_as_they_were():
    images, _ = batch(3, 8)
    boxes = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [5, 0, 3, 8]])
    expected = images.clone()
    expected[0, :, 1:4, 2:6] = 0
    expected[2, :, 5:8, 0:8] = 0
    assert torch.equal(erase(images, boxes), expected)
