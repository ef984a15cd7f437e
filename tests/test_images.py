"""Image files of every kind to arrays and back."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines import images

RNG = np.random.default_rng(0)


def pixels(bands, dtype=np.uint8, height=37, width=53):
  """Half noise, half a smooth ramp (so that a predictor and LZW have something to do)."""
  top = np.iinfo(dtype).max
  image = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] + np.arange(bands)
  image[: height // 2] = RNG.integers(0, top + 1, (height // 2, width, bands))
  return image.astype(dtype)


def encoded(image, suffix):
  """By OpenCV, from RGB."""
  return cv2.imencode(suffix, image[..., ::-1] if image.shape[2] == 3 else image)[1].tobytes()


@pytest.mark.parametrize('bands', [1, 3])
@pytest.mark.parametrize(
  'suffix, dtype',
  [('.png', np.uint8), ('.png', np.uint16), ('.tif', np.uint8), ('.tif', np.uint16)]
  + [('.bmp', np.uint8)],
)
def test_lossless_files(tmp_path, suffix, bands, dtype):
  image = pixels(bands, dtype)
  path = tmp_path / f'a{suffix}'
  path.write_bytes(encoded(image, suffix))
  found = images.read(path)
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, image)
  assert images.size(path) == (37, 53)


def test_jpeg_colour_order_and_size(tmp_path):
  image = np.zeros((40, 60, 3), np.uint8)
  image[:] = (200, 30, 10)
  for name, data in (('rgb', image), ('grey', image[..., :1])):
    (tmp_path / f'{name}.jpg').write_bytes(encoded(data, '.jpg'))
  found = images.read(tmp_path / 'rgb.jpg')
  assert np.abs(found.astype(int) - image).max() < 12  # red stays red
  assert images.read(tmp_path / 'grey.jpg').shape == (40, 60, 1)
  assert images.size(tmp_path / 'rgb.jpg') == (40, 60)


def test_jpeg_orientation_is_not_applied(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  Image.fromarray(pixels(3)).save(tmp_path / 'a.jpg', exif=exif)
  assert images.read(tmp_path / 'a.jpg').shape == (37, 53, 3)
  assert images.size(tmp_path / 'a.jpg') == (37, 53)


def test_alpha_of_a_png_is_dropped():
  rgba = pixels(4)
  data = io.BytesIO()
  Image.fromarray(rgba, 'RGBA').save(data, 'PNG')
  np.testing.assert_array_equal(images.decode(data.getvalue()), rgba[..., :3])


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_grey_with_alpha_is_grey():
  data = io.BytesIO()
  Image.fromarray(pixels(2), 'LA').save(data, 'PNG')
  grey = images.decode(data.getvalue())
  assert grey.shape == (37, 53, 1)
  # a set that was prepared when it gave three bands
  np.testing.assert_array_equal(images.decode(data.getvalue(), 3), np.repeat(grey, 3, 2))


def test_tiff_of_sixteen_bits_and_four_bands():
  image = pixels(4, np.uint16, 90, 70)
  data = cv2.imencode('.tif', image[..., [2, 1, 0, 3]])[1].tobytes()  # LZW
  np.testing.assert_array_equal(images.decode(data), image)


@pytest.mark.parametrize('bands', [1, 2, 3, 4, 7])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.float32])
def test_encode_is_lossless(bands, dtype):
  image = pixels(bands) * np.float32(-0.3) if dtype is np.float32 else pixels(bands, dtype)
  found = images.decode(images.encode(image), bands)
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tif'])
def test_truncated_file_is_an_error(tmp_path, suffix):
  path = tmp_path / f'broken{suffix}'
  data = encoded(pixels(3, height=200, width=200), suffix)
  path.write_bytes(data[: len(data) * 2 // 3])
  with pytest.raises(images.ImageError, match=f'broken{suffix}: '):
    images.read(path)


def test_truncated_jpeg_with_a_thumbnail_is_an_error(tmp_path):
  data = encoded(pixels(3, height=200, width=200), '.jpg')
  thumbnail = encoded(pixels(3, height=20, width=20), '.jpg')
  segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
  whole = data[:2] + segment + data[2:]
  assert images.decode(whole).shape == (200, 200, 3)
  with pytest.raises(images.ImageError, match='truncated'):
    images.decode(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize('data', [b'', b'not an image', b'\xff\xd8', b'II*\0' + bytes(20)])
def test_what_is_no_image_is_an_error(data):
  with pytest.raises(images.ImageError, match='picture: '):
    images.decode(data, name='picture')


def test_what_is_stored_as_is():
  small, large = pixels(3), np.zeros((8, images.WHOLE + 1, 3), np.uint8)
  for suffix, as_is in (('.png', True), ('.jpg', True), ('.tif', False), ('.bmp', False)):
    assert images.stores_as_is(encoded(small, suffix), small) == as_is
  assert not images.stores_as_is(encoded(large, '.png'), large)


def test_blocks_cover_an_image_once():
  covered = np.zeros((1100, 1537), int)
  for x1, y1, x2, y2 in images.blocks(1100, 1537):
    covered[y1:y2, x1:x2] += 1
    assert 0 < x2 - x1 <= images.BLOCK and 0 < y2 - y1 <= images.BLOCK
  assert (covered == 1).all()
