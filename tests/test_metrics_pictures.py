"""PSNR and SSIM: values by hand, and skimage's where it is installed."""

import math

import numpy as np
import pytest

from sm3det_jax.metrics import pictures


def pair(seed, shape=(40, 33, 3), noise=12):
  rng = np.random.default_rng(seed)
  smooth = 120 + 80 * np.sin(np.arange(shape[0])[:, None, None] / 7) * np.ones(shape)
  truth = np.uint8(np.clip(smooth + rng.normal(0, 20, shape), 0, 255))
  return truth, np.uint8(np.clip(truth + rng.normal(0, noise, shape), 0, 255))


def test_values_by_hand():
  truth = np.full((16, 20, 2), 100, np.uint8)
  assert pictures.psnr(truth, truth + 5) == pytest.approx(20 * math.log10(255 / 5))
  assert pictures.psnr(truth, truth) == math.inf
  assert pictures.psnr(np.uint16(truth), np.uint16(truth) + 5) == pytest.approx(
    20 * math.log10(65535 / 5)
  )
  assert pictures.psnr(truth / 255, (truth + 5) / 255, peak=1.0) == pytest.approx(
    20 * math.log10(255 / 5)
  )
  # flat images have no variance: the means alone count
  c1 = (0.01 * 255) ** 2
  expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
  assert pictures.ssim(truth, truth + 50) == pytest.approx(expected)
  noisy, _ = pair(0)
  assert pictures.ssim(noisy, noisy) == pytest.approx(1)
  assert pictures.ssim(noisy, 255 - noisy) < 0


def test_ssim_by_a_plain_loop():
  truth, found = pair(1, (13, 12, 1))
  x, y = np.mgrid[-5:6, -5:6]
  weights = np.exp(-(x**2 + y**2) / 4.5)
  weights /= weights.sum()
  values = []
  for i in range(3):
    for j in range(2):
      a, b = (np.float64(z[i : i + 11, j : j + 11, 0]) for z in (truth, found))
      mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
      var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
      both = (weights * (a - mean_a) * (b - mean_b)).sum()
      c1, c2 = 2.55**2, 7.65**2
      values.append(
        (2 * mean_a * mean_b + c1) * (2 * both + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
      )  # fmt: skip
  assert pictures.ssim(truth, found) == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.parametrize('seed', range(3))
def test_both_agree_with_skimage(seed):
  metrics = pytest.importorskip('skimage.metrics')
  truth, found = pair(seed)
  assert pictures.psnr(truth, found) == pytest.approx(metrics.peak_signal_noise_ratio(truth, found))
  expected = metrics.structural_similarity(
    truth, found, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
  )
  assert pictures.ssim(truth, found) == pytest.approx(expected, abs=1e-7)


def test_what_has_no_answer_is_an_error():
  with pytest.raises(ValueError, match='float32 have no largest value'):
    pictures.psnr(np.zeros((9, 9, 1), np.float32), np.zeros((9, 9, 1), np.float32))
  with pytest.raises(ValueError, match='SSIM needs 11'):
    pictures.ssim(np.zeros((9, 40, 1), np.uint8), np.zeros((9, 40, 1), np.uint8))
