"""The report as one HTML file that needs no network and no other file."""

import base64
import html

import cv2
import numpy as np

from sm3det_jax.analysis.doctor import pictures
from sm3det_jax.analysis.doctor.dataset import Dataset
from sm3det_jax.analysis.doctor.findings import SEVERITIES, Finding
from sm3det_jax.viz import report

EXAMPLES, PLACES = 8, 12  # of a kind: pictures, and lines of places
WIDTH = 460  # px, of a picture on the page
QUALITY = 80  # of JPEG
STYLE = (
  report.STYLE
  + """
.bar { background: #5b8def; height: .8em; display: inline-block; vertical-align: middle; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5em 3em; } .charts h3 { margin: .5em 0; }
.charts td { padding: 0 .5em; font-size: .85em; white-space: nowrap; }
.examples { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 360px; } figure.pair { width: 736px; } figure img { margin: 0; }
figcaption { font-size: .8em; color: #445; overflow-wrap: anywhere; }
details { margin: .4em 0; overflow-wrap: anywhere; font-size: .9em; }
.error, .warning, .note2 { border-radius: .3em; padding: .05em .5em; color: #fff; font-size: .8em; }
.error { background: #c0392b; } .warning { background: #c77d0a; } .note2 { background: #6b7785; }
"""
)


def html_of(d: Dataset, summary: dict, found: list[Finding]) -> str:
  """The page.

  Args:
    d: the data set, whose images are read once more for the examples.
    summary: `summary.summary`, with `reach`, `skipped` and `decisions` where there are any.
    found: `findings.find`.
  """
  title = f'{d.name}: {sum(s["images"] for s in summary["splits"].values()):,} images looked at'
  parts = [f'<h1>{html.escape(title)}</h1>', _counts(d, summary), _overview(found)]
  parts += [_images(summary), _classes(d, summary), _charts(summary['histograms'])]
  parts += [_reach(summary.get('reach', {})), _skipped(summary.get('skipped', {}))]
  parts += _decisions(summary.get('decisions', ()))
  parts += [_finding(d, f) for f in found]
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
    f'</title>\n<style>{STYLE}</style></head>\n<body>\n' + '\n'.join(parts) + '\n</body></html>\n'
  )


def _counts(d, summary):
  heads = ('split', 'images', 'cannot be read', 'without objects', 'objects')
  rows = [(split, *s.values()) for split, s in summary['splits'].items()]
  kind = {'hbb': 'horizontal boxes', 'obb': 'oriented boxes'}.get(d.box, 'images alone')
  return _note(f'Boxes: {kind}. Classes: {", ".join(d.classes) or "none"}.') + _table(heads, rows)


def _overview(found):
  if not found:
    return '<h2>Findings</h2>' + _note('Nothing that looks wrong.')
  rows = ''.join(
    f'<tr><td><a href="#{f.kind.name}">{html.escape(f.kind.title)}</a></td>'
    f'<td>{_badge(f.kind.severity)}</td><td>{len(f.rows):,}</td></tr>'
    for f in found
  )
  return (
    '<h2>Findings</h2><table><tr><th>what</th><th></th><th>how many</th></tr>' + rows + '</table>'
  )


def _images(summary):
  rows = [
    (f'{p["dtype"]} x {p["bands"]}', p['images'], p['low'], p['high'], p['mean'], p['std'])
    for p in summary['pixels']
  ]
  parts = ['<h2>Images</h2>']
  for side, (low, middle, high) in summary['sizes'].items():
    parts.append(_note(f'{side}: {low:,} to {high:,} px, half of them up to {middle:,} px'))
  parts.append(_table(('type x bands', 'images', 'lowest', 'highest', 'mean', 'std'), rows))
  return ''.join(parts)


def _classes(d, summary):
  if not summary['classes']:
    return ''
  heads = ['class', *summary['splits'], 'difficult', 'root of area, px', 'length / width']
  reach = summary.get('reach', {})
  heads += [f'reached by {task}' for task in reach]
  rows = []
  for name, c in summary['classes'].items():
    row = [name, *(c['objects'].get(s, '') for s in summary['splits']), c['difficult']]
    row += [' – '.join(f'{v:.3g}' for v in c.get(key, ())) for key in ('side', 'ratio')]
    row += [_percent(r['classes'].get(name)) for r in reach.values()]
    rows.append(row)
  note = _note('Root of area and length / width: 5th, 50th and 95th percentile.')
  return '<h2>Classes</h2>' + note + _table(heads, rows)


