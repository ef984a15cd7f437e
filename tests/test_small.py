"""`small=1`: every experiment in small is the same experiment, and a small one."""

import itertools

import jax
import pytest
from test_tables import rows

from data_pipelines.errors import UserError
from sm3det_jax import config, quickstart
from sm3det_jax.config import small
from sm3det_jax.detector import build

OTHERS = ('quickstart', 'overfit', 'overfit:sar=cascade_rcnn', 'real_sample', 'real_sample:overfit',
          'real_sample:full', 'sm3det_convnext_t', 'sm3det:backbone=ringmoe,size=tiny',
          'ringmoe_downstream:dior_r,experts=ep,frozen=1', 'ringmoe_downstream:hrsid')  # fmt: skip
KEPT = ('seed', 'model', 'label_space', 'task_balance', 'sampling', 'remat', 'dtype')


def in_small(name):
  return f'{name}{"," if ":" in name else ":"}small=1'


def load(name):
  return config.load([f'--config={name}'])


def test_every_family_keeps_its_experiment_in_small():
  names = sorted({row[0] for row in rows()})
  for name in itertools.chain(OTHERS, names[::10]):
    c, s = load(name), load(in_small(name))
    assert all(c[key] == s[key] for key in KEPT), name
    for key in set(c.moe) - {'blocks'}:
      assert c.moe[key] == s.moe[key], name
    assert list(map(bool, c.moe.blocks)) == list(map(bool, s.moe.blocks)), name
    for key in ('type', 'stems', 'grn', 'adapters', 'squad'):
      assert c.backbone.get(key) == s.backbone.get(key), name
    assert list(c.tasks) == list(s.tasks), name
    for t, u in zip(c.tasks.values(), s.tasks.values(), strict=True):
      assert (t.kind, t.ratio, t.head.type) == (u.kind, u.ratio, u.head.type), name
      assert u.dataset.startswith('scenes_') and max(u.size) < 100, name
    assert s.optim.steps <= 30 and s.batch_size <= 8, name


@pytest.mark.slow
def test_all_rows_hold_together_in_small():
  for name in sorted({row[0] for row in rows()}):
    load(in_small(name))  # checks it


@pytest.mark.slow
def test_a_small_model_is_small():
  c = load('sm3det:backbone=swin,size=L,small=1')
  variables = jax.eval_shape(build(c).init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) < 10e6


def test_small_has_no_other_value_than_a_number():
  with pytest.raises(UserError, match="argument 'small=yes': 'yes' is no int"):
    load('sm3det:small=yes')
  assert load('sm3det:small=0').to_json() == load('sm3det').to_json()


def test_the_quickstart_draws_for_nothing_but_scenes(tmp_path):
  with pytest.raises(UserError, match='soi_det_sar.*small=1'):
    quickstart.draw_and_prepare(load('sm3det'), tmp_path, {'train': 1})
  assert not (tmp_path / 'data').exists()


def test_a_run_draws_as_many_scenes_as_it_looks_at():
  assert quickstart.scene_counts(load('quickstart')) == {'train': 480, 'test': 48}
  assert quickstart.scene_counts(load('sm3det:small=1')) == {'train': 40, 'test': 6}


def test_a_shorter_run_has_its_warm_up_and_milestones_sooner():
  c = small.shortened(load('quickstart'), 120)
  assert (c.optim.steps, c.optim.milestones) == (120, (85, 110))
  assert (c.optim.warmup_steps, c.dla.warmup_steps) == (5, 5)


def test_a_model_without_experts_has_no_routing(monkeypatch, tmp_path):
  c = load('baselines:unidet,small=1')
  for module, name, result in (
    (quickstart, 'draw_and_prepare', None),
    (quickstart.train, 'train', None),
    (quickstart.checkpoint, 'restore_for_inference', (c, {})),
    (quickstart.evaluate, 'evaluate', {}),
    (quickstart.report, 'write', tmp_path / 'report.html'),
    (quickstart.table, 'render', ''),
  ):
    monkeypatch.setattr(module, name, lambda *_, result=result, **__: result)
  assert quickstart.run(c, tmp_path, {}) == tmp_path / 'report.html'
  assert not (tmp_path / 'routing').exists()
