"""Detection heads, one class a kind; `config.heads.HEADS` has the rows that name them."""

from typing import Any

from sm3det_jax.config.heads import HEADS
from sm3det_jax.config.registry import resolve


def head_class(kind: str) -> Any:
  """The class of a kind that `config.tasks.<task>.head.type` names, a `heads.common.Head`."""
  return resolve(HEADS[kind].module)
