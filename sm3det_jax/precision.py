"""Where half precision ends: routers, softmaxes, box maths and losses are at least float32."""

import jax
import jax.numpy as jnp


def wide_dtype(dtype) -> jnp.dtype:
  """float64 stays float64, everything else is float32."""
  return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def wide(x: jax.Array) -> jax.Array:
  return x.astype(wide_dtype(x.dtype))


def compute(images: jax.Array, dtype: str) -> jax.Array:
  """Images in the type that `config.dtype` names, which is that of all that follows."""
  if dtype == 'auto':
    dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return images if dtype == 'float32' else images.astype(dtype)
