"""Rasters of any type, number of bands, layout and compression: their pixels are found again."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines import images
from data_pipelines.images import decoders, tiff

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
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tiff(made):
  image, data = made
  check(data, as_read(image))


@pytest.mark.slow
@given(tiffs())
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_tiffs(made):
  image, data = made
  check(data, as_read(image))


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


def encoded(image, form, **options):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, form, **options)
  return buffer.getvalue()


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


# what the tags of a TIFF decide


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


# files and their places


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
