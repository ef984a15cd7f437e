"""The official heads: our configs of theirs, their arrays against ours.

A row of `config.heads.HEADS` names what is said of its kind.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from data_pipelines.errors import UserError
from sm3det_jax.config.heads import HEADS
from sm3det_jax.config.registry import resolve
from sm3det_jax.interop.layouts import Entry


class OfficialHead(NamedTuple):
  """What the official code calls a kind of head, and its arrays."""

  modules: dict[str, str]  # type of each, {'bbox_head': 'GFLHead'}; they tell the kind
  config: Callable  # (official model dict, task) -> config of the head
  entries: Callable  # (task, config of the head) -> every array of it
  also: tuple[str, ...] = ()  # modules with arrays and without a type


def find(kind: str) -> OfficialHead | None:
  """What is said of a kind; None if it has no official names."""
  return resolve(HEADS[kind].official) if HEADS[kind].official else None


def modules() -> set[str]:
  """Names of the modules of heads in the official code, less the task's."""
  known = [official for kind in HEADS if (official := find(kind))]
  return {name for official in known for name in (*official.modules, *official.also)}


def entries(task: str, head: ml_collections.ConfigDict) -> list[Entry]:
  """Every array of the head of a task, ours and theirs.

  Raises:
    UserError: the kind has no official names.
  """
  if not (official := find(head.type)):
    raise UserError(f'head {head.type!r} has no official name')
  return official.entries(task, head)


def config(model: dict, task: str) -> ml_collections.ConfigDict:
  """Our config of an official model's head for a task.

  Raises:
    UserError: no kind here is made of its modules, or one differs in what is fixed here.
  """
  types = {
    name.removeprefix(f'{task}_'): part['type']
    for name, part in model.items()
    if name.startswith(f'{task}_') and isinstance(part, dict) and 'type' in part
  }
  known = [official for kind in HEADS if (official := find(kind))]
  for official in known:
    if official.modules.items() <= types.items():
      return official.config(model, task)
  raise UserError(
    f'{task}: a head of {" and ".join(types.values())} is not supported here, only '
    + ', '.join(' and '.join(official.modules.values()) for official in known)
  )
