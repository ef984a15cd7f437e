"""docs/tables.md: every command holds together and makes a model as large as the page says."""

import pathlib
import re

import jax
import pytest

from sm3det_jax import config
from sm3det_jax.analysis import account
from sm3det_jax.detector import build

PAGE = pathlib.Path(__file__).parents[1] / 'docs/tables.md'
COMMAND = re.compile(r'`sm3det train --config=(\S+) --workdir=(\S+)`')
PARTS = 5
SAMPLE = ('sm3det', 'baselines:unidet', 'baselines:separate,task=rgb')


def rows():
  """(config, workdir, millions of parameters, GMACs as counted) of every row with a command."""
  for line in PAGE.read_text().splitlines():
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    if len(cells) > 5 and (found := COMMAND.fullmatch(cells[1])):
      yield *found.groups(), float(cells[3]), float(cells[5])


def load(name):
  return config.load([f'--config={name}'])


def params(c):
  variables = jax.eval_shape(build(c).init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) / 1e6


def test_a_config_has_one_folder_and_one_size():
  found = list(rows())
  assert len(found) > 100
  for name in {row[0] for row in found}:
    assert len({row[1:] for row in found if row[0] == name}) == 1, name
  assert len({row[0] for row in found}) == len({row[1] for row in found})


def test_every_config_holds_together():
  for name in {row[0] for row in rows()}:
    load(name)  # checks it


@pytest.mark.parametrize('name', SAMPLE)
def test_models_are_as_large_as_the_page_says(name):
  counted = next(row[2] for row in rows() if row[0] == name)
  assert params(load(name)) == pytest.approx(counted, abs=0.006)


@pytest.mark.slow
@pytest.mark.drawn(PARTS)
@pytest.mark.parametrize('part', range(PARTS))
def test_all_models_are_as_large_as_the_page_says(part):
  found, sizes = list(rows()), {}  # of models; rows that differ in training alone share one
  start, stop = (len(found) * i // PARTS for i in (part, part + 1))
  for name, _, counted, _ in found[start:stop]:
    c = load(name)
    model = repr([c.tasks, c.backbone, c.moe, c.neck, c.label_space])
    if model not in sizes:
      sizes[model] = params(c)
    assert sizes[model] == pytest.approx(counted, abs=0.006), name


@pytest.mark.slow
@pytest.mark.drawn(4)
@pytest.mark.parametrize(
  'name',
  [
    'sm3det:backbone=lsknet',
    'sm3det:sar=retinanet,rgb=s2anet',
    'sm3det:sar=cascade_rcnn,rgb=roi_transformer',
    'ablations:moe=last2,experts=3,top_k=1,dla=none,level=image',
  ],
)
def test_products_are_as_many_as_the_page_says(name):
  counts = account.account(load(name))
  page = next(row[3] for row in rows() if row[0] == name)
  assert counts['gmacs_three_branches'] == pytest.approx(page, abs=0.06)
  assert all(any(part['gmacs'].values()) for part in counts['parts'].values())
