"""What became of every array of a file, and of the model that was to take them."""

from collections import Counter
from typing import NamedTuple

PROBLEMS = ('missing', 'unexpected', 'shape')


class Row(NamedTuple):
  """What became of one array."""

  status: str  # loaded, copied (a dense layer into an expert), fresh, dropped, or one of PROBLEMS
  name: str  # official, or ours ('params/..') where two models of ours are matched
  detail: str = ''


class Report(NamedTuple):
  """What became of every array of a file and of the model that was to take them."""

  source: str
  rows: list[Row]

  @property
  def problems(self) -> list[Row]:
    return [r for r in self.rows if r.status in PROBLEMS]

  @property
  def is_detector(self) -> bool:
    """Whether the file gave a detector, not a backbone alone."""
    return any(r.status == 'loaded' and r.name.startswith('neck.') for r in self.rows)

  def summary(self) -> str:
    """One line: how many arrays of each status."""
    counts = Counter(r.status for r in self.rows)
    return f'{self.source}: ' + ', '.join(f'{n} {status}' for status, n in counts.items())

  def counted(self, *statuses: str) -> str:
    """A line for each of these statuses that there is: how many arrays of which parts."""
    lines = []
    for status in statuses:
      parts = Counter(_part(r.name) for r in self.rows if r.status == status)
      if parts:
        each = ', '.join(f'{part} ({n})' for part, n in parts.items())
        lines.append(f'{status:11} {sum(parts.values())} arrays: {each}')
    return '\n'.join(lines)

  def table(self, *statuses: str) -> str:
    """A line for each array, of these statuses alone if any are given."""
    rows = [r for r in self.rows if not statuses or r.status in statuses]
    return '\n'.join(f'{r.status:11} {r.name}  {r.detail}'.rstrip() for r in rows)


def _part(name):
  """What of a model an array belongs to: a head, the neck, a stage of the backbone."""
  ours = name.split('/')
  return '/'.join(ours[:2]) if len(ours) > 1 else name.partition('.')[0]
