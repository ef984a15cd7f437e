"""Parameters and multiply-accumulates against the official model's and against sums by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from sm3det_jax import cli
from sm3det_jax import config as config_lib
from sm3det_jax.analysis import account
from sm3det_jax.heads import two_stage

# MoE blocks of the last stages, million parameters, 1e9 multiply-accumulates
PUBLISHED = {
  'dense': ((), 65.719, 402.89),
  'SM3Det-T': (((0, 2), (0, 2, 4, 6, 8), (0, 2)), 178.174, 487.24),
}


def of_blocks(blocks, experts=8, top_k=2):
  c = config_lib.default()
  c.moe.update(blocks=((),) * (4 - len(blocks)) + tuple(blocks), num_experts=experts, top_k=top_k)
  return c


@functools.cache
def published(name):
  return account.account(of_blocks(PUBLISHED[name][0]))


@pytest.mark.parametrize('name', [pytest.param('dense', marks=pytest.mark.slow), 'SM3Det-T'])
def test_the_official_model_has_as_many(name):
  _, params, gmacs = PUBLISHED[name]
  counts = published(name)
  assert counts['params'] / 1e6 == pytest.approx(params, abs=1e-3)
  assert counts['gmacs_three_branches'] == pytest.approx(gmacs, abs=0.01)
  assert counts['gmacs_one_image'] == pytest.approx(gmacs / 3, abs=0.01)
  assert sum(p['params'] for p in counts['parts'].values()) == counts['params']
  parts = sum(m for p in counts['parts'].values() for m in p['gmacs'].values())
  assert parts == pytest.approx(counts['gmacs_three_branches'])


@pytest.mark.slow
def test_only_an_images_own_branch_counts_and_its_size():
  counts = account.account(of_blocks(()), (320, 160))
  head = counts['parts']['heads_rgb/roi_head']['gmacs']
  fc = two_stage.ROIS * (7 * 7 * 256 * 1024 + 1024 * 1024 + 1024 * (27 + 5))
  assert head == {'sar': 0, 'rgb': fc / 1e9, 'ifr': 0}
  backbone = counts['parts']['backbone']['gmacs']['sar']
  full = published('dense')['parts']['backbone']['gmacs']['sar']
  assert backbone == pytest.approx(full * 320 * 160 / 800**2)


def test_experts_count_as_tokens_times_k_and_padding_beside():
  counts = account.account(of_blocks(((0,),), experts=4, top_k=3), (320, 320))
  tokens, ffn = 10 * 10, 8 * 768**2
  experts = counts['parts']['backbone/experts']
  assert experts['params'] == 4 * (ffn + 5 * 768)
  assert experts['gmacs']['rgb'] == pytest.approx(tokens * 3 * ffn / 1e9)
  blocks = -(-300 // 64) + 4  # of 64 rows
  assert counts['gmacs_padding'] == pytest.approx(3 * (blocks * 64 - 300) * ffn / 1e9)


def test_a_program_is_counted_as_an_accelerator_runs_it():
  x, k = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 2, 8))  # two groups

  def program(x, k):
    with jax.named_scope('net.part'):
      numbers = ('NHWC', 'HWIO', 'NHWC')
      conv = lambda x, k: lax.conv_general_dilated(
        x, k, (2, 2), 'SAME', dimension_numbers=numbers, feature_group_count=2
      )
      y = lax.platform_dependent(x, k, cpu=lambda x, k: conv(x, k) * k[0, 0, 0, 0], cuda=conv)
      y = lax.map(lambda row: row @ jnp.ones((8, 5)), y[0])
    return y @ jnp.ones((5, 1000))  # in no part

  macs, padding = account._products(jax.make_jaxpr(program)(x, k).jaxpr, '', {'net': 1})
  assert macs == {'net': 3 * 3 * 8 * 9 * 2 + 3 * 3 * 8 * 5} and not padding['net']


def test_a_loop_of_unknown_length_is_refused():
  def program(x, n):
    with jax.named_scope('net'):
      return lax.fori_loop(0, n, lambda _, x: x @ x, x)

  traced = jax.make_jaxpr(program)(jnp.ones((2, 2)), 3)
  with pytest.raises(ValueError, match='unknown length'):
    account._products(traced.jaxpr, '', {'net': 1})


@pytest.mark.slow
def test_the_verb(capsys):
  assert cli.main(['account', '--config=quickstart', '--size=64x96', '--json']) == 0
  counts = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert set(counts['parts']) >= {'backbone', 'backbone/experts', 'neck', 'heads_sar/bbox_head'}
  assert cli.main(['account', '--config=quickstart', '--size=64x90']) == 2
  assert '64x90' in capsys.readouterr().err
  with pytest.raises(SystemExit, match='2'):  # not of the form
    cli.main(['account', '--config=quickstart', '--size=64'])
  assert "'64'" in capsys.readouterr().err


def test_the_table_adds_up():
  header, *rows, one, padding, encoder = account.table(published('SM3Det-T')).splitlines()
  assert header.split() == ['params', 'M', 'sar', 'rgb', 'ifr', 'sum', 'GMAC']
  assert rows[-1].split() == ['all', '178.174', '159.52', '163.86', '163.86', '487.24']
  sums = [sum(float(row.split()[i]) for row in rows[:-1]) for i in (1, -1)]
  assert sums == pytest.approx([178.174, 487.24], abs=0.1)
  assert '162.41' in one and '29.42' in padding
  counts = published('SM3Det-T')
  assert f'{counts["params_encoder"]:,}' in encoder and counts['sub_models'] == []
  experts = counts['parts']['backbone/experts']['params']
  assert counts['params_encoder'] - counts['params_active'] == experts * 6 // 8
