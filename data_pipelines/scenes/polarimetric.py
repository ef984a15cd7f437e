"""Complex radar images of four polarisations, of the scenes that `sar` draws.

HH and VV of a cell are correlated circular normal numbers, HV and VH one and the same (a monostatic
radar is reciprocal) and weaker: by much over the sea, by less over land, whose volume depolarises.
Single scatterers have HH and VV of one phase or of the opposite one, as an odd or even number of
bounces leaves it. Noise is apart in all four.
"""

import cv2
import numpy as np

from data_pipelines.scenes import sar
from data_pipelines.scenes.sar import SEA

BANDS = ('HH', 'HV', 'VH', 'VV')
CORRELATION = 0.6  # of HH and VV
CROSS = (0.03, 0.25)  # HV's share of HH's intensity: sea, land
SHARE = 0.05  # of the amplitude of a single scatterer in HV
NOISE = 0.002  # intensity
LARGEST = 3.0  # a receiver saturates there; mean power of all four together is about 1


def scene(rng: np.random.Generator, size: int) -> np.ndarray:
  """Draws one picture: complex64 [size, size, 4] of `BANDS`, of about unit power."""
  power, echo, _ = sar.reflectivity(rng, size)
  response = sar.impulse_response(rng)
  unit = response / np.sqrt((response**2).sum())
  white = [_white(rng, size) for _ in range(3)]
  rough = np.clip((np.log(power) - np.log(SEA)) / np.log(10), 0, 1)  # 0: smooth; 1: ten times sea
  cross = CROSS[0] + (CROSS[1] - CROSS[0]) * rough
  same = np.sqrt(power)
  hh = same * white[0]
  vv = same * rng.uniform(0.8, 1.2) * (CORRELATION * white[0] + _rest(CORRELATION) * white[1])
  hv = same * np.sqrt(cross) * white[2]
  bounces = np.where(rng.random(echo.shape) < 0.5, 1, -1)
  steady = [echo, SHARE * echo, SHARE * echo, bounces * echo]
  bands = []
  for field, strong in zip((hh, hv, hv, vv), steady, strict=True):
    focused = _filtered(field, unit, cv2.BORDER_REFLECT)
    phases = np.exp(2j * np.pi * rng.random()).astype(np.complex64)
    focused += phases * _filtered(strong.astype(np.complex64), response, cv2.BORDER_CONSTANT)
    bands.append(focused + np.sqrt(NOISE) * _white(rng, size))
  image = np.stack(bands, -1)
  image /= np.sqrt(np.median((np.abs(image) ** 2).sum(-1)) / np.log(2))
  channels = image.astype(np.complex64).view(np.float32)
  return np.clip(channels, -LARGEST, LARGEST).view(np.complex64)


def _white(rng, size):
  """Circular normal numbers of unit power."""
  pairs = rng.standard_normal((size, size, 2), np.float32)
  return np.sqrt(np.float32(0.5)) * pairs.view(np.complex64)[..., 0]


def _rest(correlation):
  return np.sqrt(1 - correlation**2)


def _filtered(field, kernel, border):
  parts = (np.ascontiguousarray(part, np.float32) for part in (field.real, field.imag))
  real, imaginary = (cv2.sepFilter2D(p, -1, kernel, kernel, borderType=border) for p in parts)
  return real + np.complex64(1j) * imaginary
