"""Attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sm3det_jax.precision import wide


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None = None,
  scale: float | None = None,
) -> jax.Array:
  """Attention of q [.., N, heads, d] over k, v [.., M, heads, d]; softmax in at least float32.

  Args:
    bias: added to the logits, broadcastable to [.., heads, N, M].
    scale: of the logits, by default d^-0.5.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  logits = jnp.einsum('...nhd,...mhd->...hnm', q * scale, k)
  logits = wide(logits)
  if bias is not None:
    logits = logits + bias.astype(logits.dtype)
  return jnp.einsum('...hnm,...mhd->...nhd', nn.softmax(logits).astype(v.dtype), v)
