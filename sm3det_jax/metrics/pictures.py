"""How alike two images are: PSNR and SSIM, in float64 numpy."""

import numpy as np

from data_pipelines.errors import UserError

SIGMA, RADIUS = 1.5, 5  # px; the window of 11 x 11 of the paper
K1, K2 = 0.01, 0.03


def peak_of(dtype) -> float:
  """The largest value of a type of whole numbers.

  Raises:
    UserError: floating point, whose range nobody knows.
  """
  if not np.issubdtype(dtype, np.integer):
    raise UserError(f'images of {np.dtype(dtype)} have no largest value: say the data range')
  return float(np.iinfo(dtype).max)


def psnr(truth: np.ndarray, found: np.ndarray, peak: float | None = None) -> float:
  """Peak signal-to-noise ratio over all pixels and bands, in dB; inf for equal images.

  Args:
    truth: [H, W, C].
    found: [H, W, C].
    peak: the data range; by default the largest value of `truth`'s type.
  """
  peak = peak_of(truth.dtype) if peak is None else peak
  error = np.mean((np.float64(truth) - np.float64(found)) ** 2)
  return float(10 * np.log10(peak**2 / error)) if error else float('inf')


def ssim(truth: np.ndarray, found: np.ndarray, peak: float | None = None) -> float:
  """Structural similarity (Wang et al. 2004): the mean over bands and whole windows, in -1..1.

  Args:
    truth: [H, W, C], at least 11 pixels a side.
    found: [H, W, C].
    peak: as for `psnr`.

  Raises:
    UserError: a smaller image.
  """
  if min(truth.shape[:2]) < 2 * RADIUS + 1:
    raise UserError(f'an image of {truth.shape[:2]}: SSIM needs {2 * RADIUS + 1} pixels a side')
  peak = peak_of(truth.dtype) if peak is None else peak
  a, b = np.float64(truth), np.float64(found)
  mean_a, mean_b = _blurred(a), _blurred(b)
  var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
  both = _blurred(a * b) - mean_a * mean_b
  c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
  light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  return float(np.mean(light * (2 * both + c2) / (var_a + var_b + c2)))


def _blurred(x):
  """Gaussian means over the windows that lie inside the image: [H - 10, W - 10, C]."""
  weights = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
  weights /= weights.sum()
  for axis in (0, 1):
    size = x.shape[axis] - 2 * RADIUS
    x = sum(w * np.take(x, range(i, i + size), axis) for i, w in enumerate(weights))
  return x
