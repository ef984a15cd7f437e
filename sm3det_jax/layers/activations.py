"""GELU, exact or by tanh, for which a backward pass keeps one array."""

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


def gelu_tanh_and_slope(h: jax.Array) -> tuple[jax.Array, jax.Array]:
  """As `gelu_and_slope`, of the approximation h (1 + tanh(sqrt(2 / pi) (h + 0.044715 h^3))) / 2."""
  x, scale = wide(h), (2 / jnp.pi) ** 0.5
  tanh = jnp.tanh(scale * (x + 0.044715 * x**3))
  slope = 1 + tanh + x * (1 - tanh * tanh) * scale * (1 + 3 * 0.044715 * x * x)
  return (0.5 * x * (1 + tanh)).astype(h.dtype), (0.5 * slope).astype(h.dtype)


@jax.custom_jvp
def gelu_tanh(h: jax.Array) -> jax.Array:
  """GELU by tanh (Hendrycks and Gimpel 2016, section 2), any shape."""
  return gelu_tanh_and_slope(h)[0]


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals, tangents):
  y, slope = gelu_tanh_and_slope(*primals)
  return y, slope * tangents[0]


GELUS = {'erf': gelu, 'tanh': gelu_tanh}  # by the function that they are made of
