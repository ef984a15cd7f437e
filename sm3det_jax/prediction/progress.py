"""How far a prediction is, how fast, and how much it has found: a bar, or now and then a line."""

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sm3det_jax import logs

EVERY = 10.0  # s between two lines where there is no terminal

logger = logging.getLogger(__name__)


class Shown:
  """A context manager. One image is counted by its windows, several by images.

  Args:
    images: how many there are, None for who knows.
    least: windows that an image alone is shown from.
    active: False shows nothing.
  """

  def __init__(self, images: int | None = 1, least: int = 2, active: bool = True):
    self._unit, self._least, self._active = 'windows' if images == 1 else 'images', least, active
    self._total, self._bar = None if images == 1 else images, None
    self._done = self._before = self._found = 0
    self._told = True  # nothing has happened since the last line

  def __enter__(self):
    self._start = self._said = time.monotonic()
    if self._active and logs.on_terminal():
      text = TextColumn('{task.fields[text]}')
      columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text
      self._bar = Progress(*columns, console=Console(stderr=True))
      self._task = self._bar.add_task(self._unit, total=self._total, text='', visible=False)
      self._bar.start()
    return self

  def __exit__(self, kind, *_):
    if self._bar:
      self._bar.stop()
    elif kind is None and not self._told:
      self._say()

  def opened(self, windows: int, before: int, found: int) -> None:
    """An image of so many windows, some of which were done before, with what they had found."""
    if self._unit == 'windows':
      self._total, self._before, self._done, self._found = windows, before, before, found
      self._active = self._active and windows >= self._least

  def windows(self, count: int, found: int) -> None:
    """Windows are done, in which so many objects were found."""
    if self._unit == 'windows':
      self._add(count, found)

  def image(self, found: int) -> None:
    """An image is done."""
    if self._unit == 'images':
      self._add(1, found)

  def _add(self, count, found):
    self._done, self._found, self._told = self._done + count, self._found + found, False
    if not self._active:
      self._told = True
    elif self._bar:
      options = dict(completed=self._done, total=self._total, text=self._text(), visible=True)
      self._bar.update(self._task, **options)
    elif time.monotonic() - self._said > EVERY or self._done == self._total:
      self._say()

  def _text(self):
    speed = (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)
    end = ' before merging' if self._unit == 'windows' else ''
    return f'{speed:.1f} {self._unit}/s, {self._found:,} found{end}'

  def _say(self):
    self._said, self._told = time.monotonic(), True
    total = '' if self._total is None else f'/{self._total}'
    logger.info('%d%s %s, %s', self._done, total, self._unit, self._text())
