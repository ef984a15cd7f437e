"""`sm3det dataset split` and `tile`: what they write, read back by `prepare`."""

import collections
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import images as image_lib
from data_pipelines import prepare, raw, tiling
from data_pipelines.dataset import files, split
from data_pipelines.source import Source
from sm3det_jax import cli

SCENES, PATCHES = 12, 3
BOX = '10 10 30 10 30 20 10 20'


def write_scenes(folder, scenes=SCENES):
  """A set in DOTA's text: every scene has patches of one class, every third a rare one too."""
  for sub in ('train/images', 'train/labelTxt'):
    (folder / sub).mkdir(parents=True)
  for k in range(scenes):
    for patch in range(PATCHES):
      name = f'P{k:02}__1.0__{32 * patch}___0'
      cv2.imwrite(f'{folder}/train/images/{name}.png', np.full((32, 48), k, np.uint8))
      rows = ['ship'] * (k % 4) + ['tank'] * (k % 3 == 0)
      text = ''.join(f'{BOX} {name_} 0\n' for name_ in rows)
      (folder / f'train/labelTxt/{name}.txt').write_text(text)


def run(what, folder, out, *arguments):
  return cli.main(['dataset', what, f'--source={folder}', f'--out={out}', *arguments])


DIVIDE = ('--dataset=dota_txt', '--fractions=train=0.5,val=0.25,test=0.25')


def test_split_keeps_scenes_whole_and_classes_even(tmp_path, capsys):
  write_scenes(tmp_path / 'in')
  assert run('split', tmp_path / 'in', tmp_path / 'out', *DIVIDE) == 0
  table = capsys.readouterr().out.split('\n')
  assert table[0].split() == ['dota_txt', 'train', 'val', 'test']
  assert table[1].split() == ['images', '18', '9', '9']
  c = raw.collect('dota_txt', tmp_path / 'out')
  scenes = {s: {a.id.split('__')[0] for a in listed} for s, listed in c.annotations.items()}
  assert sorted(n for s in scenes.values() for n in s) == [f'P{k:02}' for k in range(SCENES)]
  assert {s: len(listed) for s, listed in c.annotations.items()} == dict(train=18, val=9, test=9)
  for name, counts in (('tank', (6, 3, 3)), ('ship', (27, 12, 15))):
    found = [sum(a.names.count(name) for a in c.annotations[s]) for s in ('train', 'val', 'test')]
    assert np.abs(np.subtract(found, counts)).max() <= 3  # a patch more or less of one scene
  record = json.loads((tmp_path / 'out/split.json').read_text())
  assert {s: set(n) for s, n in record['scenes'].items()} == scenes
  assert (record['seed'], record['by']) == (0, 'scene')
  original = (tmp_path / 'in/train/images').iterdir()
  written = {p.name: p.read_bytes() for p in (tmp_path / 'out').rglob('*.png')}
  assert written == {p.name: p.read_bytes() for p in original}


def test_split_depends_on_seed_alone(tmp_path):
  write_scenes(tmp_path / 'in')
  c = raw.collect('dota_txt', tmp_path / 'in')
  shuffled = c._replace(annotations={'train': c.annotations['train'][::-1]})
  fractions = {'train': 0.5, 'val': 0.5}
  records = [
    split.divide(c_, fractions, scene=split.scene_of(), seed=seed)[1]
    for c_, seed in ((c, 0), (shuffled, 0), (c, 1))
  ]
  assert records[0] == records[1] != records[2]


@given(
  st.integers(0, 100),
  st.lists(st.tuples(*[st.integers(0, 5)] * 3, st.integers(1, 3)), min_size=8, max_size=30),
)
@settings(max_examples=20, deadline=None)
def test_every_scene_goes_to_one_split_about_as_asked(seed, counts):
  counts, fractions = np.array(counts), (0.6, 0.4)
  chosen = split.stratify(counts, fractions, seed)
  assert set(chosen) <= {0, 1}
  for k, fraction in enumerate(fractions):
    # never further from the wish than two of the largest scenes
    off = np.abs(counts[chosen == k].sum(0) - fraction * counts.sum(0))
    rare = counts[:, :-1].sum(0).argmin()
    assert off[rare] <= 2 * counts[:, rare].max()


def test_shares_of_objects_and_images_are_as_asked():
  """One class, of which some images have much more than others."""
  counts = np.stack([np.random.default_rng(1).geometric(0.4, 400), np.ones(400, int)], -1)
  fractions = (0.7, 0.2, 0.1)
  chosen = split.stratify(counts, fractions, seed=0)
  found = [counts[chosen == k].sum(0) / counts.sum(0) for k in range(3)]
  np.testing.assert_allclose(found, np.tile(fractions, (2, 1)).T, atol=0.01)


