"""Multispectral images: blue, green, red, near infrared in 16 bits, of the scenes of `optical`.

Plants reflect near infrared strongly and water hardly at all; of all else it is about as bright as
red. Haze lifts blue most. Sensors have 10 to 12 significant bits, and so have these.
"""

import cv2
import numpy as np

from data_pipelines.scenes import optical

BANDS = ('blue', 'green', 'red', 'near infrared')
TOP = 2047  # counts, of 11 bits
GAIN = 4.5  # counts of a step of the drawn 8-bit picture
HAZE = (110, 70, 45, 15)  # counts, of each band


def scene(rng: np.random.Generator, size: int) -> np.ndarray:
  """Draws one picture: uint16 [size, size, 4] of `BANDS`."""
  image, _ = optical.scene(rng, size)
  red, green, blue = np.moveaxis(image.astype(np.float32), -1, 0)
  light = cv2.GaussianBlur((red + green + blue) / 3, (0, 0), 2)
  tint = cv2.GaussianBlur(2 * green - red - blue, (0, 0), 1.5)
  warm = cv2.GaussianBlur(red - blue, (0, 0), 1.5)  # below zero over water alone
  plants = np.clip((tint - 10) / 25, 0, 1) * np.clip(warm / 10, 0, 1)
  water = np.clip(-warm / 6, 0, 1) * np.clip((110 - light) / 30, 0, 1)
  infrared = (red + plants * rng.uniform(70, 110)) * (1 - 0.85 * water)
  bands = np.stack([blue, green, red, infrared], -1) * (GAIN * rng.uniform(0.7, 1.3))
  bands += np.float32(HAZE) * rng.uniform(0.5, 1.5)
  bands += rng.standard_normal(bands.shape, np.float32) * np.sqrt(np.maximum(bands, 1)) * 0.3
  return np.clip(np.rint(bands), 1, TOP).astype(np.uint16)
