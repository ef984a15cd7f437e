"""What of a data set was left out or mended, and how strict to be about it."""

import collections
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

from data_pipelines.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar('T')


class BadEntry(UserError):
  """One entry of a data set that cannot be used: a file, a line, an element of a json.

  Args:
    reason: the kind of fault, the same for all entries that have it.
    place: file and entry.
    detail: what more there is to say of this one.
  """

  def __init__(self, reason: str, place, detail: str = ''):
    super().__init__(f'{place}: {detail or reason}')
    self.reason, self.place, self.detail = reason, place, detail


class Skipped:
  """Counts what was left out or mended, by reason, and logs each (reason, place) once.

  It goes through all readers, and carries what they have to know of the user's wishes.

  Args:
    strict: a bad entry ends the reading, where it is left out and counted otherwise.
    encoding: of text files without a byte order mark.
    follow_links: follow links out of the source, too.

  Attributes:
    counts: collections.Counter {reason: objects or images}.
    places: {reason: the first places, at most `SHOWN`}.
    notes: what was decided for the whole data set and on what evidence, a sentence each.
  """

  LOGGED = 20  # places a reason; the others are only counted
  SHOWN = 3

  def __init__(self, strict: bool = False, encoding: str = 'utf-8-sig', follow_links: bool = False):
    self.strict, self.encoding, self.follow_links = strict, encoding, follow_links
    self.counts = collections.Counter()
    self.notes: list[str] = []
    self._places = collections.defaultdict(dict)  # as an ordered set

  def add(self, reason: str, place, count: int = 1, level: int = logging.WARNING) -> None:
    """Adds `count` to `reason`; nothing happens for a count of 0."""
    if not count:
      return
    self.counts[reason] += int(count)
    places, place = self._places[reason], str(place)
    if place in places or len(places) > self.LOGGED:
      return
    places[place] = None
    if len(places) > self.LOGGED:
      logger.log(level, '%s: over %d places; the others are only counted', reason, self.LOGGED)
    else:
      logger.log(level, '%s: %s%s', place, reason, f' ({count})' if count > 1 else '')

  def take(self, error: BadEntry, count: int = 1) -> None:
    """Leaves out a bad entry, or several of one kind and place; nothing happens for a count of 0.

    Raises:
      BadEntry: if strict.
    """
    if self.strict and count:
      raise error
    self.add(error.reason, f'{error.place}: {error.detail}' if error.detail else error.place, count)

  def bad(self, reason: str, place, detail: str = '', count: int = 1) -> None:
    """`take` of a new `BadEntry`."""
    self.take(BadEntry(reason, place, detail), count)

  def usable(self, read: Callable[..., T], entries: Iterable[tuple]) -> list[T]:
    """`read(*entry)` of every entry that is good; the others are left out, see `take`."""
    found = []
    for entry in entries:
      try:
        found.append(read(*entry))
      except BadEntry as error:
        self.take(error)
    return found

  def note(self, sentence: str) -> None:
    """Keeps a decision for the report, which says it once."""
    if sentence not in self.notes:
      self.notes.append(sentence)

  @property
  def places(self) -> dict[str, list[str]]:
    return {reason: list(found)[: self.SHOWN] for reason, found in self._places.items()}

  def summary(self) -> str:
    """All reasons in one line, each with its count and first place."""
    return '; '.join(
      f'{reason}: {n} ({self.places[reason][0]})' for reason, n in sorted(self.counts.items())
    )


class Unheard(Skipped):
  """Counts and says nothing: for a first look at files that are read once more."""

  def add(self, reason: str, place, count: int = 1, level: int = logging.WARNING) -> None:
    pass
