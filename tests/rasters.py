"""Writers of image files in memory, and what must be read of them."""

import io

import numpy as np
import rasterio
import tifffile
from PIL import Image

from data_pipelines import images

TYPES = ('uint8', 'uint16', 'int16', 'float16', 'float32', 'float64', 'complex64', 'complex128')
LOSSLESS = ('deflate', 'lzw', 'zstd', 'packbits', 'lzma')


def pixels(bands, dtype='uint8', height=37, width=53):
  """Half noise, half a smooth ramp (so that predictors and compressions have something to do)."""
  rng = np.random.default_rng(bands)
  ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] + np.arange(bands)
  image = ramp % 250
  image[: height // 2] = rng.integers(0, 250, (height // 2, width, bands))
  if dtype == 'uint8':
    return image.astype(dtype)
  image = image * 100 - (0 if dtype == 'uint16' else 9000)
  return (image + 1j * image[::-1]).astype(dtype) if dtype[0] == 'c' else image.astype(dtype)


def by_tifffile(image, planes=False, **options):
  buffer = io.BytesIO()
  if planes:
    image, options['planarconfig'] = np.moveaxis(image, -1, 0), 'separate'
  elif image.shape[2] > 1:
    options['planarconfig'] = 'contig'
  else:
    image = image[..., 0]
  tifffile.imwrite(buffer, image, **{'photometric': 'minisblack', 'metadata': None} | options)
  return buffer.getvalue()


def by_rasterio(image, driver='GTiff', **options):
  shape = dict(zip(('height', 'width', 'count'), image.shape, strict=True))
  kind = dict(driver=driver, dtype=image.dtype.name, transform=rasterio.Affine.translation(1, 1))
  with rasterio.MemoryFile() as file:
    with file.open(**shape | kind | options) as dataset:
      dataset.write(np.moveaxis(image, -1, 0))
    return file.read()


def by_numpy(image):
  buffer = io.BytesIO()
  np.save(buffer, image)
  return buffer.getvalue()


def as_read(image):
  """What the types that nobody trains on become."""
  if image.dtype.kind == 'c':
    return np.abs(image).astype(np.float32)
  return image.astype(np.float32) if image.dtype.kind == 'f' else image


def check(data, expected, path=None):
  """The pixels, the header, the bytes behind the end and the way into a prepared data set."""
  loaded = images.load(path or 'image', data)
  found, header = loaded.pixels, loaded.header
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)
  assert (header.height, header.width, header.bands) == found.shape
  assert header.dtype == found.dtype
  np.testing.assert_array_equal(images.decode(data + b'\xff\xda\0\0anything' * 9), expected)
  again = images.decode(images.encode(found), found.shape[2])
  assert again.dtype == found.dtype
  np.testing.assert_array_equal(again, found)
  return loaded


def encoded(image, form, **options):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, form, **options)
  return buffer.getvalue()
