"""`sm3det bench rmoe`: time of RingMoE's layer of hierarchical experts over that of dense FFNs.

A token meets three FFNs of the layer: a specialised, a collaborative and the shared one. So three
dense FFNs of the same tokens are what it could cost at best; what it costs beyond that are routers,
the way to the experts and back, and the reading and writing of more weights. The layer is that of
the first stage of the giant, the tokens are those of one 192 px image of each modality.
"""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sm3det_jax.config import ConfigDict
from sm3det_jax.moe import hierarchical
from sm3det_jax.moe.experts import FFNS
from sm3det_jax.precision import compute

MODALITIES, SPECIALISED, COLLABORATIVE = 4, 4, 4
CHANNELS, HIDDEN, TOKENS = 448, 4 * 448, 48**2  # tokens of each modality
DENSE = 3
ALPHA = 0.01  # weight of the balance loss
FAVOUR = 2.0  # logit that each router's first expert is ahead where routing is skewed


def measure(config: ConfigDict, steps: int = 7) -> dict[str, float]:
  """Times forward and backward pass, all sides in turn within each round.

  Args:
    config: its `dtype` is that of the products.
    steps: rounds.

  Returns:
    Medians over the rounds: 'dense_ms', 'layer_ms', 'skewed_ms', 'layer_over_dense' and
    'skewed_over_layer' (of the rounds' ratios); 'largest_share' and 'largest_share_skewed' of the
    tokens, of a collaborative expert.
  """
  keys = jax.random.split(jax.random.key(0), 4)
  modality = jnp.repeat(jnp.arange(MODALITIES), TOKENS)
  normal = lambda key: jax.random.normal(key, (len(modality), CHANNELS), jnp.float32)
  x, cotangent = (compute(normal(key), config.dtype) for key in keys[:2])
  x = x.at[:, 0].set(1)  # what the routers of skewed routing see in every token
  layer, rivals = _layer(keys[2]), _dense(keys[3])
  layers = {'layer': layer, 'skewed': _skewed(layer)}
  moe = _timed(lambda layer, x: hierarchical.rmoe(layer, x, modality)[:2], cotangent)
  dense = _timed(lambda ffns, x: (sum(FFNS['erf'].forward(f, x)[1] for f in ffns), 0.0), cotangent)
  jobs = {'dense': lambda: dense(rivals, x)}
  jobs |= {name: lambda own=own: moe(own, x) for name, own in layers.items()}
  times = _rounds(jobs, steps)
  of_layer, skewed = times['layer'] / times['dense'], times['skewed'] / times['layer']
  result = {f'{name}_ms': 1e3 * float(np.median(t)) for name, t in times.items()}
  result |= {
    'layer_over_dense': float(np.median(of_layer)),
    'skewed_over_layer': float(np.median(skewed)),
  }
  for name, own in (('largest_share', layer), ('largest_share_skewed', layers['skewed'])):
    _, _, routing = jax.jit(hierarchical.rmoe)(own, x, modality)
    counts = np.bincount(np.asarray(routing['coll'].indices).ravel(), minlength=COLLABORATIVE)
    result[name] = float(counts.max() / counts.sum())
  return result


def _timed(forward: Callable, cotangent) -> Callable:
  """Value and gradients of weights and tokens; a random cotangent, so that no product is spared."""

  def loss(weights, x):
    y, balance = forward(weights, x)
    return (y * cotangent).sum(dtype=jnp.float32) + ALPHA * balance

  return jax.jit(jax.value_and_grad(loss, (0, 1)))


def _rounds(jobs: dict[str, Callable], steps: int) -> dict[str, np.ndarray]:
  """{name: seconds of each round}, the first round, which compiles, left out."""
  times = {name: [] for name in jobs}
  for _ in range(steps + 1):
    for name, job in jobs.items():
      start = time.perf_counter()
      jax.block_until_ready(job())
      times[name].append(time.perf_counter() - start)
  return {name: np.array(t[1:]) for name, t in times.items()}


def _ffns(key, lead: Sequence[int]) -> dict[str, jax.Array]:
  """Arrays of FFNs, `lead` in front."""
  normal = lambda key, c, d: jax.random.normal(key, (*lead, c, d), jnp.float32) * c**-0.5
  w1, w2 = jax.random.split(key)
  return {
    'w1': normal(w1, CHANNELS, HIDDEN),
    'b1': jnp.zeros((*lead, HIDDEN)),
    'w2': normal(w2, HIDDEN, CHANNELS),
    'b2': jnp.zeros((*lead, CHANNELS)),
  }


def _layer(key):
  """A layer of `hierarchical.rmoe` whose routers spread the tokens evenly."""
  layer, groups = {}, {'spec': (MODALITIES, SPECIALISED), 'coll': (COLLABORATIVE,), 'shared': ()}
  for (name, lead), own in zip(groups.items(), jax.random.split(key, len(groups)), strict=True):
    layer |= {f'{name}.{k}': a for k, a in _ffns(own, lead).items()}
    if lead:
      router = jax.random.normal(own, (*lead, CHANNELS), jnp.float32) * CHANNELS**-0.5
      layer[f'{name}.router'] = router.at[..., 0].set(0)
  return layer


def _skewed(layer):
  """The layer whose routers favour their first expert."""
  favour = lambda a: a.at[..., 0, 0].set(FAVOUR)
  return layer | {k: favour(layer[k]) for k in ('spec.router', 'coll.router')}


def _dense(key):
  return [tuple(_ffns(k, ()).values()) for k in jax.random.split(key, DENSE)]
