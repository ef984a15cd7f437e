"""GELU; for the exact one a backward pass keeps one array."""

import jax
import jax.numpy as jnp
from jax import lax

from sm3det_jax.precision import wide


def gelu_and_slope(h: jax.Array) -> tuple[jax.Array, jax.Array]:
  """h Phi(h) and its derivative, in the shape and dtype of h; at least float32 inside."""
  x = wide(h)
  cdf = 0.5 * (1 + lax.erf(x * 2**-0.5))
  slope = cdf + x * jnp.exp(-0.5 * x * x) * (2 * jnp.pi) ** -0.5
  return (x * cdf).astype(h.dtype), slope.astype(h.dtype)


@jax.custom_jvp
def gelu(h: jax.Array) -> jax.Array:
  """Exact GELU (Hendrycks and Gimpel 2016), any shape.

  A backward pass keeps the slope alone, where that of `jax.nn.gelu` keeps three arrays, in the
  widest layers of the network.
  """
  return gelu_and_slope(h)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
  y, slope = gelu_and_slope(*primals)
  return y, slope * tangents[0]


def gelu_tanh(h: jax.Array) -> jax.Array:
  """GELU by its approximation with tanh, any shape."""
  return jax.nn.gelu(wide(h), approximate=True).astype(h.dtype)


GELUS = {'erf': gelu, 'tanh': gelu_tanh}  # by the function that they are made of
