"""One place where something may be wrong."""

from typing import NamedTuple


class Row(NamedTuple):
  """A place and a sentence.

  Attributes:
    image: index in `Dataset.images`, -1 for the whole set.
    text: what is found there.
    object: index in `Dataset.objects`, -1 for the whole image.
    other: index of another image or, where `object` is one, of another object of the image.
  """

  image: int
  text: str
  object: int = -1
  other: int = -1
