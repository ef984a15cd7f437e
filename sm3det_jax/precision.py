"""Where half precision ends: routers, softmaxes, box maths and losses are at least float32."""

import jax
import jax.numpy as jnp


def wide_dtype(dtype) -> jnp.dtype:
  """float64 stays float64, everything else is float32."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def wide(x: jax.Array) -> jax.Array:
  return x.astype(wide_dtype(x.dtype))
