"""Rows of the registries: what a kind of head, backbone, neck or model is, free of jax.

A class is named 'package.module:Class' and imported when it is built, so that a config costs no
import of the model; a class itself does as well.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class HeadKind(NamedTuple):
  """A row of `config.heads.HEADS`."""

  box: str  # of its detections and objects: 'hbb' or 'obb'
  defaults: Callable  # () -> its config
  module: Any  # the class
  official: Any = ''  # an `interop.heads.OfficialHead`; '': it has no official name
  channels: int = 1  # what its `channels` are a multiple of


class BackboneKind(NamedTuple):
  """A row of `config.backbones.BACKBONES`."""

  defaults: Callable  # size -> (its config, changes of config.moe)
  module: Any  # the class
  official: Any = ''  # an `interop.backbones.OfficialBackbone`; '': it has no official name


class NeckKind(NamedTuple):
  """A row of `config.necks.NECKS`."""

  module: Any  # the class; its fields are `stages` and the keys of config.neck
  official: Any = ''  # config -> entries, see `interop.layouts.Entry`; '': it has no official name


def resolve(target: Any) -> Any:
  """What 'package.module:name' names; anything but a string is itself."""
  if not isinstance(target, str):
    return target
  module, _, name = target.partition(':')
  return getattr(importlib.import_module(module), name)
