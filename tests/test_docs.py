"""The pages of docs/: their Python compiles, and what they name is there."""

import ast
import importlib.util
import pathlib
import re
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
FOLDERS = ('sm3det_jax', 'data_pipelines', 'configs', 'launch', 'tests', 'docs')
EXAMPLES = {
  'sm3det_jax/bench/first_batch.py',
  'sm3det_jax/heads/one_anchor.py',
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
  from data_pipelines import mixture

  (source,) = [b for b in blocks(ROOT / 'docs/extending.md') if 'first_batch' in b]
  monkeypatch.setattr(mixture, 'train_batches', lambda config: iter([{}] * config))
  module = {}
  exec(compile(source, 'first_batch', 'exec'), module)
  result = module['measure'](5, 2)
  assert result['batches'] == 2 and result['seconds'] >= 0
