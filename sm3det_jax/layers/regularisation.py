"""What is dropped at random in training, and keys for it."""

import jax
import jax.numpy as jnp
import numpy as np


def drop_path(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes whole samples with probability `rate` and scales the rest (stochastic depth)."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
  return jnp.where(keep, x / (1 - rate), 0)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes single values with probability `rate` and scales the rest."""
  if key is None or rate == 0:
    return x
  return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def drop_path_rates(depths: tuple[int, ...], last: float) -> list[float]:
  """Rate of every block of the network: from 0 at the first one up to `last`."""
  return np.linspace(0, last, sum(depths)).tolist()


def split(key: jax.Array | None, n: int):
  """`n` keys, or `n` times None."""
  return (None,) * n if key is None else jax.random.split(key, n)
