"""Transforms of samples: hand-worked boxes, and pixels that go where their boxes go."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import boxes as box_lib
from data_pipelines import transforms
from sm3det_jax import config as config_lib


def make(boxes, shape=(40, 60, 1), dtype=np.uint8, image=None):
  boxes = np.float32(boxes).reshape(-1, len(boxes[0]) if len(boxes) else 5)
  n = len(boxes)
  return {
    'image': np.zeros(shape, dtype) if image is None else image,
    'objects': {
      'boxes': boxes,
      'labels': np.arange(n, dtype=np.int32),
      'difficult': np.zeros(n, bool),
      'polygons': box_lib.to_polygon(boxes),
    },
    'id': 'some_image',
    'offset': (0, 0),
    'full_size': shape[:2],
  }


class Fixed:
  """A generator that gives one number, and one choice."""

  def __init__(self, number, angle=None):
    self.number, self.angle = number, angle

  def random(self):
    return self.number

  def uniform(self, low, high):
    assert (low, high) == (-180, 180)
    return self.angle

  def choice(self, options):
    assert tuple(options) == (90, 180, -90, -180)
    return self.angle


def drawn(obb, shape):
  """An image [h, w, 1] of a filled oriented box with soft edges; pixel centres are integers."""
  x, y, w, h, theta = map(float, obb)
  dy, dx = np.mgrid[: shape[0], : shape[1]] - np.float64([y, x]).reshape(2, 1, 1)
  along = dx * math.cos(theta) + dy * math.sin(theta)
  across = dy * math.cos(theta) - dx * math.sin(theta)
  soft = np.clip(w / 2 - abs(along) + 0.5, 0, 1) * np.clip(h / 2 - abs(across) + 0.5, 0, 1)
  return np.uint8(200 * soft)[..., None]


def centroid(image):
  y, x = np.mgrid[: image.shape[0], : image.shape[1]]
  weight = image[..., 0] / image.sum()
  return (x * weight).sum(), (y * weight).sum()


# --- resize


def test_resize_fits_the_longer_side_and_scales_boxes():
  sample = transforms.resize_keep_ratio(make([(10, 20, 8, 4, 0.3)], (512, 640, 1)), (800, 800))
  assert sample['image'].shape == (640, 800, 1)
  assert sample['shape'] == (640, 800)
  assert sample['scale'] == pytest.approx(1.25)
  np.testing.assert_allclose(sample['objects']['boxes'], [(12.5, 25, 10, 5, 0.3)], rtol=1e-6)
  assert 'polygons' not in sample['objects']


def test_resize_rounds_the_short_side_and_uses_both_factors():
  # 800 / 331 * 100 = 241.69 -> 242; sx = 800 / 331, sy = 2.42
  sample = transforms.resize_keep_ratio(make([(100, 50, 9, 9, 0.0)], (100, 331, 1)), (800, 800))
  sx, sy = 800 / 331, 2.42
  assert sample['image'].shape == (242, 800, 1)
  side = 9 * math.sqrt(sx * sy)
  np.testing.assert_allclose(
    sample['objects']['boxes'], [(100 * sx, 121, side, side, 0)], rtol=1e-6
  )


def test_resize_of_a_canvas_that_is_not_square():
  sample = transforms.resize_keep_ratio(make([(0, 0, 60, 40)]), (100, 300))
  assert sample['image'].shape == (100, 150, 1)
  np.testing.assert_allclose(sample['objects']['boxes'], [(0, 0, 150, 100)])


def test_horizontal_boxes_are_cut_at_the_edge():
  sample = transforms.resize_keep_ratio(make([(-5, 10, 70, 45)]), (80, 120))
  np.testing.assert_allclose(sample['objects']['boxes'], [(0, 20, 120, 80)])


@pytest.mark.parametrize('bands', [1, 2, 3, 4, 6])
def test_any_number_of_16_bit_bands_survives(bands):
  image = np.random.default_rng(0).integers(0, 65536, (20, 30, bands)).astype(np.uint16)
  sample = make([(15, 10, 8, 8, 0.1)], image=image)
  resized = transforms.resize_keep_ratio(sample, (40, 60))
  assert resized['image'].shape == (40, 60, bands) and resized['image'].dtype == np.uint16
  assert resized['image'].max() > 60000
  turned = transforms.rotate(sample, 1.0, True, Fixed(0.0, 180))['image']
  np.testing.assert_array_equal(turned, image[::-1, ::-1])


# --- flip


@pytest.mark.parametrize(
  'number, expected',
  [
    (0.1, [(49, 5, 12, 6, -0.4)]),
    (0.3, [(10, 34, 12, 6, -0.4)]),
    (0.6, [(49, 34, 12, 6, 0.4)]),
    (0.8, [(10, 5, 12, 6, 0.4)]),
  ],
)
def test_flip_of_an_oriented_box(number, expected):
  image = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60, 1)
  sample = transforms.flip(
    make([(10, 5, 12, 6, 0.4)], image=image), (0.25, 0.25, 0.25), Fixed(number)
  )
  np.testing.assert_allclose(sample['objects']['boxes'], expected, atol=1e-6)
  x, y = map(int, sample['objects']['boxes'][0, :2])
  assert sample['image'][y, x, 0] == image[5, 10, 0]  # the same pixel under the centre


def test_flip_at_the_end_of_the_angle_range_stays_le90():
  sample = transforms.flip(make([(10, 5, 12, 6, -math.pi / 2)]), (1.0, 0, 0), Fixed(0.5))
  np.testing.assert_allclose(sample['objects']['boxes'][0, 4], -math.pi / 2, rtol=1e-6)


@pytest.mark.parametrize(
  'probabilities, expected',
  [
    ((1.0, 0, 0), (40, 5, 50, 15)),
    ((0, 1.0, 0), (10, 25, 20, 35)),
    ((0, 0, 1.0), (40, 25, 50, 35)),
    ((0, 0, 0), (10, 5, 20, 15)),
  ],
)
def test_flip_of_a_horizontal_box(probabilities, expected):
  image = np.zeros((40, 60, 1), np.uint8)
  image[5:15, 10:20] = 1  # [x1, x2) is what the box covers
  sample = transforms.flip(make([(10, 5, 20, 15)], image=image), probabilities, Fixed(0.5))
  np.testing.assert_array_equal(sample['objects']['boxes'], [expected])
  x1, y1, x2, y2 = expected
  assert sample['image'][y1:y2, x1:x2].all() and sample['image'].sum() == 100


def test_flips_come_as_often_as_asked_for():
  image = np.zeros((2, 2, 1), np.uint8)
  image[0, 0] = 1
  rng, seen = np.random.default_rng(0), np.zeros((2, 2))
  for _ in range(2000):
    sample = make([(0, 0, 1, 1, 0.0)], image=image)
    seen += transforms.flip(sample, (0.4, 0.2, 0.1), rng)['image'][..., 0]
  np.testing.assert_allclose(seen / 2000, [(0.3, 0.4), (0.2, 0.1)], atol=0.04)


@pytest.mark.parametrize('wrong', [(0.5, 0.5, 0.5), (-0.1, 0.2, 0.0)])
def test_flip_refuses_what_are_no_probabilities(wrong):
  with pytest.raises(ValueError, match='flip='):
    transforms.flip(make([(0, 0, 1, 1, 0.0)]), wrong, Fixed(0.5))


# --- rotate


def test_rotation_by_a_right_angle_is_counter_clockwise_and_exact():
  image = np.random.default_rng(0).integers(0, 255, (41, 41, 3)).astype(np.uint8)
  sample = transforms.rotate(make([(30, 10, 12, 6, 0.4)], image=image), 1.0, True, Fixed(0.0, 90))
  np.testing.assert_array_equal(sample['image'], np.rot90(image))
  # (10, -10) from the middle (20, 20) goes to (-10, -10)
  np.testing.assert_allclose(
    sample['objects']['boxes'], [(10, 10, 12, 6, 0.4 - math.pi / 2)], atol=1e-5
  )


def test_two_quarter_turns_are_a_diagonal_flip():
  sample = make(
    [(30, 10, 12, 6, 0.4)],
    image=np.random.default_rng(0).integers(0, 255, (40, 60, 1)).astype(np.uint8),
  )
  turned = transforms.rotate(sample, 1.0, True, Fixed(0.0, 180))
  flipped = transforms.flip(sample, (0, 0, 1.0), Fixed(0.5))
  np.testing.assert_array_equal(turned['image'], flipped['image'])
  np.testing.assert_allclose(turned['objects']['boxes'], flipped['objects']['boxes'], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.floats(-180, 180), st.floats(40, 60), st.floats(40, 60), st.floats(-1.57, 1.57))
def test_pixels_go_where_the_box_goes(degrees, x, y, theta):
  obb = (x, y, 36, 15, theta)
  image = drawn(obb, (101, 103))
  sample = transforms.rotate(make([obb], image=image), 1.0, False, Fixed(0.0, degrees))
  expected = drawn(sample['objects']['boxes'][0], (101, 103))
  difference = np.abs(sample['image'] - np.float64(expected)).sum() / expected.sum()
  assert difference < 0.06  # an edge of half a pixel on 36 x 15
  np.testing.assert_allclose(centroid(sample['image']), sample['objects']['boxes'][0, :2], atol=0.1)
  assert -math.pi / 2 <= sample['objects']['boxes'][0, 4] < math.pi / 2


def test_rotation_keeps_the_canvas_and_fills_with_zeros():
  image = np.full((40, 60, 1), 255, np.uint8)
  turned = transforms.rotate(make([(30, 20, 9, 9, 0.0)], image=image), 1.0, False, Fixed(0.0, 90))
  assert turned['image'].shape == (40, 60, 1)
  assert not turned['image'][:, :9].any() and not turned['image'][:, 51:].any()
  assert turned['image'][:, 11:49].all()


def test_no_rotation_is_drawn_as_often_as_the_probability_says():
  sample = make([(30, 20, 9, 9, 0.0)])
  assert transforms.rotate(sample, 0.5, False, Fixed(0.5)) is sample
  assert transforms.rotate(sample, 0.5, False, Fixed(0.49, 10.0)) is not sample


def task_config(box='obb', **train):
  c = config_lib.task(box, 'd', ('car', 'roundabout'), size=(64, 64))
  c.train.update({'flip': (0.0, 0.0, 0.0), 'rotate': 1.0, **train})
  return c


def test_round_objects_turn_the_image_by_right_angles_only():
  image = np.random.default_rng(0).integers(1, 255, (64, 64, 1)).astype(np.uint8)
  config = task_config(right_angles=('roundabout',))
  turns = [np.rot90(image, k).tobytes() for k in (1, 2, 3)]
  with_round = make([(32, 32, 20, 20, 0.0)] * 2, image=image)  # labels 0 and 1
  only_car = make([(32, 32, 20, 20, 0.0)], image=image)
  seen = set()
  for seed in range(20):
    rng = np.random.default_rng(seed)
    out = np.ascontiguousarray(
      transforms.train_transform(with_round, config, rng)['image'][..., :1]
    )
    seen.add(turns.index(out.tobytes()))
    out = np.ascontiguousarray(transforms.train_transform(only_car, config, rng)['image'][..., :1])
    assert out.tobytes() not in turns
  assert seen == {0, 1, 2}
  # the prepared data set's own order of classes counts where it is given
  out = transforms.train_transform(
    only_car, config, np.random.default_rng(0), ('roundabout', 'car')
  )
  assert np.ascontiguousarray(out['image'][..., :1]).tobytes() in turns


# --- filter, bands, whole transforms


def test_small_and_outside_objects_go_even_when_nothing_turns():
  boxes = [
    (30, 20, 9, 5.1, 0.0), (30, 20, 9, 5.0, 0.0), (0, 20, 9, 9, 0.0), (60, 20, 9, 9, 0.0),
    (59.9, 39.9, 9, 9, 0.0), (30, 40, 9, 9, 0.0),
  ]  # fmt: skip
  config = task_config(rotate=0.0)
  config.size = (40, 60)
  sample = transforms.train_transform(make(boxes), config, np.random.default_rng(0))
  assert sample['objects']['labels'].tolist() == [0, 4]
  assert len(sample['objects']['boxes']) == len(sample['objects']['difficult']) == 2


def test_horizontal_boxes_without_area_go():
  sample = transforms.filter_small(make([(3, 3, 9, 9), (3, 3, 3, 9), (30, 39, 40, 41)]), 0.0)
  assert sample['objects']['labels'].tolist() == [0]


def test_evaluation_keeps_every_object():
  config = task_config()
  config.size = (80, 120)
  sample = make([(30, 20, 1, 1, 0.0), (-9, 20, 9, 9, 0.0)])
  out = transforms.test_transform(sample, config)
  np.testing.assert_allclose(out['objects']['boxes'], [(60, 40, 2, 2, 0), (-18, 40, 18, 18, 0)])
  assert out['scale'] == 2 and out['image'].shape == (80, 120, 3)
  assert sample['objects']['boxes'][0, 0] == 30 and 'scale' not in sample  # the input is untouched


def test_bands():
  one = np.random.default_rng(0).integers(0, 9, (4, 5, 1))
  np.testing.assert_array_equal(transforms.to_bands(one, 3), np.concatenate([one] * 3, -1))
  for bands in (2, 3, 4):
    image = np.zeros((4, 5, bands))
    assert transforms.to_bands(image, bands).shape == image.shape
  with pytest.raises(ValueError, match='P01 has 3 bands, the task has bands=1'):
    transforms.to_bands(np.zeros((4, 5, 3)), 1, 'P01')


def test_an_empty_sample_passes():
  for box, columns in (('hbb', 4), ('obb', 5)):
    sample = make([])
    sample['objects']['boxes'] = np.zeros((0, columns), np.float32)
    config = task_config(box, rotate=1.0 if box == 'obb' else 0.0, flip=(1.0, 0, 0))
    out = transforms.train_transform(sample, config, np.random.default_rng(0))
    assert (
      out['objects']['boxes'].shape == (0, columns) and out['objects']['boxes'].dtype == np.float32
    )


def test_a_rotation_of_horizontal_boxes_is_refused():
  with pytest.raises(ValueError, match="rotate=1.0 needs oriented boxes, the task has 'hbb'"):
    transforms.train_transform(make([(3, 3, 9, 9)]), task_config('hbb'), np.random.default_rng(0))


def test_a_sample_is_a_function_of_its_generator():
  config = task_config(flip=(0.25, 0.25, 0.25))
  image = np.random.default_rng(0).integers(0, 255, (50, 64, 3)).astype(np.uint8)
  sample = make([(30, 20, 20, 9, 0.5)], image=image)
  before = image.copy()
  a, b, c = (
    transforms.train_transform(sample, config, np.random.default_rng(seed)) for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(a['image'], b['image'])
  np.testing.assert_array_equal(a['objects']['boxes'], b['objects']['boxes'])
  assert not np.array_equal(a['image'], c['image'])
  np.testing.assert_array_equal(image, before)
