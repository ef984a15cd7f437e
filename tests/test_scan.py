"""Blocks that are alike, run as one loop: the same values, gradients and parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax import model as models
from sm3det_jax.backbones import scan, swin_v2
from sm3det_jax.backbones.ringmoe import RingMoE
from sm3det_jax.interop import ringmoe


class Looped(swin_v2.SwinV2, kw_only=True):
  loops = True


def network(kind):
  moe = dict(
    num_experts=2, top_k=1, noisy=True, gate='linear', softmax='before', level='grid',
    implementation='dense', same_start=False, stat_groups=1, capacity_factor=None,
  )  # fmt: skip
  return kind(
    tasks=('a', 'b'), depths=(6,), channels=(8,), heads=(2,), windows=(2,), remat=True,
    moe_blocks=((0, 2, 4),), moe=moe, mlp_ratio=2.0,
  )  # fmt: skip


@pytest.mark.slow  # two compilations
def test_the_loop_is_the_blocks_one_after_the_other():
  images = {n: jax.random.normal(jax.random.key(i), (1, 16, 16, 3)) for i, n in enumerate('ab')}
  plain, looped = network(swin_v2.SwinV2), network(Looped)
  variables = jax.jit(plain.init)(jax.random.key(0), images)
  shapes = jax.eval_shape(looped.init, jax.random.key(0), images)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)

  def loss(net, variables):  # with noise, so that every block has to have its own key
    out = net.apply(variables, images, jax.random.key(3))
    x = out.stages['b'][0]
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    return (x * weights).sum() + sum(u.sum() for u in jax.tree.leaves(out.usage)), out

  run = lambda net: jax.value_and_grad(lambda v: loss(net, v), has_aux=True)
  assert str(jax.make_jaxpr(run(looped))(variables)).count('length=3') == 2  # there and back
  got, want = (jax.device_get(jax.jit(run(net))(variables)) for net in (looped, plain))
  assert list(got[0][1].taps['a']) == list(want[0][1].taps['a'])

  def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())

  jax.tree.map(close, got, want)


@pytest.mark.slow  # two compilations
def test_pairs_of_hierarchical_experts_are_one_loop(monkeypatch):
  config = ringmoe.config(
    dict(
      image=32, embed=8, depths=[1, 6], heads=[1, 2], window=2, ratio=2, NS=2, NC=2, mask_patch=8,
      modalities=['opt', 'sar_l1'],
    )
  )  # fmt: skip
  found, lengths = [], []
  with jax.enable_x64():
    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)
    variables = wide(jax.jit(models.build(config).init)(jax.random.key(0)))
    batch = {
      name: {'images': jax.random.normal(jax.random.key(i), (1, 32, 32, task.bands))}
      for i, (name, task) in enumerate(config.tasks.items())
    }
    for loops in (True, False):
      monkeypatch.setattr(RingMoE, 'loops', loops)
      loss = functools.partial(models.build(config).loss, batch=batch, rng=jax.random.key(1))
      traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(variables)
      lengths.append(str(traced.jaxpr).count('length=3'))
      found.append(jax.device_get(traced.lower().compile()(variables)))
  assert lengths[0] == lengths[1] + 2  # there and back

  def close(a, b):
    assert a.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(np.abs(b).max(), 1))

  jax.tree.map(close, *found)


def blocks(kinds):
  block = lambda i, kind: swin_v2.Block(
    attention=dict(size=kind), hidden=4, gelu='erf', moe=None, epsilon=1e-5, drop_path_rate=0.0,
    name=f'block{i}',
  )  # fmt: skip
  return [block(i, kind) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize('kinds, lengths', [
  ('aaaa', [(4, 1)]),
  ('ababab', [(3, 2)]),
  ('abab', [(1, 1)] * 4),
  ('cabababd', [(1, 1), (3, 2), (1, 1)]),
  ('abababa', [(3, 2), (1, 1)]),
  ('aaabbb', [(3, 1), (3, 1)]),
  ('', []),
])  # fmt: skip
def test_blocks_are_cut_into_runs_of_what_repeats(kinds, lengths):
  found = scan.runs(blocks(kinds))
  assert [(len(groups), len(groups[0])) for groups in found] == lengths
  order = [block.name for groups in found for group in groups for block in group]
  assert order == [f'block{i}' for i in range(len(kinds))]
