"""RoIAlign against plain loops over samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax.geometry import roi_align


def bilinear(image, y, x):
  h, w, c = image.shape
  if y < -1 or y > h or x < -1 or x > w:
    return np.zeros(c)
  y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
  y0, x0 = int(y), int(x)
  y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
  top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
  low = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
  return top * (1 - y + y0) + low * (y - y0)


def loop(features, rois, size, scale, ratio):
  out = np.zeros((len(rois), size, size, features.shape[-1]))
  for r, (image, cx, cy, w, h, theta) in enumerate(rois):
    cx, cy, w, h = cx * scale - 0.5, cy * scale - 0.5, w * scale, h * scale
    for i, j in np.ndindex(size, size):
      for p, q in np.ndindex(ratio, ratio):
        v = -h / 2 + (i + (p + 0.5) / ratio) * h / size
        u = -w / 2 + (j + (q + 0.5) / ratio) * w / size
        y = v * np.cos(theta) + u * np.sin(theta) + cy
        x = u * np.cos(theta) - v * np.sin(theta) + cx
        out[r, i, j] += bilinear(features[int(image)], y, x) / ratio**2
  return out


def scene(seed, r=12, images=2, side=64):
  rng = np.random.default_rng(seed)
  boxes = np.concatenate(
    [rng.uniform(-8, side + 8, (r, 2)), rng.uniform(1, side, (r, 2)), rng.uniform(-2, 2, (r, 1))], 1
  )
  image = rng.integers(0, images, (r, 1))
  return np.concatenate([image, boxes], 1).astype(np.float32)


def features(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('size,ratio', [(7, 2), (3, 1)])
def test_equals_the_loop(size, ratio):
  maps, rois = features(0, 2, 8, 16, 3), scene(1)
  run = jax.jit(lambda f, r: roi_align.rotated_roi_align(f, r, size, 1 / 4, ratio))
  np.testing.assert_allclose(run(maps, rois), loop(maps, rois, size, 1 / 4, ratio), atol=2e-5)


def test_turns_clockwise():
  """On a map that is brightest on the right, a box turned by a quarter has its last row there."""
  ramp = jnp.broadcast_to(jnp.arange(32.0)[None, None, :, None], (1, 32, 32, 1))
  box = lambda theta: jnp.asarray([[0, 16.5, 16.5, 14, 14, theta]], jnp.float32)
  align = jax.jit(lambda box: roi_align.rotated_roi_align(ramp, box, 7, 1.0, 2))
  run = lambda theta: align(box(theta))[0, ..., 0]
  np.testing.assert_allclose(run(0)[3], 16 + 2 * np.arange(-3, 4), atol=1e-4)
  np.testing.assert_allclose(run(-np.pi / 2)[:, 3], 16 + 2 * np.arange(-3, 4), atol=1e-4)
  np.testing.assert_allclose(run(np.pi / 2)[:, 3], 16 - 2 * np.arange(-3, 4), atol=1e-4)


def levels_and_rois(c=4, r=9):
  maps = [jnp.asarray(features(i, 2, 64 // s, 48 // s, c)) for i, s in enumerate((4, 8, 16, 32))]
  rng = np.random.default_rng(7)
  sides = 2 ** rng.uniform(4, 10, (2, r, 2))  # all four levels
  rois = np.concatenate([rng.uniform(0, 64, (2, r, 2)), sides, rng.uniform(-2, 2, (2, r, 1))], 2)
  return maps, jnp.asarray(rois, jnp.float32)


def test_every_level_by_one_gather():
  maps, rois = levels_and_rois()
  got = jax.jit(lambda f, r: roi_align.multilevel_rotated_roi_align(f, r, (4, 8, 16, 32)))(
    maps, rois
  )
  level = np.asarray(roi_align.roi_levels(rois, 4))
  assert set(level.ravel()) == {0, 1, 2, 3}
  for image, i in np.ndindex(2, 9):
    at = level[image, i]
    want = loop(np.asarray(maps[at]), [[image, *np.asarray(rois[image, i])]], 7, 1 / 4 / 2**at, 2)
    np.testing.assert_allclose(got[image, i], want[0], atol=2e-5)


def test_level_borders():
  side = jnp.asarray([1.0, 55.9, 111.9, 112, 223.9, 224, 448, 5000])
  rois = jnp.stack([side * 0, side * 0, side * 2, side / 2, side], -1)
  assert roi_align.roi_levels(rois, 4).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
  assert roi_align.roi_levels(jnp.zeros((2, 5)), 4).tolist() == [0, 0]


@pytest.mark.parametrize('chunk', [1, 2**18])
def test_gradient_is_the_transpose(monkeypatch, chunk):
  """<A f, y> = <f, A' y>, and A' in chunks of one RoI is A' at once; boxes get no gradient."""
  monkeypatch.setattr(roi_align, 'CHUNK', chunk)
  maps, rois = levels_and_rois(r=5)
  run = lambda f, r: roi_align.multilevel_rotated_roi_align(f, r, (4, 8, 16, 32))

  @jax.jit
  def both(maps, rois):
    out, vjp = jax.vjp(run, maps, rois)
    return out, *vjp(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

  out, maps_bar, rois_bar = both(maps, rois)
  y = np.cos(np.arange(out.size)).reshape(out.shape)
  moved = sum(
    float((np.asarray(f, np.float64) * g).sum()) for f, g in zip(maps, maps_bar, strict=True)
  )
  np.testing.assert_allclose(moved, (np.asarray(out, np.float64) * y).sum(), rtol=1e-5)
  assert not rois_bar.any()


def test_half_precision_maps():
  """Sums are made in float32, also in the backward pass, whose many addends bfloat16 would lose."""
  maps = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
  rois = jnp.asarray([[0, 8, 8, 1e-3, 1e-3, 0]] * 200)
  out, vjp = jax.vjp(jax.jit(lambda f: roi_align.rotated_roi_align(f, rois)), maps)
  assert out.dtype == jnp.bfloat16 and (out == 1).all()
  grad = vjp(jnp.ones_like(out))[0]
  assert grad.dtype == jnp.bfloat16
  np.testing.assert_allclose(grad.astype(jnp.float32).sum(), 200 * 49 * 2, rtol=0.01)


def hbb_loop(image, box, size, ratio):
  """Of a box in cells; ratio 0: a sample a cell and side, at least one."""
  x1, y1, x2, y2 = np.asarray(box) - 0.5
  high, wide = (ratio or int(np.ceil(side / size)) for side in (y2 - y1, x2 - x1))
  out = np.zeros((size, size, image.shape[-1]))
  for i, j in np.ndindex(size, size):
    for p, q in np.ndindex(high, wide):
      y = y1 + (i + (p + 0.5) / high) * (y2 - y1) / size
      x = x1 + (j + (q + 0.5) / wide) * (x2 - x1) / size
      out[i, j] += bilinear(image, y, x) / (high * wide)
  return out


@pytest.mark.parametrize('ratio', [0, 2])
def test_horizontal_boxes_equal_the_loop(monkeypatch, ratio):
  monkeypatch.setattr(roi_align, 'ROWS', 1)  # a box at a time
  boxes = np.asarray(
    [
      [4, 4, 20, 12], [0, 0, 64, 6], [30, 1, 33, 63],  # usual, and thin
      [-20, -9, 90, 80], [60, 60, 75, 70], [70, 70, 80, 80],  # partly and wholly outside
      [0, 0, 64, 64], [5, 5, 5, 30], [9, 9, 9, 9],  # everything, and nothing
    ],
    np.float32,
  )  # fmt: skip
  boxes = np.stack([boxes, boxes[::-1] + 0.3])
  maps = features(3, 2, 32, 40, 3)
  run = jax.jit(lambda f, r: roi_align.multilevel_roi_align([f], r, (2,), 3, ratio))
  got = run(maps, boxes)
  for b, r in np.ndindex(boxes.shape[:2]):
    want = hbb_loop(maps[b], boxes[b, r] / 2, 3, ratio)
    np.testing.assert_allclose(got[b, r], want, atol=2e-5)


def test_horizontal_boxes_read_the_level_that_suits():
  sides = (16, 112, 224, 448)
  maps = [jnp.full((1, 64 // s, 64 // s, 2), s, jnp.bfloat16) for s in (4, 8, 16, 32)]
  boxes = jnp.asarray([[[32 - s / 2, 32 - s / 2, 32 + s / 2, 32 + s / 2] for s in sides]])

  def run(maps):
    return roi_align.multilevel_roi_align(maps, boxes, (4, 8, 16, 32))

  out, vjp = jax.vjp(jax.jit(run), maps)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out[0, :, 3, 3, 0].astype(jnp.float32), [4, 8, 16, 32])
  grads = vjp(jnp.ones_like(out))[0]
  # the smallest lies inside of its map; of the others 1 / 1.75, 1 / 3.5 and 1 / 7 a side do
  assert all(g.dtype == jnp.bfloat16 for g in grads) and float(grads[0].sum()) == 49 * 2
