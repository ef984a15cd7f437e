"""Figures of numbers, as PNG files."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

DPI = 110
PALE = 0.25


def pr_curves(curves: Mapping[str, Mapping[str, np.ndarray]], path: pathlib.Path) -> None:
  """Precision over recall at IoU 0.5, a panel a task and a line a class.

  Args:
    curves: task -> class -> [points, 2] recall, precision.
    path: of the PNG.
  """
  figure, axes = _panels(len(curves))
  for axis, (task, classes) in zip(axes, curves.items(), strict=True):
    for k, (name, points) in enumerate(classes.items()):
      # from recall 0 at the first precision, and down to 0 where the detections end
      recall = np.concatenate([[0], points[:, 0], points[-1:, 0]])
      precision = np.concatenate([points[:1, 1], points[:, 1], [0] * len(points[-1:])])
      style = ('-', '--', ':')[k // 10 % 3]  # ten colours
      axis.plot(recall, precision if len(points) else [0], style, label=name)
    axis.set(title=task, xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    _legend(axis)
  _save(figure, path)


def losses(log: list[dict], path: pathlib.Path) -> None:
  """Loss terms over steps, a panel a task.

  Args:
    log: lines of metrics.jsonl: `step` and `loss/<task>/<term>`.
    path: of the PNG.
  """
  series = _series(log, 'loss/')
  tasks = dict.fromkeys(name.split('/')[0] for name in series)
  figure, axes = _panels(len(tasks))
  for axis, task in zip(axes, tasks, strict=True):
    for name, (steps, values) in series.items():
      if name.startswith(task + '/'):
        _line(axis, steps, values, name.partition('/')[2])
    axis.set(title=f'{task}: loss', xlabel='step', yscale='log')
    _legend(axis)
  _save(figure, path)


def multipliers(log: list[dict], path: pathlib.Path) -> None:
  """Learning rate, and the multiplier of each parameter group, over steps.

  Args:
    log: lines of metrics.jsonl: `step`, `lr`, `multiplier/<group>`.
    path: of the PNG.
  """
  figure, (rate, axis) = _panels(2)
  for steps, values in _series(log, 'lr').values():
    rate.plot(steps, values, color='black')
  rate.set(title='learning rate', xlabel='step')
  for name, (steps, values) in _series(log, 'multiplier/').items():
    _line(axis, steps, values, name)
  axis.axhline(1, color='grey', linewidth=0.8, linestyle=':')
  axis.set(title='multipliers of learning rates (DLA) or task losses', xlabel='step')
  _legend(axis)
  _save(figure, path)


def routing(statistics: dict, path: pathlib.Path) -> None:
  """Which experts each modality uses: a row of panels for participation, one for top-1 share.

  Args:
    statistics: {'layers': [{'name', 'participation': {task: [E]}, 'top1': {task: [E]}}]}.
    path: of the PNG.
  """
  layers = statistics['layers']
  tasks = list(layers[0]['participation'])
  names = [layer['name'] for layer in layers]
  height = 1.2 + 0.32 * len(layers)
  figure = Figure(figsize=(4.2 * len(tasks) + 1, 2 * height), layout='constrained')
  axes = figure.subplots(2, len(tasks), squeeze=False)
  for row, kind in zip(axes, ('participation', 'top1'), strict=True):
    for axis, task in zip(row, tasks, strict=True):
      rows = [layer[kind][task] for layer in layers]
      share = np.full((len(rows), max(map(len, rows))), np.nan)  # [layers, E]
      for i, values in enumerate(rows):
        share[i, : len(values)] = values
      _matrix(axis, share)
      axis.set(title=f'{task}: {kind}, % of grid cells', xlabel='expert')
      axis.set(xticks=range(share.shape[1]), yticks=range(len(names)))
      axis.set_yticklabels(names if axis is row[0] else [], fontsize=7)
  _save(figure, path)


def overlap(statistics: dict, path: pathlib.Path) -> None:
  """How much each two modalities agree about collaborative experts, a panel a layer.

  Args:
    statistics: {'layers': [{'name', 'overlap': {task: {task: 0 to 1}}}]}; layers without are left
      out.
    path: of the PNG.
  """
  layers = [layer for layer in statistics['layers'] if 'overlap' in layer]
  columns = min(len(layers), 6)
  lines = -(-len(layers) // columns)
  figure = Figure(figsize=(2.6 * columns, 2.6 * lines), layout='constrained')
  panels = figure.subplots(lines, columns, squeeze=False).ravel()
  for axis in panels[len(layers) :]:
    axis.remove()
  for axis, layer in zip(panels, layers, strict=False):
    tasks = list(layer['overlap'])
    _matrix(axis, np.array([[layer['overlap'][a][b] for b in tasks] for a in tasks]))
    axis.set_title(f'{layer["name"]}: overlap, %', fontsize=8)
    axis.set(xticks=range(len(tasks)), yticks=range(len(tasks)))
    axis.set_xticklabels(tasks, fontsize=7, rotation=45)
    axis.set_yticklabels(tasks, fontsize=7)
  _save(figure, path)


def _matrix(axis, values):
  """Shares as colours and as per cent; nan: nothing."""
  axis.imshow(values, vmin=0, vmax=1, cmap='viridis', aspect='auto')
  for (i, k), value in np.ndenumerate(values):
    if np.isfinite(value):
      shade = 'white' if value < 0.6 else 'black'
      axis.text(k, i, f'{100 * value:.0f}', color=shade, ha='center', va='center', fontsize=7)


def _series(log, prefix):
  """{name without `prefix`: (steps, values)} of the finite values of a log."""
  names = dict.fromkeys(key for line in log for key in line if key.startswith(prefix))
  series = {}
  for name in names:
    points = [(x['step'], x[name]) for x in log if isinstance(x.get(name), (int, float))]
    points = np.array(points, float).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    series[name.removeprefix(prefix)] = points.T
  return series


def _line(axis, steps, values, label):
  """The values, pale, and their running mean over a twentieth of the run."""
  width = max(1, len(values) // 20)
  (line,) = axis.plot(steps, values, alpha=PALE if width > 1 else 1, label=None)
  if width > 1:
    mean = np.convolve(values, np.ones(width) / width, 'valid')
    axis.plot(steps[width - 1 :], mean, color=line.get_color(), label=label)
  else:
    line.set_label(label)


def _panels(count):
  figure = Figure(figsize=(5.2 * max(count, 1), 4), layout='constrained')
  return figure, figure.subplots(1, max(count, 1), squeeze=False)[0][: count or None]


def _legend(axis):
  handles, labels = axis.get_legend_handles_labels()
  if labels:
    axis.legend(handles, labels, fontsize=7, ncols=1 + len(labels) // 10)


def _save(figure, path):
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=DPI)
