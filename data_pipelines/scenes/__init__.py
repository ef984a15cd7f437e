"""Scenes drawn from a seed, which look like their sensors' images: SAR, optical, infrared.

They stand in for data sets where there are none: the quickstart trains and tests on them. What is
written are ordinary files in the data sets' own formats, for the same readers as real data. Image
`i` of a split depends on nothing but (seed, split, modality, i).
"""

import concurrent.futures
import functools
import itertools
import json
import pathlib
import zlib

import cv2
import numpy as np

from data_pipelines.scenes import infrared, optical, sar, shapes

MODALITIES = {'sar': sar, 'optical': optical, 'infrared': infrared}
CLASSES = {name: module.CLASSES for name, module in MODALITIES.items()}


def draw(
  modality: str, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Draws a scene.

  Args:
    modality: 'sar', 'optical' or 'infrared'.
    rng: all of the scene comes from it.
    size: height and width, px; objects have sides of 10 to 64 px whatever it is.

  Returns:
    image uint8, [size, size, 3] RGB if optical, else [size, size]; polygons float32 [n, 8], of SAR
    the corners of upright boxes in continuous coordinates, else the corners of oriented boxes with
    pixel centres at integers; the class of each. Every object lies wholly in the image.
  """
  module = MODALITIES[modality]
  image, things = module.scene(rng, size)
  corners = module.box if modality == 'sar' else shapes.corners
  polygons = np.float32([corners(thing) for thing in things]).reshape(-1, 8)
  return image, polygons, tuple(thing.name for thing in things)


def write(
  root, seed: int, counts: dict[str, int], size: int = 256, threads: int | None = None
) -> None:
  """Writes scenes and labels of every modality; files of the same names are overwritten.

  `root/sar` is COCO json (`sm3det prepare --dataset=coco`), `root/optical` DOTA text (`dota_txt`),
  `root/infrared` DroneVehicle XML without the raw release's border (`dronevehicle`).

  Args:
    root: folder.
    seed: of everything.
    counts: {split: images a modality}, e.g. {'train': 400, 'test': 40}.
    size: of the images, px.
    threads: that draw; by default what `concurrent.futures` thinks right for the machine.
  """
  writers = {'sar': _write_sar, 'optical': _write_optical, 'infrared': _write_infrared}
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for split, modality in itertools.product(counts, MODALITIES):
      one = functools.partial(scene, seed, split, modality, size)
      scenes = pool.map(one, range(counts[split]))
      writers[modality](pathlib.Path(root) / modality, split, scenes)


def scene(seed: int, split: str, modality: str, size: int, i: int) -> tuple:
  """Scene `i` of a split: its name, and what `draw` returns, corners to 0.01 px."""
  key = [seed, zlib.crc32(split.encode()), list(MODALITIES).index(modality), i]
  image, polygons, names = draw(modality, np.random.default_rng(key), size)
  return f'{i:05d}', image, np.round(polygons.astype(np.float64), 2), names


def _write_sar(root, split, scenes):
  images, annotations = [], []
  for i, (name, image, polygons, names) in enumerate(scenes):
    save_image(root / 'JPEGImages' / split / f'{name}.png', image)
    height, width = image.shape
    images.append({'id': i, 'file_name': f'{name}.png', 'width': width, 'height': height})
    for polygon, kind in zip(polygons, names, strict=True):
      x, y, w, h = *polygon[:2], *np.round(polygon[4:6] - polygon[:2], 2)
      annotations.append({
        'id': len(annotations), 'image_id': i, 'category_id': sar.CLASSES.index(kind) + 1,
        'bbox': [x, y, w, h], 'area': round(w * h, 2), 'iscrowd': 0,
      })  # fmt: skip
  categories = [{'id': k + 1, 'name': name} for k, name in enumerate(sar.CLASSES)]
  content = {'images': images, 'annotations': annotations, 'categories': categories}
  _save_text(root / 'Annotations' / f'{split}.json', json.dumps(content))


def _write_optical(root, split, scenes):
  for name, image, polygons, names in scenes:
    save_image(root / split / 'images' / f'{name}.png', image)
    lines = ['imagesource:drawn', 'gsd:null']
    for polygon, kind in zip(polygons, names, strict=True):
      lines.append(' '.join([*map(str, polygon.tolist()), kind, '0']))
    _save_text(root / split / 'labelTxt' / f'{name}.txt', '\n'.join(lines) + '\n')


def _write_infrared(root, split, scenes):
  for name, image, polygons, names in scenes:
    save_image(root / split / f'{split}imgr' / f'{name}.jpg', image)
    height, width = image.shape
    lines = [
      f'<annotation><filename>{name}.jpg</filename>',
      f'<size><width>{width}</width><height>{height}</height><depth>1</depth></size>',
    ]
    for polygon, kind in zip(polygons, names, strict=True):
      keys = ('x1', 'y1', 'x2', 'y2', 'x3', 'y3', 'x4', 'y4')
      points = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, polygon.tolist(), strict=True))
      lines.append(f'<object><name>{kind}</name><polygon>{points}</polygon></object>')
    _save_text(
      root / split / f'{split}labelr' / f'{name}.xml', '\n'.join([*lines, '</annotation>\n'])
    )


def save_image(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes uint8 [H, W] or RGB [H, W, 3] as what the suffix says; makes its folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  data = cv2.imencode(path.suffix, image[..., ::-1] if image.ndim == 3 else image)[1]
  path.write_bytes(data.tobytes())


def _save_text(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding='utf-8')
