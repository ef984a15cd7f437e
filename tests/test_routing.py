"""`sm3det routing` of hierarchical experts: shares by modality, layer and group, their overlap."""

import json

import jax
import numpy as np
import pytest

from data_pipelines import mixture
from sm3det_jax import model as models
from sm3det_jax.analysis import routing
from sm3det_jax.interop import ringmoe


def test_the_overlap_is_what_two_modalities_have_in_common():
  shares = {'opt': [0.5, 0.5, 0, 0], 'ms': [0.25, 0.5, 0.25, 0], 'sar_l1': [0, 0, 0, 1]}
  found = routing.overlap(shares)
  assert found['opt'] == {'opt': 1, 'ms': 0.75, 'sar_l1': 0}
  assert found['ms']['opt'] == 0.75 and found['sar_l1']['sar_l1'] == 1


def test_hierarchical_layers_are_counted_group_by_group(tmp_path, monkeypatch):
  config = ringmoe.config(
    dict(
      image=16,
      embed=8,
      depths=[1, 1],
      heads=[1, 2],
      window=4,
      ratio=2,
      NS=2,
      NC=3,
      mask_patch=8,
      modalities=['opt', 'sar_l1'],
    )  # fmt: skip
  )
  model = models.build(config)
  variables = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(0)

  def batches(config, task, split, size):
    images = rng.normal(size=(2, 16, 16, config.tasks[task].bands)).astype(np.float32)
    yield {'images': images, 'shapes': np.array([[16, 16], [8, 16]]), 'ids': ['a', 'b']}

  monkeypatch.setattr(mixture, 'eval_batches', batches)
  seen = []
  whole = model.routing
  monkeypatch.setattr(
    type(model), 'routing', lambda self, v, x, t: seen.append((x.shape, t)) or whole(v, x, t)
  )
  found = routing.measure(config, variables)
  assert [t for _, t in seen] == ['opt', 'sar_l1']
  names = [f'stage{i}_block0/{group}' for i in (0, 1) for group in ('spec', 'coll')]
  assert sorted(layer['name'] for layer in found['layers']) == sorted(names)
  for layer in found['layers']:
    experts = 2 if layer['name'].endswith('spec') else 3
    for shares in layer['top1'].values():
      assert len(shares) == experts and sum(shares) == pytest.approx(1)
    assert ('overlap' in layer) == (experts == 3)
    if experts == 3:
      a, b = layer['top1'].values()
      assert layer['overlap']['opt']['sar_l1'] == pytest.approx(np.minimum(a, b).sum())
  routing.write(found, tmp_path)
  assert json.loads((tmp_path / 'routing.json').read_text()) == found
  assert (tmp_path / 'routing.png').exists() and (tmp_path / 'overlap.png').exists()
