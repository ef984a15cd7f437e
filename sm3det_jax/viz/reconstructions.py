"""Pictures of masked images: input, mask, reconstruction, target of a modality."""

import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from sm3det_jax.viz import draw

COLUMNS = ('input', 'what is masked', 'reconstruction', 'target')
GAP, BANNER = 6, 22  # px
GREY = 96  # of what is masked
TAILS = (1.0, 99.0)  # percentiles that become black and white


def write(
  path: str | os.PathLike,
  images: np.ndarray,
  masks: np.ndarray,
  found: np.ndarray,
  targets: np.ndarray,
  power: bool = False,
) -> pathlib.Path:
  """Writes one row an image of `COLUMNS` to a PNG file.

  Every row has the range of its target, whose outermost percent is cut off.

  Args:
    path: of the file.
    images: [n, H, W, C], as the model sees them; of more than three bands the first three are
      shown, of complex SAR (`power`) the total amplitude.
    masks: [n, h, w] of patches, 1 = masked.
    found, targets: [n, H, W, 1 or C], in the unit of the model's target.
    power: they are powers of complex images, shown as amplitudes.
  """
  rows = [
    np.concatenate(_panels(*one, power), 1)
    for one in zip(images, masks, found, targets, strict=True)
  ]
  picture = np.concatenate([_banner(rows[0].shape[1], len(COLUMNS)), *rows])
  path = pathlib.Path(path)
  draw.save(path, picture)
  return path


def _panels(image, mask, found, target, power):
  if power:  # a model may find less than nothing
    image = np.sqrt((np.float64(image) ** 2).sum(-1, keepdims=True))
    found, target = (np.sqrt(np.maximum(x, 0)) for x in (found, target))
  low, high = np.percentile(_rgb(target), TAILS, axis=(0, 1))
  cells = image.shape[0] // mask.shape[0]
  masked = np.kron(mask, np.ones((cells, cells), int)).astype(bool)
  seen = _levels(image, low, high)
  hidden = np.where(masked[..., None], np.uint8(GREY), seen)
  panels = [seen, hidden, _levels(found, low, high), _levels(target, low, high)]
  return [np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for p in panels]


def _rgb(image: np.ndarray) -> Sequence:
  return np.repeat(image[..., :1], 3, -1) if image.shape[-1] < 3 else image[..., :3]


def _levels(image, low, high):
  values = (np.float64(_rgb(image)) - low) / np.maximum(high - low, 1e-12)
  return np.clip(np.rint(255 * values), 0, 255).astype(np.uint8)


def _banner(width, columns):
  banner = np.full((BANNER, width, 3), 255, np.uint8)
  for k, text in enumerate(COLUMNS):
    place = (k * width // columns + 2, BANNER - 7)
    cv2.putText(banner, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
  return banner