def test_by_image_and_by_regex(tmp_path):
  write_scenes(tmp_path / 'in')
  two = ('--dataset=dota_txt', '--fractions=train=0.5,val=0.5')
  assert run('split', tmp_path / 'in', tmp_path / 'image', *two, '--by=image', '--seed=3') == 0
  found = collections.defaultdict(set)
  for s, listed in raw.collect('dota_txt', tmp_path / 'image').annotations.items():
    for a in listed:
      found[a.id.split('__')[0]].add(s)
  assert any(len(s) == 2 for s in found.values())
  ten = r'--scene=^P(\d)'  # P00 to P09, P10 and P11
  assert run('split', tmp_path / 'in', tmp_path / 'ten', *two, ten) == 0
  record = json.loads((tmp_path / 'ten/split.json').read_text())['scenes']
  assert sorted(record.values()) == [['0'], ['1']]


def test_other_splits_stay(tmp_path, capsys):
  write_scenes(tmp_path / 'in')
  (tmp_path / 'in/train').rename(tmp_path / 'in/test')
  write_scenes(tmp_path / 'more', 4)
  (tmp_path / 'more/train').rename(tmp_path / 'in/train')
  two = ('--dataset=dota_txt', '--fractions=train=0.5,val=0.5')
  assert run('split', tmp_path / 'in', tmp_path / 'out', *two) == 2
  assert 'the splits train, test; say with --of which' in capsys.readouterr().err
  assert run('split', tmp_path / 'in', tmp_path / 'out', *two, '--of=train') == 0
  found = {s: len(a) for s, a in raw.collect('dota_txt', tmp_path / 'out').annotations.items()}
  assert sorted(found) == ['test', 'train', 'val'] and found['test'] == 36
  assert min(found.values()) > 0 and found['train'] + found['val'] == 12


@pytest.mark.parametrize(
  'arguments, text',
  [
    (('--fractions=train=0.5',), 'positive shares that sum to 1'),
    (('--fractions=train=a',), "expected train=0.8,val=0.2, not 'train=a'"),
    (('--fractions=a=0.5,a=0.5',), "not 'a=0.5'"),
    (('--fractions=a=0.5,b=0.5', '--scene=('), '--scene=(: missing )'),
    (('--fractions=a=0.5,b=0.5', '--scene=P'), 'expected one group'),
    (('--fractions=a=0.5,b=0.5', '--scene=(Q)'), 'finds no scene in the name P00'),
    (('--fractions=a=0.5,b=0.5', '--scene=(P)'), "split 'b' would be empty: there are 1 scenes"),
    (('--fractions=a=0.5,b=0.5', '--of=val'), '--of=val: the source has the splits train'),
    (('--fractions=a=0.5,b=0.5', '--scene=(P)', '--by=image'), 'no meaning with --by=image'),
  ],
)
def test_a_split_that_cannot_be_is_one_line(tmp_path, capsys, arguments, text):
  write_scenes(tmp_path / 'in', 2)
  assert run('split', tmp_path / 'in', tmp_path / 'out', '--dataset=dota_txt', *arguments) == 2
  shown = capsys.readouterr().err.strip().splitlines()[-1]
  assert text in shown and not (tmp_path / 'out').exists()


def test_a_preset_needs_a_format_to_write(tmp_path, capsys):
  arguments = ('--dataset=dota', '--fractions=train=0.5,val=0.5')
  assert run('split', tmp_path, tmp_path / 'out', *arguments) == 2
  assert 'say in which format to write: --to=' in capsys.readouterr().err


# patches


def write_large(folder, dtype=np.uint8, bands=3):
  rng = np.random.default_rng(0)
  for sub in ('train/images', 'train/labelTxt'):
    (folder / sub).mkdir(parents=True)
  high = np.iinfo(dtype).max
  pixels = rng.integers(0, high, (90, 130, bands), dtype)
  cv2.imwrite(f'{folder}/train/images/P1.png', pixels)
  centres = rng.uniform((5, 5), (125, 85), (40, 2))
  lines = []
  for k, (x, y) in enumerate(centres):
    corners = np.array([[-6, -4], [6, -3], [5, 4], [-6, 3]]) + (x, y)
    lines.append(' '.join(f'{v:.2f}' for v in corners.ravel()) + f' {"ab"[k % 2]} {k % 3 == 0:d}\n')
  (folder / 'train/labelTxt/P1.txt').write_text(''.join(lines))