def _charts(histograms):
  parts = ['<h2>Distributions</h2><div class="charts">']
  for title, counts in histograms.items():
    most = max(counts.values())
    rows = ''.join(
      f'<tr><td>{html.escape(name)}</td><td style="text-align:left"><span class="bar" '
      f'style="width:{220 * n / most:.0f}px"></span> {n:,}</td></tr>'
      for name, n in counts.items()
    )
    parts.append(f'<div><h3>{html.escape(title)}</h3><table>{rows}</table></div>')
  return ''.join(parts) + '</div>'


def _reach(reach):
  parts = ['<h2>Reach of the anchors</h2>'] if reach else []
  for task, r in reach.items():
    parts.append(_note(f'{task}: {100 * r["share"]:.1f} % of {r["objects"]:,} {r["what"]}'))
    rows = [(name, total, _percent((hits, total))) for name, (hits, total) in r['sides'].items()]
    parts.append(_table(('root of area in the task, px', 'objects', 'reached'), rows))
  return ''.join(parts)


def _skipped(skipped):
  if not skipped:
    return ''
  rows = [(reason, s['count'], '; '.join(s['places'])) for reason, s in skipped.items()]
  note = _note('What the readers and `sm3det prepare` leave out or mend, with the first places.')
  return '<h2>Left out or mended</h2>' + note + _table(('reason', 'how often', 'where'), rows)


def _decisions(notes):
  return ['<h2>Taken for the whole set</h2>', *map(_note, notes)] if notes else []


def _finding(d, finding):
  kind, rows = finding.kind, finding.rows
  title = kind.title[0].upper() + kind.title[1:]
  parts = [f'<h2 id="{kind.name}">{html.escape(title)} ({len(rows):,})</h2>']
  parts.append(_badge(kind.severity))
  lines = [html.escape(place(d, row)) + ': ' + html.escape(row.text) for row in rows[:PLACES]]
  if len(rows) > PLACES:
    lines.append(f'and {len(rows) - PLACES:,} more, all of them in report.json')
  parts.append('<details open><summary>Where</summary>' + '<br>'.join(lines) + '</details>')
  drawn = [row for row in rows if row.image >= 0 and d.images[row.image].look][:EXAMPLES]
  parts.append('<div class="examples">')
  parts += [_figure(d, row) for row in drawn]
  return ''.join(parts) + '</div>'


def _figure(d, row):
  picture = pictures.example(d, row)
  pair = row.object < 0 and row.other >= 0
  scale = (2 if pair else 1) * WIDTH / picture.shape[1]
  if scale < 1:
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
  caption = html.escape(f'{place(d, row)}: {row.text}')
  return (
    f'<figure{" class=pair" if pair else ""}><img src="data:image/jpeg;base64,{_jpeg(picture)}" '
    f'alt="{caption}"><figcaption>{caption}</figcaption></figure>'
  )


def place(d: Dataset, row) -> str:
  """Split, image and number of the object of a row, in words."""
  if row.image < 0:
    return 'the whole set'
  image = d.images[row.image]
  which = f', object {d.objects["row"][row.object]}' if row.object >= 0 else ''
  return f'{image.split} / {image.id}{which}'


def _jpeg(picture: np.ndarray) -> str:
  done, data = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
  assert done, picture.shape
  return base64.b64encode(data.tobytes()).decode()


def _table(heads, rows):
  lines = ['<table><tr>', *(f'<th>{html.escape(h)}</th>' for h in heads), '</tr>']
  for row in rows:
    lines.append('<tr>' + ''.join(f'<td>{html.escape(_text(c))}</td>' for c in row) + '</tr>')
  return ''.join(lines) + '</table>'


def _text(cell):
  if isinstance(cell, list | tuple):
    return ', '.join(f'{v:g}' for v in cell)
  if isinstance(cell, float):
    return f'{cell:g}'
  return f'{cell:,}' if isinstance(cell, int) else str(cell)


def _percent(pair):
  return f'{100 * pair[0] / pair[1]:.1f} %' if pair else ''


def _badge(severity):
  style = severity if severity != SEVERITIES[-1] else 'note2'  # `note` is the page's grey text
  return f'<span class="{style}">{severity}</span>'


def _note(text):
  return f'<p class="note">{html.escape(text)}</p>'
