"""Deformable and aligned convolutions against plain loops, plain convolutions and differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax.geometry import align_conv

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
deform_conv = jax.jit(align_conv.deform_conv)


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(3, 3, 3, 2))
  return x, rng.uniform(-3, 3, (2, 4, 5, 9, 2)), kernel  # a third of the taps read outside


def loop(x, offsets, kernel):
  _, height, width, _ = x.shape
  out = np.zeros((*x.shape[:3], kernel.shape[-1]))
  for b, i, j in np.ndindex(x.shape[:3]):
    for tap, (down, right) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
      y, z = np.asarray([i + down, j + right]) + offsets[b, i, j, tap]
      for row, column in itertools.product(range(height), range(width)):
        near = max(0, 1 - abs(y - row)) * max(0, 1 - abs(z - column))
        out[b, i, j] += near * x[b, row, column] @ kernel[down + 1, right + 1]
  return out


def test_deformable_convolution_equals_the_loop(arrays):
  got = deform_conv(*(jnp.asarray(a, jnp.float32) for a in arrays))
  np.testing.assert_allclose(got, loop(*arrays), atol=1e-5)


def test_gradients_equal_differences(arrays):
  with jax.enable_x64(True):
    args = [jnp.asarray(a) for a in arrays]
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5, 2)))
    value = jax.jit(lambda *args: (align_conv.deform_conv(*args) * weight).sum())
    grads = jax.jit(jax.grad(value, (0, 1, 2)))(*args)
    rng = np.random.default_rng(2)
    for k, grad in enumerate(grads):
      step = jnp.asarray(rng.normal(size=grad.shape)) * 1e-7
      moved = lambda s, k=k, step=step: value(*args[:k], args[k] + s * step, *args[k + 1 :])
      assert grad.dtype == jnp.float64
      np.testing.assert_allclose((grad * step).sum(), (moved(1) - moved(-1)) / 2, rtol=1e-5)


def test_without_offsets_it_is_a_convolution(arrays):
  x, offsets, kernel = (jnp.asarray(a, jnp.float32) for a in arrays)
  want = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=NUMBERS)
  np.testing.assert_allclose(deform_conv(x, jnp.zeros_like(offsets), kernel), want, atol=1e-5)
  far = deform_conv(x, jnp.full_like(offsets, 1e12), kernel)
  np.testing.assert_array_equal(far, 0)
  half = deform_conv(x.astype(jnp.bfloat16), offsets, kernel)
  full = np.asarray(deform_conv(x, offsets, kernel))
  assert half.dtype == jnp.bfloat16 and np.abs(half.astype(jnp.float32) - full).max() < 0.2


def test_a_cell_sized_box_leaves_the_taps_where_they_are():
  """And a turned, moved or larger one turns, moves and spreads them."""
  stride, cells = 8, np.stack(np.meshgrid(np.arange(4), np.arange(3), indexing='xy'), -1)
  box = lambda *rest: np.concatenate(
    [cells * stride, np.broadcast_to(np.asarray(rest, np.float32), (3, 4, 3))], -1
  )
  offsets = lambda *rest: np.asarray(align_conv.align_offsets(jnp.asarray(box(*rest)), stride))
  taps = align_conv.TAPS
  np.testing.assert_allclose(offsets(24.0, 24.0, 0.0), 0, atol=1e-6)
  wide = offsets(48.0, 24.0, 0.0)
  np.testing.assert_allclose(wide, np.broadcast_to(taps * [0, 1], wide.shape), atol=1e-6)
  turned = offsets(24.0, 24.0, np.pi / 2)  # clockwise: what was on the right is below
  want = np.stack([taps[:, 1], -taps[:, 0]], -1) - taps
  np.testing.assert_allclose(turned, np.broadcast_to(want, turned.shape), atol=1e-6)
