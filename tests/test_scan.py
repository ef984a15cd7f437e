"""Blocks that are alike, run as one loop: the same values, gradients and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sm3det_jax.backbones import scan, swin_v2


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
