"""The exact GELU against the error function of Python's library, in value, slope and memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax.layers.activations import gelu, gelu_tanh

H = np.linspace(-8, 8, 129)
Y = np.array([h / 2 * math.erfc(-h / 2**0.5) for h in H])
SLOPE = np.array(
  [math.erfc(-h / 2**0.5) / 2 + h * math.exp(-h * h / 2) / (2 * math.pi) ** 0.5 for h in H]
)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 2e-7), ('bfloat16', 2**-8)])
def test_gelu_and_its_slope_are_exact_to_the_last_bits(dtype, tolerance):
  h = jnp.asarray(H, dtype)  # exact in both
  y, backward = jax.vjp(gelu, h)
  (slope,) = backward(jnp.ones_like(h))
  assert y.dtype == slope.dtype == dtype
  for ours, exact in [(y, Y), (slope, SLOPE)]:
    np.testing.assert_array_less(
      np.abs(np.asarray(ours, np.float64) - exact), tolerance * (1 + np.abs(H))
    )


def test_a_backward_pass_keeps_one_array():
  h = jnp.asarray(H, jnp.float32)
  kept = jax.tree.leaves(jax.vjp(gelu, h)[1])
  assert [x.shape for x in kept] == [h.shape]


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-6), ('bfloat16', 2**-8)])
def test_gelu_by_tanh_is_its_formula(dtype, tolerance):
  want = [h / 2 * (1 + math.tanh((2 / math.pi) ** 0.5 * (h + 0.044715 * h**3))) for h in H]
  y = gelu_tanh(jnp.asarray(H, dtype))
  assert y.dtype == dtype and np.abs(Y - want).max() > 1e-4
  np.testing.assert_array_less(
    np.abs(np.asarray(y, np.float64) - want), tolerance * (1 + np.abs(H))
  )
