"""The router: gate logits, noise, top-k, and the statistics that the balance loss is made of.

Sources: SM3Det equation 2, whose softmax comes before the top-k, and its released code, where it
comes after (gates of a token sum to 1) and logits are noisy in training; the statistics are those
of Shazeer et al., "Outrageously large neural networks" (2017), appendix A.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines.errors import UserError
from sm3det_jax.precision import wide


class Routing(NamedTuple):
  """Where `N` tokens go and what the balance loss needs of it."""

  indices: jax.Array  # [N, K] experts, the best first
  weights: jax.Array  # [N, K] gates; they sum to 1 over K, or to less with the softmax before
  importance: jax.Array  # [N, E] gate of every expert, 0 outside of the top k
  load: jax.Array  # [N, E] (smooth) membership of the top k


def unit(x: jax.Array, axis: int) -> jax.Array:
  """`x` over its L2 norm, which counts as at least 1e-12 (finite gradient at zero)."""
  square = jnp.sum(x * x, axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def draw_noise(key: jax.Array, shape: tuple, dtype) -> jax.Array:
  return jax.random.normal(key, shape, dtype)


def route(
  logits: jax.Array, k: int, noise: jax.Array | None = None, noise_std: jax.Array | None = None,
  softmax: str = 'after',
) -> Routing:  # fmt: skip
  """Top-k routing of [N, E] clean logits, noisy when `noise` and its [N, E] deviation are given.

  The softmax is over the chosen logits, 'after' the top-k, or over all of them, 'before' it.

  Load is the probability that an expert stays in the top k under a new draw of its own noise; it is
  a hard 0 or 1 without noise, or where every expert is chosen.
  """
  n, e = logits.shape
  noisy = logits if noise is None else logits + noise_std * noise
  top, indices = jax.lax.top_k(noisy, min(k + 1, e))
  if softmax == 'after':
    weights = jax.nn.softmax(top[:, :k], -1)
  else:
    weights = jnp.exp(top[:, :k] - jax.nn.logsumexp(noisy, -1, keepdims=True))
  chosen = jax.nn.one_hot(indices[:, :k], e, dtype=weights.dtype)  # [N, K, E]
  importance = jnp.einsum('nk,nke->ne', weights, chosen)
  load = chosen.sum(1)
  if noise is not None and k < e:
    threshold = jnp.where(load > 0, top[:, k : k + 1], top[:, k - 1 : k])  # of the other experts
    load = jax.scipy.stats.norm.cdf((logits - threshold) / noise_std)
  return Routing(indices[:, :k], weights, importance, load)


def cv_squared(x: jax.Array) -> jax.Array:
  """Squared coefficient of variation over the last axis (unbiased variance)."""
  if x.shape[-1] == 1:
    return jnp.zeros(x.shape[:-1], x.dtype)
  return jnp.var(x, -1, ddof=1) / (jnp.mean(x, -1) ** 2 + 1e-10)


class Router(nn.Module):
  """Gate of `N` tokens over `E` experts.

  Attributes:
    num_experts: E.
    top_k: experts a token goes to.
    noisy: learnable Gaussian noise on the logits in training.
    gate: 'cosine' (a projection to min(C // 2, 256), cosine to expert embeddings, a learnable
      temperature) or 'linear' (no bias).
    softmax: as `route`.
  """

  num_experts: int
  top_k: int
  noisy: bool = True
  gate: str = 'cosine'
  softmax: str = 'after'

  @nn.compact
  def __call__(self, x: jax.Array, noise_key: jax.Array | None = None) -> Routing:
    """Routes tokens `x` [N, C]; noise is drawn when a key is given."""
    if not 1 <= self.top_k <= self.num_experts:
      raise UserError(f'top_k={self.top_k} must be 1 to num_experts={self.num_experts}')
    x = wide(x)
    noise = std = None
    w_noise = self.param('noise', nn.initializers.zeros, (x.shape[-1], self.num_experts))
    if self.noisy and noise_key is not None:
      std = jax.nn.softplus(x @ w_noise.astype(x.dtype)) + 0.01
      noise = draw_noise(noise_key, std.shape, std.dtype)
    return route(self._logits(x), self.top_k, noise, std, self.softmax)

  def _logits(self, x):
    c, e = x.shape[-1], self.num_experts
    if self.gate == 'linear':
      return x @ self.param('gate', nn.initializers.zeros, (c, e)).astype(x.dtype)
    p = min(c // 2, 256)
    bound = c**-0.5  # the default initialiser of a linear layer in the reference
    uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    z = x @ self.param('projection', uniform, (c, p)).astype(x.dtype)
    z = z + self.param('projection_bias', uniform, (p,)).astype(x.dtype)[None]
    embedding = self.param('embedding', nn.initializers.normal(0.01), (p, e)).astype(x.dtype)
    temperature = self.param('temperature', nn.initializers.constant(jnp.log(2.0)), (1,))
    scale = jnp.exp(jnp.minimum(temperature.astype(x.dtype), jnp.log(100.0)))
    return unit(z, -1) @ unit(embedding, 0) * scale[None]
