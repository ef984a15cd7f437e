"""Our devkit protocol against the DOTA devkit itself, within 1e-6.

Run by the continuous integration in an environment of its own, because the devkit compiles C++ and
asks for packages that clash with ours. It needs numpy >= 2 (the devkit says `np.bool`):

  python -m venv ENV && ENV/bin/pip install numpy shapely opencv-python-headless
  ENV/bin/pip install --no-deps dotadevkit
  PYTHONPATH=. ENV/bin/python tests/oracle_dotadevkit.py [FOLDER]

FOLDER is the devkit's own example, if at hand: `result_classname/Task1_*.txt`, `row_DOTA_labels/`.
Exit status 1 if a number differs.
"""

import contextlib
import io
import pathlib
import runpy
import sys
import tempfile

import numpy as np

np.argsort = lambda *args, _sort=np.argsort, **kw: _sort(*args, **{'kind': 'stable'} | kw)
# ^ the devkit leaves the order of equal scores to quicksort; ours keeps that of the file

import dotadevkit  # noqa: E402
from dotadevkit.evaluate import task1  # noqa: E402
from dotadevkit.polyiou import polyiou  # noqa: E402

from data_pipelines import boxes as box_lib  # noqa: E402
from sm3det_jax.metrics import dota, merge, polygon  # noqa: E402

TOLERANCE = 1e-6
dota.PROTOCOLS['devkit_area'] = dota.PROTOCOLS['devkit']._replace(method='area')


def write_scene(folder: pathlib.Path, seed: int, classes: tuple[str, ...]) -> None:
  """Task1 files and labels of noisy detections, duplicates, false alarms, difficult objects."""
  rng = np.random.default_rng(seed)
  labels = folder / 'row_DOTA_labels'
  labels.mkdir()
  found = []
  for name in (f'P{i:04d}' for i in range(8)):
    n = int(rng.integers(1, 40))
    boxes = np.concatenate(
      [rng.uniform(0, 400, (n, 2)), rng.uniform(5, 60, (n, 2)), rng.uniform(-2, 2, (n, 1))], 1
    )
    quads = box_lib.to_polygon(boxes) + rng.normal(0, 1, (n, 8))  # not quite rectangles
    kinds, difficult = rng.integers(0, len(classes), n), rng.random(n) < 0.15
    rows = [
      ' '.join(f'{v:.1f}' for v in q) + f' {classes[k]} {int(d)}'
      for q, k, d in zip(quads, kinds, difficult, strict=True)
    ]
    rows[0] = rows[0].rsplit(' ', 1)[0]  # nine tokens
    (labels / f'{name}.txt').write_text('imagesource:None\ngsd:0.1\n' + '\n'.join(rows) + '\n')
    pick = rng.integers(0, n, 2 * n)
    noisy = boxes[pick] + rng.normal(0, [2, 2, 2, 2, 0.05], (2 * n, 5))
    entry = {'id': name, 'boxes': noisy, 'labels': kinds[pick], 'scores': rng.random(2 * n)}
    found.append(entry | {'scores': entry['scores'].round(2)})  # many ties
  dota.write_task1(folder / 'result_classname', found, classes)


def read_labels(folder: pathlib.Path, classes: tuple[str, ...]) -> list[dict]:
  truths = []
  for path in sorted(folder.glob('*.txt')):
    lines = [line.split() for line in path.read_text().splitlines()]
    rows = [x for x in lines if len(x) > 8 and x[8] in classes]
    truths.append(
      {
        'id': path.stem,
        'polygons': np.array([x[:8] for x in rows], float).reshape(-1, 8),
        'labels': np.array([classes.index(x[8]) for x in rows], int),
        'difficult': np.array([x[9] if len(x) > 9 else 0 for x in rows], int),
      }
    )
  return truths


