"""The report page of a run: one HTML file beside its PNG files, readable without a network."""

import html
import json
import os
import pathlib
from collections.abc import Sequence

from sm3det_jax.metrics import table
from sm3det_jax.viz import figures

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em;
       color: #1c1f24; background: #fff; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid #ccd; }
table { border-collapse: collapse; } td, th { padding: .2em .9em; text-align: right; }
th { border-bottom: 1px solid #889; } td:first-child, th:first-child { text-align: left; }
tr.total td { font-weight: 600; border-top: 1px solid #ccd; }
img { max-width: 100%; display: block; margin: .8em 0; } .note { color: #667; }
"""


def write(
  workdir: str | os.PathLike, log: Sequence[dict] = (), title: str = 'SM3Det'
) -> pathlib.Path:
  """Writes `workdir/report.html` of what `workdir` holds, figures into `workdir/figures`.

  It shows metrics.json, pictures/<task>_<n>.png and pr_curves.png (from evaluation),
  reconstructions/<task>.png (from pre-training), the training log and routing/routing.png; what is
  missing is left out.

  Args:
    workdir: of a run.
    log: lines of its metrics.jsonl, as `sm3det_jax.logs.read` gives them.
    title: of the page.

  Returns:
    Path of the page.
  """
  workdir = pathlib.Path(workdir)
  parts = [f'<h1>{html.escape(title)}</h1>']
  if (workdir / 'metrics.json').exists():
    parts += _scores(json.loads((workdir / 'metrics.json').read_text()))
  parts += _pictures(workdir)
  parts += _reconstructions(workdir)
  if (workdir / 'pr_curves.png').exists():
    parts += ['<h2>Precision and recall at IoU 0.5</h2>', _image('pr_curves.png')]
  if log:
    figures.losses(log, workdir / 'figures/losses.png')
    figures.multipliers(log, workdir / 'figures/multipliers.png')
    parts += ['<h2>Training</h2>', *_remarks(log)]
    parts += [_image('figures/losses.png'), _image('figures/multipliers.png')]
  if (workdir / 'routing/routing.png').exists():
    note = 'Share of a modality’s grid cells that use an expert (participation) and that have it '
    note += 'as their first choice (top1).'
    parts += ['<h2>Experts by modality</h2>', _note(note), _image('routing/routing.png')]
  page = workdir / 'report.html'
  page.write_text(
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
    f'</title>\n<style>{STYLE}</style></head>\n<body>\n' + '\n'.join(parts) + '\n</body></html>\n',
    encoding='utf-8',
  )
  return page


def _scores(metrics):
  rows = ['<h2>Scores</h2>', _note('AP in percent.'), '<table>']
  heads = ('task', 'protocol', 'class', 'mAP', 'AP50', 'AP75', 'objects', 'detections')
  rows.append('<tr>' + ''.join(f'<th>{h}</th>' for h in heads) + '</tr>')
  for task, summary in metrics['tasks'].items():
    if 'psnr' in summary:
      rows.append(_row([task, table.similarity(summary), '', '', '', '', '', ''], total=True))
      continue
    for s in (summary, *summary.get('protocols', {}).values()):
      classes = s['classes']
      counts = [sum(c[k] for c in classes.values()) for k in ('objects', 'detections')]
      means = [s[k] for k in ('map', 'map50', 'map75')]
      rows.append(_row([task, s['protocol'], 'all', *map(_percent, means), *counts], total=True))
      for name, c in classes.items():
        aps = map(_percent, (c['ap'], c['ap50'], c['ap75']))
        rows.append(_row(['', '', name, *aps, c['objects'], c['detections']]))
  means = [_percent(metrics['overall'][k]) for k in ('map', 'map50', 'map75')]
  rows.append(_row(['overall', '', '', *means, '', ''], total=True))
  rows.append(_row(['harmonic', '', '', _percent(metrics['h_map']), '', '', '', '']))
  return [*rows, '</table>']


def _pictures(workdir):
  tasks = {}
  for path in sorted(workdir.glob('pictures/*_*.png')):
    tasks.setdefault(path.stem.rpartition('_')[0], []).append(path)
  parts = []
  for task, paths in tasks.items():
    parts.append(f'<h2>{html.escape(task)}: what is there, and what the model finds</h2>')
    parts += [_image(f'pictures/{path.name}') for path in paths]
  return parts


def _reconstructions(workdir):
  parts = []
  for path in sorted(workdir.glob('reconstructions/*.png')):
    parts += [f'<h2>{html.escape(path.stem)}: masked images</h2>']
    parts += [_image(f'reconstructions/{path.name}')]
  if parts:
    note = 'What is not masked is no part of the loss: a reconstruction is random there. A row has '
    note += 'the range of its target; powers are shown as amplitudes, and of four bands the first '
    note += 'three.'
    parts.insert(0, _note(note))
  return parts


def _remarks(log):
  """What to know of the curves."""
  if not any(name.endswith('/rpn_cls') for line in log for name in line):
    return []
  text = 'Where a task has region proposals (rpn_..), its cls and bbox losses rise for a while '
  text += 'before they fall, as the RPN finds more proposals for the second stage to learn from.'
  return [_note(text)]


def _row(cells, total=False):
  cells = ''.join(f'<td>{html.escape(str(c))}</td>' for c in cells)
  return f'<tr{" class=total" if total else ""}>{cells}</tr>'


def _percent(value):
  return '-' if value is None else f'{100 * value:.2f}'


def _image(source):
  return f'<img src="{html.escape(source)}" alt="{html.escape(source)}">'


def _note(text):
  return f'<p class="note">{html.escape(text)}</p>'
