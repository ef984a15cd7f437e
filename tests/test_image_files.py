"""Image files that end early, lie at odd places or claim absurd sizes."""

import os
import struct
import zlib

import numpy as np
import pytest
from rasters import (
  LOSSLESS,
  by_numpy,
  by_rasterio,
  by_tifffile,
  encoded,
  pixels,
)

from data_pipelines import images
from data_pipelines.images import tiff


def files():
  """{name: file} of each format and of each way that a TIFF ends."""
  image = pixels(3, height=90, width=70)
  found = {form: encoded(image, form) for form in ('PNG', 'JPEG', 'BMP', 'WEBP')}
  found |= {'JPEG, progressive': encoded(image, 'JPEG', progressive=True)}
  found |= {'JPEG 2000': by_rasterio(image, 'JP2OpenJPEG'), 'npy': by_numpy(image)}
  for compression in (None, *LOSSLESS, 'jpeg', 'lerc'):
    found[f'TIFF, {compression}, strips'] = by_tifffile(image, compression=compression)
    found[f'TIFF, {compression}, tiles'] = by_rasterio(
      image, compress=compression, tiled=True, blockxsize=32, blockysize=32
    )
  return found


@pytest.mark.parametrize('name, data', files().items())
def test_a_truncated_file_is_an_error(name, data):
  cuts = {
    *np.linspace(1, len(data) - 1, 30).astype(int).tolist(),
    *(len(data) - k for k in range(1, 9)),
  }
  for cut in cuts:
    with pytest.raises(images.ImageError, match=r'^broken\.img: '):
      images.load('broken.img', data[:cut])


def test_names_and_neighbours_do_not_count(tmp_path):
  image, other = pixels(3), pixels(3, height=50)
  data = by_rasterio(image)
  for name in (
    b'a[1].tif',
    b'b?c#d.tif',
    b'GTIFF_DIR:2:a.tif',
    b'zip+s3:a.tif',
    b'\xff\xfe.tif',
    b'no',
  ):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(data)
    np.testing.assert_array_equal(images.read(path), image)
    assert images.size(path) == (37, 53)
  (tmp_path / 'b?c#d.tif.ovr').write_bytes(by_rasterio(other))
  band = '<PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand>'
  (tmp_path / 'no.aux.xml').write_text(f'<PAMDataset>{band}</PAMDataset>')
  before = sorted(tmp_path.iterdir())
  np.testing.assert_array_equal(images.read(tmp_path / 'b?c#d.tif'), image)
  assert images.load(tmp_path / 'no').remarks == {}
  assert sorted(tmp_path.iterdir()) == before


# limits


def directory(**tags):
  """A TIFF of a directory alone: names of tags of `data_pipelines.images.tiff` -> value."""
  rows = sorted((getattr(tiff, name), value) for name, value in {'BITS': 8, **tags}.items())
  rows = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in rows)
  return b'II*\0' + struct.pack('<IH', 8, len(tags) + 1) + rows + bytes(400)


TILED = dict(TILE_OFFSETS=8, TILE_WIDTH=1, TILE_HEIGHT=1)


@pytest.mark.parametrize(
  'data, message',
  [
    (directory(WIDTH=60000, HEIGHT=60000, BANDS=5, OFFSETS=8), '60000 x'),
    (directory(WIDTH=30000, HEIGHT=30000, BANDS=5, OFFSETS=8), r'4\.2 GiB'),
    (directory(WIDTH=10000, HEIGHT=10000, BANDS=3, OFFSETS=8), 'times the file'),
    (directory(WIDTH=10, HEIGHT=9**8, ROWS=1, OFFSETS=8), 'need 43046721 strips'),
    (directory(WIDTH=9**4, HEIGHT=9**4, **TILED), 'need 43046721 strips or tiles'),
    (directory(WIDTH=9, HEIGHT=9, **TILED | dict(TILE_WIDTH=9**8)), 'tiles of 43046721 x 1'),
    (directory(WIDTH=30, HEIGHT=30, BANDS=65535, OFFSETS=8), '30 x 30 px of 65535'),
    (encoded(pixels(1)[..., 0], 'PNG').replace(b'\0\0\0\x35', b'\x7f\0\0\0', 1), 'x 37 px'),
  ],
)
def test_absurd_sizes_are_refused_by_the_header(data, message):
  with pytest.raises(images.ImageError, match=f'^bomb: .*{message}'):
    images.load('bomb', data)


def test_the_limit_can_be_raised(monkeypatch):
  data = by_numpy(pixels(3))
  monkeypatch.setattr(images, 'MAX_PIXELS', 1000)
  with pytest.raises(images.ImageError, match=f'{images.LIMIT}=1961'):
    images.decode(data)
  monkeypatch.setenv(images.LIMIT, '1961')
  assert images.decode(data).shape == (37, 53, 3)
  monkeypatch.setenv(images.LIMIT, 'all')
  with pytest.raises(images.ImageError, match='expected a number'):
    images.decode(data)


def test_a_strip_is_unpacked_no_further_than_it_reaches():
  for size, message in ((99, 'does not decode'), (101, 'more than its 100'), (5 * 10**7, 'more')):
    strip = zlib.compress(bytes([7]) * size, 9)
    places = dict(OFFSETS=600, COUNTS=len(strip), PHOTOMETRIC=1, COMPRESSION=8)
    data = directory(WIDTH=10, HEIGHT=10, **places)[:600].ljust(600, b'\0') + strip
    with pytest.raises(images.ImageError, match=message):
      images.decode(data)
