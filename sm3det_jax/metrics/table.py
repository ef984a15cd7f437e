"""The numbers over all tasks: overall and harmonic means, the printed table, metrics.json."""

import json
import os
import pathlib

import numpy as np
import rich.table
from rich.markup import escape  # names are no markup, '[' or not

KEYS = ('map', 'map50', 'map75')


def overall(values: dict[str, float], classes: dict[str, int]) -> float | None:
  """Mean over tasks weighted by their numbers of classes: the mean AP over all classes.

  For SOI-Det (6 SAR + 15 DOTA + 5 DroneVehicle) / 26, the paper's "Overall mAP".

  Args:
    values: task -> mAP.
    classes: task -> number of classes that entered it.

  Returns:
    None where no class entered.
  """
  total = sum(classes[task] for task in values)
  return sum(classes[task] * values[task] for task in values) / total if total else None


def harmonic(values: dict[str, float]) -> float | None:
  """Harmonic mean of the tasks' mAP, the paper's "H-mAP"; 0 if one task is at 0."""
  values = np.array(list(values.values()), np.float64)
  if not len(values):
    return None
  return float(len(values) / (1 / values).sum()) if values.all() else 0.0


def combine(tasks: dict[str, dict]) -> dict:
  """metrics.json from the tasks' summaries.

  Args:
    tasks: task -> `metrics.Result.summary` (other entries beside it are kept), or of a task of
      images {'psnr': dB, 'ssim'}, which takes no part in the means.

  Returns:
    {'tasks': tasks, 'overall': {'map', 'map50', 'map75'}, 'h_map'}. A class without ground truth
    has no weight, and a task without any takes no part.
  """
  scored = {
    name: sum(c['ap'] is not None for c in task['classes'].values())
    for name, task in tasks.items()
    if task.get('map') is not None
  }
  means = {key: overall({name: tasks[name][key] for name in scored}, scored) for key in KEYS}
  h_map = harmonic({name: tasks[name]['map'] for name in scored})
  return {'tasks': tasks, 'overall': means, 'h_map': h_map}


def write(metrics: dict, path: str | os.PathLike) -> None:
  """Writes `combine`'s dict as JSON (null where there is no number)."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(metrics, indent=1, allow_nan=False) + '\n')


def render(metrics: dict, classes: bool = True) -> rich.table.Table:
  """The table of `combine`'s dict, AP in percent.

  Args:
    metrics: as `combine` gives it.
    classes: with a line for each class.
  """
  table = rich.table.Table(title='AP, %', title_justify='left')
  table.add_column('task (protocol), class', no_wrap=True)
  for heading in ('mAP', 'AP50', 'AP75', 'objects', 'detections'):
    table.add_column(heading, justify='right', no_wrap=True)
  for name, task in metrics['tasks'].items():
    if 'psnr' in task:
      table.add_row(f'{name}: {similarity(task)}', style='bold')
      continue
    for summary in (task, *task.get('protocols', {}).values()):
      rows = summary['classes'].items()
      total = [str(sum(c[key] for _, c in rows)) for key in ('objects', 'detections')]
      heading = f'{name} ({summary["protocol"]})'
      table.add_row(escape(heading), *_percent(summary, KEYS), *total, style='bold')
      for label, c in rows if classes else ():
        counts = (str(c['objects']), str(c['detections']))
        table.add_row(escape(f'  {label}'), *_percent(c, ('ap', 'ap50', 'ap75')), *counts)
    table.add_section()
  table.add_row('overall', *_percent(metrics['overall'], KEYS), '', '', style='bold')
  table.add_row('harmonic mean of mAP', *_percent(metrics, ('h_map',)), '', '', '', '')
  return table


def similarity(summary: dict) -> str:
  """The scores of a task of images as text."""
  psnr = 'without an error' if summary['psnr'] is None else f'{summary["psnr"]:.2f} dB'
  return f'PSNR {psnr}, SSIM {summary["ssim"]:.4f}'


def _percent(values, keys):
  return ['-' if values[k] is None else f'{100 * values[k]:.2f}' for k in keys]
