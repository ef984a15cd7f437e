"""What the devices of each mesh send each other in a step, read off the compiled program."""

import functools
import math
import re

import jax
import pytest
from tiny import SIZE, tiny_config

from sm3det_jax import detector, sharding
from sm3det_jax.analysis import compile_step, hlo
from sm3det_jax.optim import optimizer, training

MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
SMALL = 64 * 1024  # bytes of all sums over the batch: normalisers, usage of experts, gradient norm


@functools.cache
def compiled(data, expert, capacity_factor=0.0):
  """(the step's HLO, {kind: (count, bytes)} of its collectives, config, abstract parameters)."""
  config = tiny_config(groups=8, ema=0.0)
  config.moe.update(blocks=((), (), (), (0,)), capacity_factor=capacity_factor)
  del config.tasks['ifr']
  config.batch_size = 3 * 8
  config.mesh.update(data=data, expert=expert)
  mesh = sharding.make_mesh(config.mesh)
  model = detector.build(config)
  tx = optimizer.build(config, model.term_groups)
  state = training.abstract_state(config, model, tx, mesh)
  with jax.set_mesh(mesh):
    step = training.sharded_step(config, model, tx, mesh)
    lowered = step.lower(state, compile_step.abstract_batch(config, mesh))
    text = lowered.compile().as_text()
  sent = {}
  # XLA:CPU cannot cut the router's top_k by rows and gathers what it reads: known, and small
  router = re.compile(r' all-gather\(.*/moe/.*/top_k"')
  lines = [line for line in text.splitlines() if not router.search(line)]
  # bodies of loops once: what a loop sums on every turn are a few numbers
  for c in hlo.collectives(hlo.TRIPS.sub('', '\n'.join(lines))):
    if c['devices'] == 1:
      continue
    count, size = sent.get(c['op'], (0, 0))
    sent[c['op']] = count + c['count'], size + c['bytes']
  return text, sent, config, state['model']['variables']['params']


def held(params):
  """Bytes of the parameters on one device."""
  return sum(
    math.prod(p.sharding.shard_shape(p.shape)) * p.dtype.itemsize for p in jax.tree.leaves(params)
  )


def tokens_of_a_device(config):
  """(tokens, channels) of the MoE layer in the last stage."""
  return config.batch_size // 8 * (SIZE // 32) ** 2, config.backbone.channels[3]


@pytest.mark.slow
@pytest.mark.drawn(4)
@pytest.mark.parametrize('data, expert', MESHES)
def test_collectives_of_a_step(data, expert):
  text, sent, config, params = compiled(data, expert)
  assert not compile_step.HOST.findall(text)
  sums = sent.pop('all-reduce')
  # every gradient once, but that of a layer over the five levels once a level, and of the neck's
  # once a task at most; experts are summed over `data` alone, which has nothing to do at data=1
  mine = {k: v for k, v in leaves(params).items() if data > 1 or 'experts_' not in k}
  levels = {k: v for k, v in mine.items() if 'heads_' in k and 'roi_head' not in k}
  parts = held(mine) + 4 * held(levels)
  most = parts + held({k: v for k, v in mine.items() if 'neck' in k}) + SMALL
  assert parts <= sums[1] <= most and sums[0] < 20, (sums, parts, most)
  if expert == 1:
    assert not sent
    return
  t, c = tokens_of_a_device(config)
  k, everyone = config.moe.top_k, expert * t
  # tokens, indices, gates go out, results' gradients come; gradients of tokens and gates go home
  assert sent.pop('all-gather') == (4, 4 * everyone * (c + k + k + c))
  assert sent.pop('reduce-scatter') == (3, 4 * t * (c + c + k))
  assert not sent


@pytest.mark.slow
def test_collectives_of_slots():
  text, sent, config, _ = compiled(2, 4, 1.0)
  t, c = tokens_of_a_device(config)
  experts = config.moe.num_experts
  slots = -(-t * config.moe.top_k // experts)
  # out and back, both ways; and how many slots are used
  assert sent['all-to-all'] == (5, 4 * (4 * experts * slots * c + experts))
  assert set(sent) == {'all-to-all', 'all-reduce'}


def leaves(params):
  return {jax.tree_util.keystr(path): p for path, p in jax.tree.leaves_with_path(params)}
