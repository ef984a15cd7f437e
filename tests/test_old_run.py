"""A run of November 2026, before config sections, seams and names moved, is read and goes on."""

import pathlib
import tarfile

import jax
import numpy as np
import pytest

from data_pipelines.errors import UserError
from sm3det_jax import checkpoint, config, preprocess, train
from sm3det_jax.detector import build

ARCHIVE = pathlib.Path(__file__).parent / 'data' / 'run_2026_11.tar.xz'

# What the code of then logged two steps later. It was compiled with all optimisations, the tests
# without (conftest.py), and sums come in another order: hence 1e-4 and not the same bits.
LOSSES_AT_4 = {
  'ifr/bbox': 0.09770149737596512,
  'ifr/cls': 1.6678211688995361,
  'ifr/rpn_bbox': 0.005904586520045996,
  'ifr/rpn_cls': 0.6932699680328369,
  'moe/balance': 3.377789107616991e-05,
  'rgb/bbox': 0.37432023882865906,
  'rgb/cls': 1.2817871570587158,
  'rgb/rpn_bbox': 0.0098936278373003,
  'rgb/rpn_cls': 0.6931539177894592,
  'sar/bbox': 0.044456981122493744,
  'sar/cls': 0.33523082733154297,
  'sar/dfl': 0.013659724965691566,
}
MULTIPLIERS_AT_4 = {
  'ifr/roi_head': 0.8607292175292969,
  'ifr/rpn_head': 0.9515513181686401,
  'rgb/roi_head': 0.7959027290344238,
  'rgb/rpn_head': 1.1189031600952148,
  'sar/bbox_head': 1.1819425821304321,
  'shared': 1.7160308361053467,
}
# Of the picture below, by the model of step 2: mean magnitude of the levels, finest first; number,
# sum of scores, first box, score and label of the detections.
LEVELS = [1.297567, 0.993127, 0.589030, 0.476830, 0.371259]  # of the oriented heads
FOUND = {
  'sar': (60, 0.636118, [23.1188, 31.5730, 55.6717, 64.0], 0.012346, 0),
  'rgb': (18, 3.935579, [47.6519, 47.2040, 25.8493, 17.0201, 0.4516], 0.376918, 3),
}


@pytest.fixture
def workdir(tmp_path):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path


def picture():
  y, x = np.mgrid[:64, :64]
  return np.stack([(5 * x + y) % 256, x * y // 16, 255 - 3 * y], -1).astype(np.uint8)[None]


def test_its_config_gets_the_keys_of_today(workdir):
  text = (workdir / 'config.json').read_text()
  assert '"balance": "dla"' in text and '"phases"' not in text  # as it was written
  c = checkpoint.load_config(workdir)
  assert c.task_balance == 'dla' and 'balance' not in c
  default = config.default()
  assert (c.model, c.phases, c.optim.groups) == (default.model, default.phases, ())
  assert c.optim.schedule == default.optim.schedule
  assert {name: task.kind for name, task in c.tasks.items()} == {
    'sar': 'hbb',
    'rgb': 'obb',
    'ifr': 'obb',
  }
  assert not any('box' in task for task in c.tasks.values())
  config.check(c)


@pytest.mark.slow
def test_its_model_sees_what_it_saw(workdir):
  c, variables = checkpoint.restore_for_inference(workdir)
  c.tasks.sar.head.score_threshold = 0.0  # untrained: all classes are improbable
  detector, shapes = build(c), np.array([[64, 64]], np.int32)

  @jax.jit
  def seen(variables):
    found = {}
    for name in FOUND:
      task = c.tasks[name]
      images = preprocess.normalise(picture(), task.mean, task.std, shapes)
      found[name] = detector.detect(variables, images, name, shapes)
    return detector.features(variables, images, name), found

  levels, found = seen(variables)
  means = [float(np.abs(level).mean()) for level in levels]
  np.testing.assert_allclose(means, LEVELS, rtol=1e-4)
  for name, (count, total, box, score, label) in FOUND.items():
    boxes, scores, labels, valid = (np.asarray(a[0]) for a in found[name])
    assert (valid.sum(), labels[0]) == (count, label)
    np.testing.assert_allclose(scores[valid].sum(), total, rtol=1e-4)
    np.testing.assert_allclose(boxes[0], box, atol=0.01)
    np.testing.assert_allclose(scores[0], score, rtol=1e-4)


def test_its_training_is_restored(workdir):
  c = checkpoint.load_config(workdir)
  c.data_root = str(workdir / 'data')
  assert train.train(c, workdir) == {}  # config, data and state are the run's; no step is left
  c.optim.lr = 0.5
  with pytest.raises(UserError, match='optim.lr is 0.0005 there, 0.5 here'):
    train.train(c, workdir)


@pytest.mark.slow
def test_it_goes_on_as_it_would_have(workdir):
  c = checkpoint.load_config(workdir)
  c.data_root, c.optim.steps = str(workdir / 'data'), 4
  metrics = train.train(c, workdir)
  for prefix, expected in (('loss', LOSSES_AT_4), ('multiplier', MULTIPLIERS_AT_4)):
    got = {k.partition('/')[2]: v for k, v in metrics.items() if k.startswith(f'{prefix}/')}
    assert set(got) == set(expected)
    for name, value in expected.items():
      np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