TILE = dict(size=50, overlap=10, keep=0.6)
OPTIONS = ('--dataset=dota_txt', '--size=50', '--overlap=10', '--keep=0.6')


def test_patches_are_the_windows_of_training(tmp_path):
  """Pixels and objects of each patch are those that `Source` cuts on the fly."""
  write_large(tmp_path / 'in')
  assert run('tile', tmp_path / 'in', tmp_path / 'out', *OPTIONS) == 0
  prepare.prepare('dota_txt', tmp_path / 'in', tmp_path / 'data', name='whole')
  source = Source(tmp_path / 'data', 'whole', 'train', TILE)
  patches = {a.id: a for a in raw.collect('dota_txt', tmp_path / 'out').annotations['train']}
  assert len(patches) == len(source) == 2 * 3
  for sample in source:
    x, y = sample['offset']
    a = patches[f'P1__1__{x}___{y}']
    assert tiling.parse_patch(a.id) == ('P1', 1.0, x, y)
    np.testing.assert_array_equal(image_lib.read(a.image), sample['image'])
    objects = sample['objects']
    assert [source.classes[k] for k in objects['labels']] == list(a.names) and a.names
    np.testing.assert_allclose(a.polygons, objects['polygons'], atol=1e-4)
    np.testing.assert_allclose(a.boxes, objects['boxes'], atol=1e-3)
    np.testing.assert_array_equal(a.difficult > 0, objects['difficult'])


def test_rates_find_their_place_again(tmp_path):
  write_large(tmp_path / 'in')
  assert run('tile', tmp_path / 'in', tmp_path / 'out', *OPTIONS, '--rates=0.5,1.5') == 0
  [whole] = raw.collect('dota_txt', tmp_path / 'in').annotations['train']
  found = raw.collect('dota_txt', tmp_path / 'out').annotations['train']
  rates = collections.Counter()
  for a in found:
    image, rate, x, y = tiling.parse_patch(a.id)
    assert image == 'P1' and max(image_lib.size(a.image)) <= 50
    rates[rate] += 1
    for polygon in (a.polygons + np.tile([x, y], 4)) / rate:
      assert np.abs(whole.polygons - polygon).max(1).min() < 1e-2
  assert rates == {0.5: 2, 1.5: 4 * 5}


def test_horizontal_boxes_stay_horizontal(tmp_path):
  write_large(tmp_path / 'in')
  out = tmp_path / 'out'
  assert run('tile', tmp_path / 'in', out, *OPTIONS, '--box=hbb', '--to=coco') == 0
  c = raw.collect('coco', out)
  assert c.box == 'hbb' and len(c.annotations['train']) == 6
  assert not c.skipped.counts


@pytest.mark.parametrize(
  'arguments, text',
  [
    (('--size=0',), '--size from 1 on'),
    (('--keep=0',), '--keep in (0, 1]'),
    (('--overlap=50',), 'less than tile.size=50'),
    (('--rates=16',), '--rates=16: expected numbers above 0 and below 16'),
    (('--rates=-1',), 'expected numbers above 0'),
    (('--rates=x',), '--rates=x: expected numbers by commas'),
    (('--to=voc',), '--box=hbb takes'),
  ],
)
def test_a_tiling_that_cannot_be_is_one_line(tmp_path, capsys, arguments, text):
  write_large(tmp_path / 'in')
  assert run('tile', tmp_path / 'in', tmp_path / 'out', *OPTIONS, *arguments) == 2
  assert text in capsys.readouterr().err.strip().splitlines()[-1]
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'dtype, bands, suffix',
  [
    ('uint8', 1, '.png'),
    ('uint16', 3, '.png'),
    ('uint16', 4, '.tif'),
    ('float32', 1, '.tif'),
    ('int16', 2, '.tif'),
    ('complex64', 1, '.tif'),
  ],
)
@pytest.mark.filterwarnings('ignore:Dataset has no geotransform')
def test_pixels_are_written_without_loss(tmp_path, dtype, bands, suffix):
  import rasterio

  pixels = (np.random.default_rng(0).standard_normal((7, 9, bands)) * 100).astype(dtype)
  path = files.write(tmp_path / 'a/x__1__0___0', pixels)
  assert path == tmp_path / f'a/x__1__0___0{suffix}'
  with rasterio.open(path, sharing=False) as file:
    np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), pixels)
