"""The neck of a config, between the backbone and the heads."""

from typing import Any

import flax.linen as nn

from sm3det_jax.config.necks import NECKS
from sm3det_jax.config.registry import resolve


def build(config: Any) -> nn.Module:
  """The neck of a config: (stage outputs, first stage that is used) -> levels, finest first."""
  arguments = dict(config.neck)
  kind = resolve(NECKS[arguments.pop('type')].module)
  return kind(stages=len(config.backbone.depths), **arguments)
