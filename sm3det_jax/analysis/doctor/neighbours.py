"""Pairs of things that are near one another, without a look at all pairs."""

from collections.abc import Callable, Iterator

import numpy as np


def pairs(
  count: int, together: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields pairs of positions of a sorted list, first < second, in pieces.

  A piece has the pairs of one distance, so no position is twice first, nor twice second, in it.

  Args:
    count: length of the list.
    together: (first, second) [k] each -> bool [k]. The list is sorted so that what is not together
      with a position is not together with it farther on either.
  """
  first, distance = np.arange(count), 1
  while len(first):
    first = first[first + distance < count]
    first = first[together(first, first + distance)]
    yield first, first + distance
    distance += 1
