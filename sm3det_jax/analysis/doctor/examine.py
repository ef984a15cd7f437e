"""Everything `sm3det doctor` does once it has a data set."""

import dataclasses
import json
import pathlib

from data_pipelines import prepare, quarantine
from sm3det_jax.analysis.doctor import findings, page
from sm3det_jax.analysis.doctor import summary as summary_lib
from sm3det_jax.analysis.doctor.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Report:
  """What was found.

  Attributes:
    summary: `summary.summary`, with `skipped`, `decisions`, `reach` and `findings`: what
      report.json holds.
    out: folder of report.html, report.json and quarantine.txt.
    left_out: images that quarantine.txt leaves out.
  """

  summary: dict
  out: pathlib.Path
  left_out: int

  @property
  def wrong(self) -> bool:
    """Whether anything is more than a note."""
    return any(f['severity'] != 'note' for f in self.summary['findings'])

  def table(self) -> str:
    """The report as text."""
    s = self.summary
    rows = [[f'{s["name"]} ({s["box"]})', *s['splits']]]
    for key in next(iter(s['splits'].values()), {}):
      rows.append([key.replace('_', ' '), *(split[key] for split in s['splits'].values())])
    lines = [prepare.columns(rows)]
    for p in s['pixels']:
      means, stds = (', '.join(f'{v:g}' for v in p[key]) for key in ('mean', 'std'))
      lines.append(
        f'{p["images"]:,} images of {p["dtype"]} x {p["bands"]}, values {p["low"]:g} to '
        f'{p["high"]:g}; mean=({means}), std=({stds})'
      )
    for task, r in s.get('reach', {}).items():
      lines.append(f'{task}: {100 * r["share"]:.1f} % of {r["objects"]:,} {r["what"]}')
    found = [[f'{f["severity"]}: {f["title"]}', f['count']] for f in s['findings']]
    found += [[f'left out or mended: {r}', k['count']] for r, k in s.get('skipped', {}).items()]
    lines += s.get('decisions', [])
    lines.append(prepare.columns(found) if found else 'nothing that looks wrong')
    lines.append(f'{self.out / "report.html"}: all of it, with pictures')
    lines.append(f'{self.out / quarantine.NAME}: {self.left_out} images to leave out')
    return '\n'.join(lines)


def examine(d: Dataset, out, reach: dict | None = None) -> Report:
  """Writes the report of a data set into the folder `out` and returns it.

  Args:
    d: the data set.
    out: made if it is not there.
    reach: of `reach.shares`, if a config is asked too.
  """
  out = pathlib.Path(out)
  found = findings.find(d)
  summary = summary_lib.summary(d)
  if d.skipped is not None:
    summary['skipped'] = _skipped(d.skipped)
    summary['decisions'] = d.skipped.notes
  if reach:
    summary['reach'] = reach
  summary['findings'] = [_as_json(d, f) for f in found]
  out.mkdir(parents=True, exist_ok=True)
  lines = [
    quarantine.Line(d.images[k].split, d.images[k].id, '; '.join(why), clear)
    for k, (clear, why) in findings.images_to_leave_out(found).items()
  ]
  quarantine.write(out / quarantine.NAME, lines)
  (out / 'report.json').write_text(json.dumps(summary, indent=1))
  text = page.html_of(d, summary, found)
  (out / 'report.html').write_bytes(text.encode('utf-8', 'surrogateescape'))
  return Report(summary, out, sum(line.out for line in lines))


def _skipped(skipped):
  places = skipped.places
  return {
    reason: dict(count=count, places=places[reason])
    for reason, count in sorted(skipped.counts.items())
  }


def _as_json(d, finding):
  rows = []
  for row in finding.rows:
    image = d.images[row.image] if row.image >= 0 else None
    rows.append(
      dict(
        split=image.split if image else '',
        image=image.id if image else '',
        object=int(d.objects['row'][row.object]) if row.object >= 0 else -1,
        text=row.text,
      )
    )
  kind = finding.kind
  return dict(kind=kind.name, severity=kind.severity, title=kind.title, count=len(rows), rows=rows)
