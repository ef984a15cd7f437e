"""The files that a result can be saved as."""

import functools
import importlib.util
import json as json_text
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from data_pipelines.errors import UserError
from sm3det_jax.results import coco, csv, dota, geojson, gpkg, json, style, yolo_obb


class Format(NamedTuple):
  """A row of `FORMATS`.

  Attributes:
    suffix: of its files.
    write: (result, path) -> None.
    styled: a QGIS style is put beside it.
    needs: module of the extra `geo`.
  """

  suffix: str
  write: Callable
  styled: bool = False
  needs: str = ''


def _text(content, result, path):
  found = content(result)
  with path.open('w', encoding='utf-8') as file:
    file.writelines([found] if isinstance(found, str) else lines(found))


def lines(content: dict) -> Iterator[str]:
  """Text of JSON, every item of a list of its own on a line of its own."""
  text = json_text.JSONEncoder(allow_nan=False).encode
  before = '{\n'
  for key, value in content.items():
    yield f'{before} {text(key)}: '
    if isinstance(value, list) and value:
      yield '[\n  ' + text(value[0])
      yield from (',\n  ' + text(item) for item in value[1:])
      yield '\n ]'
    else:
      yield text(value)
    before = ',\n'
  yield '\n}\n'


def _picture(result, path):
  result.plot(path)


_of = functools.partial(functools.partial, _text)
FORMATS = {
  'json': Format('.json', _of(json.content)),
  'geojson': Format('.geojson', _of(geojson.content), styled=True),
  'gpkg': Format('.gpkg', gpkg.write, styled=True, needs='pyogrio'),
  'coco': Format('.coco.json', _of(coco.content)),
  'dota': Format('.dota.txt', _of(dota.content)),
  'yolo_obb': Format('.yolo_obb.txt', _of(yolo_obb.content)),
  'csv': Format('.csv', _of(csv.content)),
  'png': Format('.png', _picture),
}


def save(result, path: pathlib.Path, format: str | None = None) -> None:
  """Writes a result; see `Result.save`."""
  row = FORMATS[checked([format or of_suffix(path)])[0]]
  path.parent.mkdir(parents=True, exist_ok=True)
  row.write(result, path)
  if row.styled:
    style.write(result, path)


def of_suffix(path: pathlib.Path) -> str:
  """The format whose suffix ends a file's name, the longest first.

  Raises:
    UserError: none.
  """
  for name, row in sorted(FORMATS.items(), key=lambda item: -len(item[1].suffix)):
    if path.name.lower().endswith(row.suffix):
      return name
  known = ', '.join(row.suffix for row in FORMATS.values())
  raise UserError(f'{path}: no format has this suffix; expected {known}, or name the format')


def checked(names: Iterable[str]) -> list[str]:
  """The names, each a format whose modules are there.

  Raises:
    UserError: one is none, or needs what is not installed.
  """
  names = list(names)
  for name in names:
    if name not in FORMATS:
      raise UserError(f'format {name!r} of results: expected one of {", ".join(FORMATS)}')
    needs = FORMATS[name].needs
    if needs and importlib.util.find_spec(needs) is None:
      raise UserError(f"format {name!r} of results needs {needs}: pip install 'sm3det-jax[geo]'")
  return names
