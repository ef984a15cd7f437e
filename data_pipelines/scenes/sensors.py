"""The drawn scenes of the four sensors of pre-training, as files that `prepare` makes tiles of."""

import concurrent.futures
import itertools
import pathlib
import zlib

import numpy as np

from data_pipelines import scenes
from data_pipelines.scenes import multispectral, optical, polarimetric, sar

DRAWN = {
  'opt': lambda rng, size: optical.scene(rng, size)[0],
  'sar_l1': polarimetric.scene,
  'sar_l2': lambda rng, size: sar.scene(rng, size)[0],
  'ms': multispectral.scene,
}


def draw(modality: str, rng: np.random.Generator, size: int) -> np.ndarray:
  """A scene of a sensor, all of it from `rng`.

  Returns:
    opt: uint8 [size, size, 3] RGB. sar_l1: complex64 [size, size, 4], HH, HV, VH, VV, of about unit
    power. sar_l2: uint8 [size, size], amplitude. ms: uint16 [size, size, 4], blue, green, red, near
    infrared.
  """
  return DRAWN[modality](rng, size)


def write(
  root, seed: int, counts: dict[str, int], size: int = 256, modalities=tuple(DRAWN)
) -> None:
  """Writes `root/<modality>/<split>/<number>.png` or .npy; files of these names are overwritten.

  Args:
    root: folder.
    seed: of everything; an image depends on (seed, split, modality, number) alone.
    counts: {split: images a modality}.
    size: height and width, px.
    modalities: which.
  """
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for split, modality in itertools.product(counts, modalities):
      folder = pathlib.Path(root) / modality / split
      folder.mkdir(parents=True, exist_ok=True)
      key = [seed, zlib.crc32(split.encode()), zlib.crc32(modality.encode())]

      def one(i, modality=modality, folder=folder, key=key):
        _save(folder / f'{i:05d}', draw(modality, np.random.default_rng([*key, i]), size))

      list(pool.map(one, range(counts[split])))


def _save(path, image):
  if image.dtype == np.uint8:
    scenes.save_image(path.with_suffix('.png'), image)
  else:
    np.save(path.with_suffix('.npy'), image)
