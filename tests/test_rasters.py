"""Rasters of any type, number of bands, layout and compression: their pixels are found again."""

import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasters import (
  LOSSLESS,
  TYPES,
  as_read,
  by_numpy,
  by_rasterio,
  by_tifffile,
  check,
  encoded,
  pixels,
)

from data_pipelines import images
from data_pipelines.images import decoders


@st.composite
def tiffs(draw):
  """(image, file) by either of two libraries."""
  dtype = draw(st.sampled_from(TYPES))
  compression = draw(st.sampled_from((None, *LOSSLESS)))
  bands, tiled, planes = draw(st.integers(1, 6)), draw(st.booleans()), draw(st.booleans())
  image = pixels(bands, dtype, draw(st.integers(2, 80)), draw(st.integers(1, 80)))
  predictor = compression in LOSSLESS[:3] and dtype[0] != 'c' and draw(st.booleans())
  if dtype != 'float16' and draw(st.booleans()):
    options = dict(interleave='band' if planes else 'pixel', photometric='MINISBLACK', alpha='NO')
    options |= dict(tiled=True, blockxsize=32, blockysize=16) if tiled else {}
    options |= dict(predictor=3 if dtype[0] == 'f' else 2) if predictor else {}
    options |= dict(bigtiff=draw(st.sampled_from(('YES', 'NO'))))
    return image, by_rasterio(image, compress=compression, **options)
  options = dict(tile=(32, 16)) if tiled else dict(rowsperstrip=draw(st.integers(1, 90)))
  options |= dict(byteorder=draw(st.sampled_from('<>')), bigtiff=draw(st.booleans()))
  planes = planes and bands > 1
  return image, by_tifffile(image, planes, compression=compression, predictor=predictor, **options)


@given(tiffs())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tiff(made):
  image, data = made
  check(data, as_read(image))


@pytest.mark.slow
@given(tiffs())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_tiffs(made):
  image, data = made
  check(data, as_read(image))


@pytest.mark.parametrize('bands', [1, 3])
@pytest.mark.parametrize(
  'suffix, dtypes',
  [('.png', 2), ('.tif', 4), ('.bmp', 1), ('.webp', 1), ('.jp2', 2)],  # of those below
)
def test_what_opencv_writes(suffix, dtypes, bands):
  options = {'.webp': [cv2.IMWRITE_WEBP_QUALITY, 101], '.tif': [cv2.IMWRITE_TIFF_COMPRESSION, 5]}
  options['.jp2'] = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
  for dtype in ('uint8', 'uint16', 'float32', 'float64')[:dtypes]:
    image = pixels(bands, dtype)
    data = cv2.imencode(suffix, image[..., ::-1], options.get(suffix, []))[1].tobytes()
    colour = 3 if suffix == '.webp' else bands  # it has no grey
    check(data, np.broadcast_to(as_read(image), (37, 53, colour)))


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('bands', [1, 3, 5])
def test_npy(dtype, bands):
  image = pixels(bands, dtype)
  check(by_numpy(image), as_read(image))
  check(by_numpy(np.asfortranarray(image.astype(image.dtype.newbyteorder('>')))), as_read(image))
  check(by_numpy(image[..., 0]), as_read(image[..., :1]))


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16'])
@pytest.mark.parametrize('bands', [1, 3, 4, 5])
def test_jpeg_2000(dtype, bands):
  image = pixels(bands, dtype)
  for codec in ('JP2', 'J2K'):
    options = dict(quality=100, reversible='YES', codec=codec)
    check(by_rasterio(image, 'JP2OpenJPEG', **options), image)


def test_webp():
  check(encoded(pixels(3), 'WEBP', lossless=True), pixels(3))
  check(encoded(pixels(4), 'WEBP', lossless=True, exact=True), pixels(4)[..., :3])


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_cmyk_of_a_jpeg_is_rgb_and_of_a_tiff_as_stored():
  colour = np.zeros((16, 16, 4), np.uint8)
  colour[..., 1:3] = 255  # red
  buffer = io.BytesIO()
  Image.fromarray(colour, 'CMYK').save(buffer, 'JPEG')
  red = images.decode(buffer.getvalue())
  assert red.shape == (16, 16, 3) and np.abs(red.astype(int) - (255, 0, 0)).max() < 12
  image = pixels(4)
  check(by_tifffile(image, photometric='separated', compression='lzw'), image)


def test_bmp_of_os2():
  """A header of twelve bytes; 16 px of three bytes need no padding."""
  image = pixels(3, height=20, width=16)
  head = struct.pack('<IHHHH', 12, 16, 20, 1, 24)
  body = head + image[::-1, :, ::-1].tobytes()
  check(b'BM' + struct.pack('<IHHI', 14 + len(body), 0, 0, 26) + body, image)


def test_what_opencv_refuses_for_its_size(monkeypatch):
  monkeypatch.setattr(decoders, 'OPENCV_SIDE', 30)
  indexed = Image.fromarray(pixels(3)).quantize(16)
  for form in ('PNG', 'BMP'):
    check(encoded(pixels(3), form), pixels(3))
    check(encoded(pixels(1)[..., 0], form), pixels(1))
    buffer = io.BytesIO()
    indexed.save(buffer, form)
    check(buffer.getvalue(), np.array(indexed.convert('RGB')))
  check(encoded(pixels(4), 'PNG'), pixels(4)[..., :3])
