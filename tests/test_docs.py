"""The pages of docs/: their Python compiles, and what they name is there."""

import ast
import importlib.util
import pathlib
import re
import textwrap

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import mixture, prepare
from data_pipelines.batch import Array
from data_pipelines.builders import formats
from data_pipelines.source import Source
from sm3det_jax import backbones, config
from sm3det_jax.config import phases
from sm3det_jax.config.backbones import BACKBONES
from sm3det_jax.config.registry import BackboneKind
from sm3det_jax.optim import groups

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
FOLDERS = ('sm3det_jax', 'data_pipelines', 'configs', 'launch', 'tests', 'docs')
EXAMPLES = {
  'sm3det_jax/bench/first_batch.py',
  'sm3det_jax/heads/one_anchor.py',
  'sm3det_jax/backbones/plain.py',
}  # files that a page tells its reader to write

pages = pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page):
  """The ```python blocks of a page."""
  return re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S)


def missing(text):
  """Files and modules of the project that a text names and that are not there."""
  for name in re.findall(
    r'(?:sm3det_jax|data_pipelines|configs|launch|tests|docs)/[\w/]+\.\w+', text
  ):
    if name not in EXAMPLES and not (ROOT / name).exists():
      yield name
  for name in re.findall(r'\bfrom ((?:sm3det_jax|data_pipelines|configs)[\w.]*) import', text):
    if importlib.util.find_spec(name) is None:
      yield name


@pages
def test_python_of_the_pages_compiles(page):
  for block in blocks(page):
    ast.parse(textwrap.dedent(block))


@pages
def test_what_the_pages_name_is_there(page):
  assert not list(missing(page.read_text()))


def test_a_name_that_is_gone_is_found():
  assert list(missing('see sm3det_jax/head_configs.py')) == ['sm3det_jax/head_configs.py']
  assert list(missing('from sm3det_jax.heads import common')) == []
  assert list(missing('from sm3det_jax.gone import x')) == ['sm3det_jax.gone']
  assert len(blocks(ROOT / 'docs/extending.md')) > 2


def test_the_benchmark_of_the_page_runs(monkeypatch):
  """On batches of its own, as nothing is prepared here."""
  (source,) = [b for b in blocks(ROOT / 'docs/extending.md') if 'first_batch' in b]
  monkeypatch.setattr(mixture, 'train_batches', lambda config: iter([{}] * config))
  module = {}
  exec(compile(source, 'first_batch', 'exec'), module)
  result = module['measure'](5, 2)
  assert result['batches'] == 2 and result['seconds'] >= 0


def test_the_format_of_the_page_prepares_a_data_set(tmp_path, monkeypatch):
  (source,) = [b for b in blocks(ROOT / 'docs/extending.md') if 'def read(' in b]
  module = {}
  exec(compile(source, 'table', 'exec'), module)
  row = formats.Format(module['read'], 'hbb', (('{raw}.csv', '{raw}'),))
  monkeypatch.setitem(formats.FORMATS, 'table', row)
  (tmp_path / 'in/train').mkdir(parents=True)
  for name in 'ab':
    cv2.imwrite(str(tmp_path / f'in/train/{name}.png'), np.full((40, 60, 3), 7, np.uint8))
  rows = ['a,ship,1,2,11,22,3.5', 'b,ship,5,5,9,9,1', 'c,x,0,0,1,1,0', 'b,boat,20,20,40,30,8']
  (tmp_path / 'in/train.csv').write_text('\n'.join(['image,class,x1,y1,x2,y2,length', *rows]))
  report = prepare.prepare(
    'table', tmp_path / 'in', tmp_path / 'out', name='mine', splits={'train': 'train.csv:train'}
  )
  assert 'row without an image' in report.table()
  data = Source(tmp_path / 'out', 'mine', 'train', dict(size=0, overlap=0, keep=0.7))
  assert data.classes == ('boat', 'ship') and data.extra == {'length': Array((), np.float32)}
  objects = {data[i]['id']: data[i]['objects'] for i in range(2)}
  np.testing.assert_array_equal(objects['a']['boxes'], [[1, 2, 11, 22]])
  np.testing.assert_array_equal(objects['b']['length'], [1, 8])
  np.testing.assert_array_equal(objects['b']['labels'], [1, 0])


def test_groups_and_phases_of_the_page_hold():
  sources = [b for b in blocks(ROOT / 'docs/extending.md') if b.startswith('config.')]
  c = config.load(['--config=quickstart'])
  for source in sources:
    exec(source, {'config': c})
  config.check(c)
  params = {'backbone': {'stem': 1, 'norm0': 2}, 'neck': {'bias': 3, 'kernel': 4}}
  rates = groups.rates(params, phases.groups(c))
  assert rates == {'backbone': {'stem': None, 'norm0': 0.1}, 'neck': {'bias': 1, 'kernel': 1}}
  assert [phases.phase_at(c, done) for done in (0, 999, 1000, 5000)] == [0, 0, 1, 2]


def test_the_backbone_of_the_page_has_its_stages(monkeypatch):
  (source,) = [b for b in blocks(ROOT / 'docs/extending.md') if '(Backbone' in b]
  module = {'__name__': 'plain'}
  exec(compile(source, 'plain', 'exec'), module)
  values = dict(type='plain', depths=(1, 1, 1, 1), channels=(8, 8, 16, 16), drop_path_rate=0.0)
  row = BackboneKind(
    lambda size: (ConfigDict(values | {'experts_from_one': True}), {'blocks': ((),) * 4}),
    module['Plain'],
  )
  monkeypatch.setitem(BACKBONES, 'plain', row)
  c = config.load(['--config=quickstart'])
  config.use_backbone(c, 'plain', 'T')
  model = backbones.build(config.check(c), c.tasks)
  images = {'sar': jnp.ones((2, 64, 64, 3)), 'rgb': jnp.ones((1, 64, 64, 3))}
  out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
  assert [x.shape for x in out.stages['sar']] == [
    (2, 16, 16, 8), (2, 8, 8, 8), (2, 4, 4, 16), (2, 2, 2, 16),
  ]  # fmt: skip
