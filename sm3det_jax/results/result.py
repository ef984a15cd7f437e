"""`Result`: the detections of one image."""

import dataclasses
import os
import pathlib

import numpy as np

from data_pipelines import boxes as box_lib
from data_pipelines import rasters
from data_pipelines.errors import UserError
from data_pipelines.georeference import Georeference
from data_pipelines.readers import files
from sm3det_jax.results import coco, csv, dota, formats, geojson, json, supervision, yolo_obb
from sm3det_jax.viz import draw


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """The detections of one image, best first.

  `len(r)` counts them, `r[mask]`, `r[3]` and `r[:10]` are results of some of them, and `r['boxes']`
  is the array of that name.

  Attributes:
    boxes: float32 [n, 4] x1, y1, x2, y2 or [n, 5] cx, cy, w, h, theta (radians, le90), pixels.
    scores: float32 [n].
    labels: int [n], of `classes`.
    classes: the task's.
    task: whose head looked.
    image: file, or pixels.
    size: (height, width) of the image.
    georeference: where the image lies on the Earth, if that is known.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  task: str
  image: str | os.PathLike | np.ndarray
  size: tuple[int, int]
  georeference: Georeference | None = None

  KEYS = ('boxes', 'scores', 'labels', 'names', 'polygons')

  def __len__(self) -> int:
    return len(self.scores)

  def __getitem__(self, key):
    if isinstance(key, str):
      if key not in self.KEYS:
        raise KeyError(key)
      return getattr(self, key)
    if isinstance(key, (int, np.integer)):
      key = [key]
    rows = {k: getattr(self, k)[key] for k in ('boxes', 'scores', 'labels')}
    return dataclasses.replace(self, **rows)

  def __contains__(self, key) -> bool:
    return key in self.KEYS

  def __repr__(self) -> str:
    counts = ', '.join(
      f'{self.names.count(name)} {name}' for name in self.classes if name in self.names
    )
    return f'Result({self.name}, {self.task}: {counts or "nothing"})'

  def keys(self) -> tuple[str, ...]:
    """Names of the arrays, so that `dict(r)` has them."""
    return self.KEYS

  @property
  def names(self) -> list[str]:
    """Class name of each detection."""
    return [self.classes[k] for k in self.labels]

  @property
  def polygons(self) -> np.ndarray:
    """Corners x1, y1 .. x4, y4 in pixels, clockwise on the screen, float64 [n, 8]."""
    return box_lib.to_polygon(self.boxes)

  @property
  def oriented(self) -> bool:
    """True for boxes with an angle."""
    return self.boxes.shape[-1] == 5

  @property
  def name(self) -> str:
    """The image's path, as text that any encoding takes."""
    return 'image' if isinstance(self.image, np.ndarray) else files.printable(str(self.image))

  @property
  def file_name(self) -> str:
    """The last part of `name`."""
    return pathlib.PurePath(self.name).name

  def located(self, what: str) -> Georeference:
    """The georeference, that `what` cannot do without.

    Raises:
      UserError: there is none.
    """
    if self.georeference is None:
      raise UserError(
        f'{self.name}: no {what} without a georeference (a coordinate system, and an affine '
        'transform or ground control points); save as json, csv, coco, dota or yolo_obb'
      )
    return self.georeference

  def plot(self, path: str | os.PathLike | None = None, title: str = '') -> np.ndarray:
    """A picture (uint8 RGB) of the detections, written as PNG to `path` if that is given.

    An image is never read as a whole: of a large one the picture is at most `draw.LARGEST` px.
    """
    image, boxes = self.image, self.boxes
    if not isinstance(image, np.ndarray):
      with rasters.open_raster(pathlib.Path(image)) as raster:
        image, boxes = draw.overview(raster, boxes)
    title = title or self.task
    picture = draw.draw(image, boxes, self.labels, self.classes, self.scores, title)
    if path is not None:
      draw.save(pathlib.Path(path), picture)
    return picture

  def save(self, path: str | os.PathLike, format: str | None = None) -> None:
    """Writes the detections as one file, and beside GeoJSON and GeoPackage a style for QGIS.

    Args:
      path: its suffix says the format: `.json`, `.geojson`, `.gpkg`, `.coco.json`, `.dota.txt`,
        `.yolo_obb.txt`, `.csv` or `.png`. Its folder is made if absent.
      format: one of `formats.FORMATS`, whatever the suffix.

    Raises:
      UserError: no such format; it needs a georeference or an extra that is not there.
      OSError: the file cannot be written.
    """
    formats.save(self, pathlib.Path(path), format)

  def to_json(self) -> dict:
    """This project's JSON."""
    return json.content(self)

  def to_geojson(self) -> dict:
    """A FeatureCollection by RFC 7946; raises UserError without a georeference."""
    return geojson.content(self)

  def to_gpkg(self, path: str | os.PathLike) -> None:
    """`save` as GeoPackage, which is nothing but a file."""
    self.save(path, 'gpkg')

  def to_coco(self) -> dict:
    """COCO json of this image, oriented boxes as `segmentation`."""
    return coco.content(self)

  def to_dota(self) -> str:
    """DOTA's label text."""
    return dota.content(self)

  def to_yolo_obb(self) -> str:
    """YOLO-OBB's label text."""
    return yolo_obb.content(self)

  def to_csv(self) -> str:
    """A row a detection."""
    return csv.content(self)

  def to_supervision(self):
    """`supervision.Detections`; raises UserError where that is not installed."""
    return supervision.detections(self)
