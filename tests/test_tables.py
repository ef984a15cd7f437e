"""docs/tables.md: every command holds together and makes a model as large as the page says."""

import pathlib
import re

import jax
import pytest

from sm3det_jax import config, model
from sm3det_jax.analysis import account

PAGE = pathlib.Path(__file__).parents[1] / 'docs/tables.md'
COMMAND = re.compile(r'`sm3det train --config=(\S+) --workdir=(\S+)`')
PARTS = 5
ACCOUNT = re.compile(r'`sm3det account --config=(\S+)`')
PRETRAIN = re.compile(r'sm3det pretrain --config=(\S+) --workdir=(\S+)')
SAMPLE = ('sm3det', 'baselines:unidet', 'baselines:separate,task=rgb')


def tables(of_ringmoe):
  """The cells of every line of one of the two papers."""
  for line in PAGE.read_text().split('\n## RingMoE\n')[of_ringmoe].splitlines():
    yield [cell.strip() for cell in line.strip('|').split('|')]


def rows():
  """(config, workdir, millions of parameters, GMACs as counted) of every row with a command."""
  for cells in tables(False):
    if len(cells) > 5 and (found := COMMAND.fullmatch(cells[1])):
      yield *found.groups(), float(cells[3]), float(cells[5])


def counted(text):
  return float(text.replace(',', ''))


def ringmoe_detectors():
  """(config, workdir, millions of parameters as counted, mAP@50 as printed) of RingMoE's rows."""
  for cells in tables(True):
    if len(cells) > 5 and (found := COMMAND.fullmatch(cells[2])):
      yield *found.groups(), counted(cells[3]), float(cells[4])


def ringmoe_encoders():
  """(config, millions of parameters of the encoder as counted)."""
  for cells in tables(True):
    if len(cells) > 4 and (found := ACCOUNT.fullmatch(cells[2])):
      yield found[1], counted(cells[4])


def load(name):
  return config.load([f'--config={name}'])


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6


def params(c):
  return size(jax.eval_shape(model.build(c).init, jax.random.key(0))['params'])


def encoder(c):
  """Millions of parameters without decoders and mask token."""
  backbone = jax.eval_shape(model.build(c).init, jax.random.key(0))['params']['backbone']
  return size(backbone) - size(backbone['mask_token'])


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
    key = repr([c.tasks, c.backbone, c.moe, c.neck, c.label_space])
    if key not in sizes:
      sizes[key] = params(c)
    assert sizes[key] == pytest.approx(counted, abs=0.006), name


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


def test_the_rows_of_ringmoe_hold_together():
  detectors, encoders = list(ringmoe_detectors()), list(ringmoe_encoders())
  assert len(detectors) == 20 and len(encoders) == 8
  assert len({row[0] for row in detectors}) == len({row[1] for row in detectors}) == 20
  for name in [*(row[0] for row in detectors), *(row[0] for row in encoders)]:
    load(name)  # checks it
  printed = sorted({row[3] for row in detectors})
  assert printed == sorted({  # facts of the paper, as its tables have them
    83.33, 81.37, 81.60, 82.45, 98.13, 98.18, 97.51, 97.80, 74.90, 76.04, 92.17, 94.20, 89.72,
    93.66, 93.24, 93.92, 92.68, 93.16, 94.66,
  })  # fmt: skip


def test_what_ringmoe_starts_from_is_made_on_the_page():
  page = PAGE.read_text()
  runs = {folder: name for name, folder in PRETRAIN.findall(page)}
  assert len(runs) == 6
  for name in runs.values():
    load(name)
  for name, *_ in ringmoe_detectors():
    start = load(name).init_from
    run, form, modality = re.fullmatch(r'(.*)_(kc|ks|ka|ep)_(opt|sar_l2)', start).groups()
    assert run in runs and modality in load(runs[run]).tasks


@pytest.mark.parametrize('name', ['ringmoe:size=base,modalities=opt,dense=1'])
def test_an_encoder_of_ringmoe_is_as_large_as_the_page_says(name):
  assert encoder(load(name)) == pytest.approx(dict(ringmoe_encoders())[name], abs=0.006)


@pytest.mark.slow
@pytest.mark.drawn(3)
@pytest.mark.parametrize('name', ['dior', 'hrsid', 'sar_aircraft,experts=ep'])
def test_a_detector_of_ringmoe_is_as_large_as_the_page_says(name):
  name = f'ringmoe_downstream:{name}'
  page = next(row[2] for row in ringmoe_detectors() if row[0] == name)
  assert params(load(name)) == pytest.approx(page, abs=0.006)


@pytest.mark.slow
@pytest.mark.drawn(8)
@pytest.mark.parametrize('row', range(8))
def test_all_encoders_of_ringmoe_are_as_large_as_the_page_says(row):
  name, page = list(ringmoe_encoders())[row]
  assert encoder(load(name)) == pytest.approx(page, abs=0.006)
