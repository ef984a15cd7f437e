"""What the trainer needs of any model, and the registry behind `config.model`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from sm3det_jax.config import check
from sm3det_jax.config.models import MODELS
from sm3det_jax.config.registry import resolve

__all__ = ['MODELS', 'Model', 'build']


class Model(Protocol):
  """A model of a config; all state is in the `variables` that the caller holds.

  Attributes:
    tasks: names of the tasks that it learns.
    term_groups: {loss term: group}, the parameters of group 'task/module' lying under
      'heads_<task>/<module>/'; a group's learning rate follows its terms (see `optim.dla`).
  """

  tasks: Sequence[str]
  term_groups: Mapping[str, str]

  def init(self, rng: jax.Array) -> dict:
    """Fresh variables: {'params': ...} and the Flax collections of what else has state."""

  def prepare(self, batch: dict) -> dict:
    """A batch as it comes from the files, made ready for `loss` on the device: normalised."""

  def loss(self, variables: Any, batch: dict, rng: jax.Array) -> tuple[jax.Array, tuple]:
    """The training loss of a prepared batch {task: {'images': ..., ...}}.

    Returns:
      (total, (terms, updates)): terms {'task/term': scalar}, for the log and the balance of the
      tasks; updates {collection: what replaces it in `variables`}, {} where nothing changes. Its
      entry 'metrics' {kind: {name: scalar}}, of the kinds of `logs.KINDS`, is for the log alone.

    With `config.phases` it takes the static number of the `phase` too, by default the last, and
    leaves out of total and terms what does not count in it (see `config.phases.counts`).
    """


def build(config: ConfigDict) -> Model:
  """The model of a config.

  Raises:
    UserError: as `sm3det_jax.config.check`.
  """
  return resolve(MODELS[check(config).model])(config)
