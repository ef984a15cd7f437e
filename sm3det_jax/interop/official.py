"""The official PyTorch implementation's configs and weights, in and out.

A state dict is {official name: array} in PyTorch layouts (convolutions OIHW, linear (out, in)). One
table made from the config pairs every official name with ours, so both directions agree.
"""

import re
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections

from data_pipelines.errors import UserError
from sm3det_jax import config as config_lib
from sm3det_jax.backbones import build as build_backbone
from sm3det_jax.config.necks import NECKS
from sm3det_jax.config.registry import resolve
from sm3det_jax.interop import backbones, heads, layouts
from sm3det_jax.interop.layouts import Entry, affine, expect
from sm3det_jax.interop.two_stage import first

TASKS = {'sar': 'hbb', 'rgb': 'obb', 'ifr': 'obb'}
# constants of the official modules
IGNORED = ('.mean', '.std', '.integral.project', '.or_conv.indices',
           '.num_batches_tracked', '.relative_position_index')  # fmt: skip
DETECTORS = tuple(f'TriSource{kind}Detector' for kind in ('', 'OneOne', 'TwoOne', 'TwoTwo'))


def config_from_official(model: dict) -> ml_collections.ConfigDict:
  """Our config of an official `model` dict.

  Tasks are sar, rgb, ifr, with classes named class_0.. owned by every task (`label_space` joint).
  What the dict leaves out has the official constructor's default.

  Raises:
    UserError: a detector, backbone or head of another kind.
  """
  c = config_lib.default()
  expect(model, *DETECTORS)
  c.backbone, c.moe = backbones.config(model['backbone'])
  c.neck.channels = model['neck']['out_channels']
  c.neck.extra_convs = bool(model['neck'].get('add_extra_convs', False))
  head = model.get('sar_bbox_head') or first(model['sar_roi_head']['bbox_head'])
  classes = tuple(f'class_{i}' for i in range(head['num_classes']))
  del c.tasks
  c.tasks = ml_collections.ConfigDict(sort_keys=False)
  for name, box in TASKS.items():
    c.tasks[name] = config_lib.task(box, '', classes, ratio=2 if name == 'sar' else 1)
    c.tasks[name].head = heads.config(model, name)
  c.label_space = 'joint'
  return c


def from_state_dict(state_dict: dict, config: ml_collections.ConfigDict) -> dict:
  """Our variables, {'params': ...}, of a whole official detector.

  Raises:
    UserError: names every array that is missing or that nothing here takes.
  """
  return layouts.variables(entries(config), state_dict, IGNORED)


def to_state_dict(variables: dict, config: ml_collections.ConfigDict) -> dict:
  """The official names and layouts of our variables, or of a tree of gradients {'params': ...}.

  Raises:
    UserError: a kind of backbone, neck or head has no official names.
  """
  return layouts.state_dict(entries(config), variables)


class Backbone(NamedTuple):
  """A backbone alone, as it evaluates."""

  module: nn.Module

  def apply(self, variables: dict, images: jax.Array) -> list[jax.Array]:
    """Stage outputs [B, h, w, C], finest first, of images [B, H, W, bands]."""
    task = self.module.tasks[0]
    return self.module.apply(variables, {task: images}).stages[task]


def backbone(arguments: dict, state_dict: dict) -> tuple[Backbone, dict]:
  """An official backbone from its constructor's arguments (`type` among them) and its arrays.

  Returns:
    (backbone, variables) for `backbone.apply(variables, images)`.

  Raises:
    UserError: as `interop.backbones.config` and `from_state_dict`.
  """
  experts = [int(m[1]) for n in state_dict if (m := re.search(r'\.experts\.(\d+)\.', n))]
  if experts:  # a constructor's default is 2 or 4, the weights know
    arguments = {'num_experts': max(experts) + 1} | arguments
  c = config_lib.default()
  c.backbone, c.moe = backbones.config(arguments)
  table = backbones.entries(c)
  wanted = {name for entry in table for name in entry.names}
  state_dict = backbones.find(c.backbone.type).renamed(state_dict, wanted)
  return Backbone(build_backbone(c, c.tasks)), layouts.variables(table, state_dict, IGNORED)


def entries(config: ml_collections.ConfigDict, partial: bool = False) -> list[Entry]:
  """Every array of the model, ours and theirs.

  Args:
    config: of the model.
    partial: leaves out backbone, neck and heads that have no official names.

  Raises:
    UserError: one of them has none.
  """
  table = []
  if not partial or backbones.find(config.backbone.type):
    table += [
      e._replace(path=('backbone', *e.path), names=tuple(f'backbone.{n}' for n in e.names))
      for e in backbones.entries(config)
    ]
  if official := NECKS[config.neck.type].official:
    table += resolve(official)(config)
  elif not partial:
    raise UserError(f'neck {config.neck.type!r} has no official name')
  for name, task in config.tasks.items():
    if not partial or heads.find(task.head.type):
      table += heads.entries(name, task.head)
  return table


def fpn_entries(config: ml_collections.ConfigDict) -> list[Entry]:
  """Every array of the feature pyramid."""
  stages, table = len(config.backbone.depths), []
  for i in range(stages):
    table += affine(('neck', f'lateral_{i}'), f'neck.lateral_convs.{i}.conv', 'conv')
    table += affine(('neck', f'output_{i}'), f'neck.fpn_convs.{i}.conv', 'conv')
  for i in range(2 if config.neck.extra_convs else 0):
    table += affine(('neck', f'extra_{i}'), f'neck.fpn_convs.{stages + i}.conv', 'conv')
  return table
