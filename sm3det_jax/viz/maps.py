"""A scene beside its detections on a map, made of the files that `predict` writes.

docs/map.png is made so, with a model of the quickstart:

    sm3det scenes --geotiff=scenes --size=1536
    for TASK,SCENE in rgb,optical and sar,sar:
      sm3det predict --workdir=sm3det_quickstart --task=TASK --score_threshold=0.5 --save=geojson --out=found scenes/SCENE.tif
    maps.write([('scenes/SCENE.tif', 'found/SCENE_detections.geojson'), ..], 'docs/map.png')
"""  # noqa: E501

import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sm3det_jax.viz import draw

PIXELS = 800  # of a scene's longer side in the picture
DPI = 80
SIDE = 7.0  # inches of a panel


def write(pairs: Sequence[tuple[os.PathLike, os.PathLike]], path: str | os.PathLike) -> None:
  """Writes a picture, a row a scene: the scene, and its GeoJSON in longitude and latitude.

  Args:
    pairs: (raster, GeoJSON of its objects, each with a property `class`).
    path: of the PNG.
  """
  figure = Figure(figsize=(2 * SIDE + 0.6, SIDE * len(pairs)), layout='constrained')
  for (scene, geojson), axes in zip(pairs, figure.subplots(len(pairs), 2, squeeze=False),
                                    strict=True):  # fmt: skip
    _picture(axes[0], scene)
    _map(axes[1], geojson)
  figure.savefig(path, dpi=DPI)


def rings(content: dict) -> Iterator[tuple[str, np.ndarray]]:
  """(class, outer ring [k, 2]) of the polygons of a FeatureCollection."""
  for feature in content['features']:
    geometry = feature['geometry'] or {'type': 'MultiPolygon', 'coordinates': []}
    parts = geometry['coordinates']
    for part in [parts] if geometry['type'] == 'Polygon' else parts:
      yield feature['properties']['class'], np.array(part[0])


def _picture(axis, scene):
  import rasterio

  with rasterio.open(scene) as raster:
    factor = min(1.0, PIXELS / max(raster.shape))
    height, width = (round(side * factor) for side in raster.shape)
    shape = (raster.count, height, width)
    image = raster.read(out_shape=shape, resampling=rasterio.enums.Resampling.average)
    extent = (0, raster.width, raster.height, 0)
  axis.imshow(draw.to_rgb(np.moveaxis(image, 0, -1)), extent=extent)
  axis.set(title=pathlib.Path(scene).name, xlabel='px')


def _map(axis, geojson):
  found = list(rings(json.loads(pathlib.Path(geojson).read_text(encoding='utf-8'))))
  counts = Counter(name for name, _ in found)
  handles = []
  for label, name in enumerate(sorted(counts)):
    color = np.array(draw.color(label)) / 255
    shapes = [ring for kind, ring in found if kind == name]
    axis.add_collection(PolyCollection(shapes, facecolor=(*color, 0.45), edgecolor=color * 0.7))
    text = f'{name} ({counts[name]})'
    handles.append(Line2D([], [], color=color, marker='s', linestyle='', label=text))
  points = np.concatenate([ring for _, ring in found]) if found else np.zeros((1, 2))
  axis.update_datalim(points)
  axis.autoscale_view()
  axis.set_aspect(1 / np.cos(np.radians(points[:, 1].mean())))
  axis.ticklabel_format(useOffset=False)
  axis.tick_params(axis='x', rotation=20)
  axis.set_axisbelow(True)
  axis.grid(color='0.85', linewidth=0.6)
  axis.set(title=pathlib.Path(geojson).name, xlabel='longitude', ylabel='latitude')
  axis.legend(handles=handles, loc='upper center', bbox_to_anchor=(0.5, -0.11), ncols=4, fontsize=9)
