"""`sm3det prepare`: data sets in their own formats -> prepared data sets that training reads."""

import dataclasses
import logging
import pathlib

from data_pipelines.builders import scan
from data_pipelines.readers import Skipped, coco

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Report:
  """What was prepared.

  Attributes:
    name, folder, box, classes: of the data set.
    images, objects: {split: images}, {split: [objects of each class]}.
    skipped: {reason: count}.
    fingerprints: {split: hash}.
  """

  name: str
  folder: str
  box: str
  classes: tuple
  images: dict
  objects: dict
  skipped: dict
  fingerprints: dict


def prepare(
  dataset, source, data_dir, *, name=None, classes=(), splits=None, ignore=(), aliases=None
) -> Report:
  """Minimal: COCO json only."""
  from data_pipelines.builders import detection

  source, skipped = pathlib.Path(source), Skipped()
  label = scan.labeller(classes, ignore, aliases)
  entries = {}
  for split, (labels, images) in splits.items():
    found = coco.read(source, split, labels=labels, images=images, skipped=skipped)
    entries[split] = list(
      scan.scan(found, 'obb' if dataset == 'coco_rotated' else 'hbb', label, skipped)
    )
  box = 'obb' if dataset == 'coco_rotated' else 'hbb'
  folder = detection.build(name or dataset, classes, box, entries, data_dir)
  return Report(
    name=name or dataset,
    folder=str(folder),
    box=box,
    classes=tuple(classes),
    images={s: len(e) for s, e in entries.items()},
    objects={
      s: [sum(int((x.labels == k).sum()) for x in e) for k in range(len(classes))]
      for s, e in entries.items()
    },
    skipped=dict(skipped.counts),
    fingerprints={s: detection.fingerprint(e) for s, e in entries.items()},
  )
