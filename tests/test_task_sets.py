"""Any set of tasks, by config alone: other bands, 16 bits, stems a task its own, own classes."""

import json
import pathlib
import re

import cv2
import jax
import numpy as np
import pytest

from data_pipelines import prepare, scenes
from sm3det_jax import checkpoint, cli, config, evaluate, predict, train
from sm3det_jax.detector import build

DOCUMENT = pathlib.Path(__file__).parents[1] / 'docs/own_data.md'
SIZE = 64
# task: scenes it is drawn from, bands, type, boxes
FIVE = {
  'sar': ('sar', 1, np.uint8, 'hbb'),
  'polsar': ('sar', 2, np.uint8, 'hbb'),
  'rgb': ('optical', 3, np.uint8, 'hbb'),
  'multi': ('optical', 4, np.uint16, 'obb'),
  'ifr': ('infrared', 3, np.uint8, 'hbb'),
}


def draw(modality, bands, dtype, i):
  """A scene in so many bands of a type."""
  image, polygons, names = scenes.draw(modality, np.random.default_rng([7, i]), SIZE)
  image = image if image.ndim == 3 else image[..., None]
  image = np.concatenate([image] * 4, -1)[..., :bands].astype(dtype)
  return image * (np.iinfo(dtype).max // 255), polygons, names


def write_dota(root, split, drawn):
  """TIFF pages as bands, labels as DOTA has them; classes are those of the scenes."""
  for folder in ('images', 'labelTxt'):
    (root / split / folder).mkdir(parents=True, exist_ok=True)
  for i, (image, polygons, names) in enumerate(drawn):
    pages = [np.ascontiguousarray(image[..., b]) for b in range(image.shape[2])]
    assert cv2.imwritemulti(str(root / split / 'images' / f'{i}.tif'), pages)
    lines = [
      ' '.join([*(f'{v:.1f}' for v in polygon), name, '0'])
      for polygon, name in zip(polygons, names, strict=True)
    ]
    (root / split / 'labelTxt' / f'{i}.txt').write_text('\n'.join(lines) + '\n')


def small(c):
  """Heads, neck and backbone as small as they work."""
  for t in c.tasks.values():
    t.size, t.max_objects, t.head.channels = (SIZE, SIZE), 16, 32
    t.head.update(convs=1, pre_nms=50, max_detections=20, score_threshold=0.001)
  c.backbone.update(depths=(1, 1, 1, 1), channels=(8, 8, 16, 16), layer_scale=1.0)
  c.moe.update(blocks=((), (), (), (0,)), num_experts=2, top_k=1)
  c.neck.channels, c.label_space, c.workers = 32, 'per_task', 0
  c.mesh.data = 1
  c.optim.update(steps=2, warmup_steps=0, milestones=(), lr=1e-3)
  return c


def five_tasks(data_root):
  c = config.default()
  c.tasks = config.ConfigDict(sort_keys=False)
  for name, (modality, bands, dtype, box) in FIVE.items():
    full = float(np.iinfo(dtype).max)
    c.tasks[name] = config.task(
      box, name, scenes.CLASSES[modality], bands=bands, mean=(full / 2,) * bands,
      std=(full / 4,) * bands,
    )  # fmt: skip
    c.tasks[name].train.min_side = 0.0
  c.tasks.multi.head = config.head('s2anet')
  c.backbone.stems = 'per_task'
  c.batch_size, c.data_root = 5, str(data_root)
  return config.check(small(c))


def test_tasks_of_different_bands_need_stems_of_their_own():
  c = five_tasks('data')
  c.backbone.stems = 'shared'
  with pytest.raises(ValueError, match=r"'multi': 4.*one stem cannot read.*stems='per_task'"):
    config.check(c)


@pytest.mark.slow
@pytest.mark.drawn(2)
def test_five_tasks_train_evaluate_and_predict(tmp_path):
  for name, (modality, bands, dtype, box) in FIVE.items():
    for split in ('train', 'test'):
      drawn = [draw(modality, bands, dtype, i) for i in range(3)]
      write_dota(tmp_path / name, split, drawn)
    prepare.prepare(
      'dota_txt', tmp_path / name, tmp_path / 'data', name=name, box=box,
      classes=scenes.CLASSES[modality],
    )  # fmt: skip
  c = five_tasks(tmp_path / 'data')
  metrics = train.train(c, tmp_path / 'run')
  assert np.isfinite(metrics['total']) and metrics['skipped'] == 0
  assert {k.split('/')[1] for k in metrics if k.startswith('loss/')} == {*FIVE, 'moe'}
  c, variables = checkpoint.restore_for_inference(tmp_path / 'run')
  stems = {
    k: v['kernel'].shape
    for k, v in variables['params']['backbone'].items()
    if 'norm' not in k and k.startswith('stem_')
  }
  assert stems == {f'stem_{n}': (4, 4, bands, 8) for n, (_, bands, _, _) in FIVE.items()}
  scores = evaluate.evaluate(c, variables, out_dir=tmp_path / 'run')
  assert set(scores['tasks']) == set(FIVE)
  for name in FIVE:
    image = tmp_path / name / 'test' / 'images' / '0.tif'
    assert not predict.predict(tmp_path / 'run', name, [image], tmp_path / name / 'out', 0.001)
    found = json.loads((tmp_path / name / 'out' / '0_detections.json').read_text())
    assert found['detections'] and (tmp_path / name / 'out' / '0_detections.png').exists()


@pytest.mark.slow
def test_the_documented_fine_tuning(tmp_path, monkeypatch, capsys):
  """Every command of docs/own_data.md but the conversion, on drawn scenes and a tiny model."""
  text = DOCUMENT.read_text()
  start = five_tasks('data')
  for name in ('polsar', 'multi'):
    del start.tasks[name]
  start.tasks.rgb = config.task('obb', 'x', ('x', 'y'), ratio=2)
  start.tasks.rgb.head, start.backbone.stems = config.head('s2anet'), 'shared'
  start.tasks.sar.update(bands=3, mean=(128.0,) * 3, std=(64.0,) * 3)
  start.batch_size = 4
  monkeypatch.chdir(tmp_path)
  variables = jax.jit(build(config.check(small(start))).init)(jax.random.key(3))
  checkpoint.save_weights('runs/sm3det_t', start, variables)
  scenes.write(tmp_path, 0, {'train': 3, 'test': 2}, SIZE)
  for old, new in {
    'SHIPS': 'sar', 'PLANES': 'optical', 'cargo,tanker': ','.join(scenes.CLASSES['sar']),
    'jet,glider': ','.join(scenes.CLASSES['optical']),
    "('cargo', 'tanker')": str(scenes.CLASSES['sar']),
    "('jet', 'glider')": str(scenes.CLASSES['optical']),
  }.items():  # fmt: skip
    assert old in text
    text = text.replace(old, new)
  (tmp_path / 'mine.py').write_text(re.search('```python\n(.*?)```', text, re.S)[1])
  commands = re.findall('^    sm3det (.*)$', text, re.M)
  assert [
    c.split()[0] for c in commands
  ] == 'convert prepare prepare train evaluate predict'.split()
  for command in commands[1:]:
    short = '--config.optim.steps=2 --config.optim.milestones=() --config.mesh.data=1'
    extra = short.split() if command.startswith('train') else []
    assert cli.main([*command.split(), *extra]) == 0, command
  capsys.readouterr()
  tuned = checkpoint.restore_for_inference('runs/mine')[1]['params']
  kernel = lambda params: np.asarray(params['backbone']['stage0_block0']['dwconv']['kernel'])
  moved = np.abs(kernel(tuned) - kernel(variables['params'])).max()
  assert 0 < moved < 1e-3  # two steps away from where it started
  assert len(list((tmp_path / 'found').glob('*.json'))) == 2
