"""The rate and the schedule of larger and smaller batches."""

import logging
import math

import pytest

from sm3det_jax import config as config_lib
from sm3det_jax.config import batch_scaling
from sm3det_jax.optim import optimizer


def of_batch(batch, scaling):
  c = config_lib.default()
  c.batch_size, c.optim.lr_scaling = batch, scaling
  return config_lib.check(c)


@pytest.mark.parametrize('scaling, lr', [('linear', 3.2e-3), ('sqrt', 1e-4 * math.sqrt(32))])
def test_a_pod_takes_a_32nd_of_the_steps(scaling, lr, caplog):
  caplog.set_level(logging.INFO)
  c = batch_scaling.scaled(of_batch(1024, scaling))
  assert c.optim.lr == pytest.approx(lr)
  assert (c.optim.steps, c.optim.milestones) == (1046, (697, 959))
  assert (c.optim.warmup_steps, c.dla.warmup_steps) == (16, 16)
  assert f'batch 1024 = 32 x the reference 32, {scaling} scaling' in caplog.text
  assert 'steps 33468 -> 1046' in caplog.text
  rate = optimizer.schedule(c.optim)
  assert [float(rate(s)) for s in (0, 16, 697, 959)] == pytest.approx(
    [lr / 3, lr, lr / 10, lr / 100]
  )


def test_a_smaller_batch_takes_more_steps():
  c = batch_scaling.scaled(of_batch(8, 'linear'))
  assert (c.optim.lr, c.optim.steps) == (pytest.approx(2.5e-5), 4 * 33_468)


def test_none_changes_nothing_and_scaling_again_neither():
  c = of_batch(1024, 'none')
  assert batch_scaling.scaled(c) == c
  c = of_batch(1024, 'sqrt')
  before, once = c.to_json(), batch_scaling.scaled(c)
  assert batch_scaling.scaled(once) == once
  assert c.to_json() == before  # the argument stays


def test_no_warm_up_stays_none_and_nothing_shrinks_to_zero():
  c = of_batch(2**16, 'linear')
  c.optim.update(warmup_steps=0, steps=100)
  c = batch_scaling.scaled(c)
  assert (c.optim.warmup_steps, c.optim.steps) == (0, 1)


def test_an_unknown_scaling_is_an_error():
  with pytest.raises(ValueError, match="optim.lr_scaling='cubic': expected 'none' or 'linear' or"):
    of_batch(64, 'cubic')