def compare(folder: pathlib.Path) -> float:
  """Largest difference of an AP over classes, IoU thresholds and both methods."""
  files = folder / 'result_classname'
  classes = tuple(p.stem[len('Task1_') :] for p in sorted(files.glob('*.txt')))
  truths = read_labels(folder / 'row_DOTA_labels', classes)
  # Task1 files leave out images without a detection
  nothing = {'polygons': np.zeros((0, 8)), 'scores': [], 'labels': []}
  found = {t['id']: {'id': t['id'], **nothing} for t in truths}
  found |= {p['id']: p for p in dota.read_task1(files, classes)}
  found = [found[t['id']] for t in truths]
  worst = 0.0
  with tempfile.TemporaryDirectory() as scratch:
    dota.write_task1(scratch, found, classes)  # equal scores in our order of images
    names = pathlib.Path(scratch, 'names.txt')
    names.write_text('\n'.join(t['id'] for t in truths))
    for protocol in ('devkit', 'devkit_area'):
      ours = dota.evaluate(found, truths, classes, protocol).summary
      for name in classes:
        with contextlib.redirect_stdout(io.StringIO()):
          theirs = [
            task1.voc_eval(
              scratch + '/Task1_{:s}.txt', str(folder / 'row_DOTA_labels' / '{:s}.txt'), names,
              name, ovthresh=threshold, use_07_metric=protocol == 'devkit',
            )[2]
            for threshold in dota.IOU_THRESHOLDS
          ]  # fmt: skip
        mine = ours['classes'][name]
        pairs = [
          (mine['ap'], np.mean(theirs)),
          (mine['ap50'], theirs[0]),
          (mine['ap75'], theirs[5]),
        ]
        worst = max(worst, *(abs(a - b) for a, b in pairs))
        print(f'{folder.name:28s} {protocol:12s} {name:16s} AP {pairs[0][0]:.6f} {pairs[0][1]:.6f}')
  return worst


def compare_iou(pairs: int = 5000) -> float:
  """Largest difference from polyiou over random convex, concave and near-identical pairs."""
  rng = np.random.default_rng(0)
  a = rng.uniform(0, 100, (pairs, 8)) + rng.uniform(0, 5000, (pairs, 1))
  b = a + rng.normal(0, rng.choice([1e-3, 1, 30], (pairs, 1)), a.shape)
  simple = np.array([not crosses(p) and not crosses(q) for p, q in zip(a, b, strict=True)])
  a, b = a[simple], b[simple]
  theirs = [
    polyiou.iou_poly(polyiou.VectorDouble(p), polyiou.VectorDouble(q))
    for p, q in zip(a.tolist(), b.tolist(), strict=True)
  ]
  return float(np.abs(polygon.iou_pairs(a, b) - theirs).max())


def compare_merge(boxes: int = 1500) -> float:
  """How many detections only one of the two keeps when windows are merged."""
  rng = np.random.default_rng(1)
  middle, sides = rng.uniform(0, 600, (boxes, 2)), rng.uniform(5, 60, (boxes, 2))
  quads = box_lib.to_polygon(np.concatenate([middle, sides, rng.uniform(-2, 2, (boxes, 1))], 1))
  scores = rng.permutation(boxes) / boxes  # all different
  ours = merge.nms(quads, scores, np.zeros(boxes), merge.IOU['obb'])
  # run as a file: its package imports OpenCV
  path = pathlib.Path(dotadevkit.__file__).parent / 'ops/ResultMerge.py'
  py_cpu_nms_poly_fast = runpy.run_path(str(path))['py_cpu_nms_poly_fast']
  theirs = py_cpu_nms_poly_fast(np.column_stack([quads, scores]), merge.IOU['obb'])
  assert 100 < len(theirs) < boxes
  return float(len(set(ours.tolist()) ^ set(map(int, theirs))))


def crosses(quad: np.ndarray) -> bool:
  """Whether opposite edges of a quadrilateral [8] cut each other."""
  p = quad.reshape(4, 2)

  def side(a, b, c):
    return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

  def cut(a, b, c, d):
    return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)

  return cut(p[0], p[1], p[2], p[3]) or cut(p[1], p[2], p[3], p[0])


def main(folders: list[str]) -> int:
  worst = {'polygon IoU': compare_iou(), 'merging by NMS': compare_merge()}
  for folder in folders:
    worst[folder] = compare(pathlib.Path(folder))
  for seed in range(3):
    with tempfile.TemporaryDirectory(prefix=f'random_{seed}_') as folder:
      write_scene(pathlib.Path(folder), seed, ('plane', 'ship', 'harbor'))
      worst[f'random scene {seed}'] = compare(pathlib.Path(folder))
  for what, difference in worst.items():
    print(f'{what}: largest difference {difference:.2e}')
  return int(max(worst.values()) > TOLERANCE)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
