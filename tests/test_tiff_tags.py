"""What the tags of a TIFF decide about its pixels."""

import io

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image
from rasters import (
  as_read,
  by_numpy,
  by_rasterio,
  by_tifffile,
  check,
  encoded,
  pixels,
)

from data_pipelines import images


@pytest.mark.parametrize('planes', [False, True])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
@pytest.mark.parametrize('extra, kept', [(0, 4), (1, 3), (2, 3)])
def test_what_a_tiff_calls_alpha_is_dropped(extra, kept, dtype, planes):
  image = pixels(4, dtype)
  data = by_tifffile(image, planes, photometric='rgb', extrasamples=[extra])
  check(data, image[..., :kept])


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_three_bands_that_are_not_rgb_are_three(dtype):
  for planes in (False, True):
    check(by_tifffile(pixels(3, dtype), planes, photometric='minisblack'), pixels(3, dtype))


@pytest.mark.parametrize(
  'bits, dtype', [(1, 'uint8'), (8, 'uint8'), (12, 'uint16'), (16, 'uint16')]
)
def test_white_is_zero(bits, dtype):
  image = pixels(1, dtype) & ((1 << bits) - 1)
  data = by_rasterio(image, photometric='miniswhite', nbits=bits)
  check(data, (1 << bits) - 1 - image)


@pytest.mark.parametrize('form', ['TIFF', 'PNG', 'BMP'])
def test_a_palette_becomes_its_colours(form):
  indexed = Image.fromarray(pixels(3)).quantize(16)
  buffer = io.BytesIO()
  indexed.save(buffer, form)
  check(buffer.getvalue(), np.array(indexed.convert('RGB')))


def test_lossy_colours_of_a_tiff():
  image = np.zeros((64, 64, 3), np.uint8) + np.uint8([200, 30, 10])
  jpeg = by_rasterio(image, compress='jpeg', photometric='ycbcr', tiled=True)
  buffer = io.BytesIO()
  Image.fromarray(image).convert('YCbCr').save(buffer, 'TIFF')
  for data in (jpeg, buffer.getvalue()):
    assert np.abs(images.decode(data).astype(int) - image).max() < 12


def test_pages_of_one_size_are_bands():
  image, buffer = pixels(6, 'uint16'), io.BytesIO()
  with tifffile.TiffWriter(buffer) as file:
    for k in range(0, 6, 2):
      file.write(image[..., k : k + 2], planarconfig='contig', photometric='minisblack')
      file.write(image[::2, ::2, 0], subfiletype=1)  # a reduced copy, which is none
  check(buffer.getvalue(), image)


def test_pages_of_other_sizes_are_said():
  image, buffer = pixels(1), io.BytesIO()
  with tifffile.TiffWriter(buffer) as file:
    file.write(image[..., 0])
    file.write(image[:9, :9, 0])
  (remark,) = check(buffer.getvalue(), image).remarks
  assert 'pages of another size' in remark


@pytest.mark.parametrize(
  'dtype, nodata',
  [
    ('uint8', 0),
    ('uint16', 65535),
    ('int16', -9999),
    ('float32', -3.4028234663852886e38),
    ('float64', -1.7976931348623157e308),
    ('complex64', 0),
  ],
)
def test_pixels_without_data_become_the_mean_of_their_band(dtype, nodata):
  image = pixels(2, dtype)
  image[image == nodata] = 1
  holes = np.zeros(image.shape, bool)
  holes[3:6, 10:14, 1] = holes[4, 2, 0] = True
  valid = as_read(image)
  image[holes] = nodata
  loaded = images.load('image', by_rasterio(image, nodata=nodata, photometric='MINISBLACK'))
  assert loaded.remarks[images.NO_DATA] == 13 and loaded.header.nodata == nodata
  for k in range(2):
    mean = valid[..., k][~holes[..., k]].mean(dtype=np.float64)
    expected = np.where(holes[..., k], np.rint(mean) if valid.dtype.kind in 'ui' else mean, 0)
    expected = np.where(holes[..., k], expected, valid[..., k]).astype(valid.dtype)
    np.testing.assert_array_equal(loaded.pixels[..., k], expected)


def test_no_data_is_what_is_stored_not_what_it_looks_like():
  white = pixels(1)
  white[0, 0] = 7
  found = images.load('image', by_rasterio(white, photometric='miniswhite', nodata=7))
  assert found.remarks[images.NO_DATA] == (white == 7).sum()
  expected = np.rint((255 - white)[white != 7].mean())
  assert found.pixels[0, 0, 0] == expected
  index, colours = np.zeros((4, 4, 1), np.uint8), {0: (9, 1, 5), 1: (50, 60, 70)}
  index[0, 0] = 1
  with rasterio.MemoryFile() as file:
    with file.open(
      driver='GTiff', height=4, width=4, count=1, dtype='uint8', nodata=1,
      transform=rasterio.Affine.translation(1, 1), photometric='palette',
    ) as dataset:  # fmt: skip
      dataset.write(index[..., 0], 1)
      dataset.write_colormap(1, colours)
    found = images.load('image', file.read())
  assert found.remarks == {images.NO_DATA: 1} and (found.pixels == (9, 1, 5)).all()


def test_what_is_not_finite_becomes_the_mean():
  image = pixels(2, 'float32')
  image[0, 0, 0], image[1, 1, 0], image[:, :, 1] = np.nan, np.inf, np.nan
  for data in (by_numpy(image), by_tifffile(image)):
    loaded = images.load('image', data)
    assert loaded.remarks == {images.NO_DATA: 37 * 53}
    expected = image[..., 0][np.isfinite(image[..., 0])].mean(dtype=np.float64)
    np.testing.assert_allclose(loaded.pixels[[0, 1], [0, 1], 0], expected, rtol=1e-6)
    assert (loaded.pixels[..., 1] == 0).all()  # a band of nothing


def test_what_is_not_kept_is_said():
  for dtype in ('float64', 'complex64'):
    (remark,) = images.load('image', by_numpy(pixels(1, dtype))).remarks
    assert remark.startswith(f'image of {dtype} (kept as')
  assert not images.load('image', by_numpy(pixels(1, 'float16'))).remarks


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_an_orientation_is_said_and_not_applied(form):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  loaded = images.load('image', encoded(pixels(3), form, exif=exif))
  assert loaded.pixels.shape == (37, 53, 3) and loaded.header.orientation == 6
  assert not loaded.remarks  # who reads labels asks what they are of
