"""One head of a recorded official detector, run alone on the recorded features."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from sm3det_jax.heads import head_class
from sm3det_jax.interop import heads, layouts, official

SIZE, OBJECTS = 256, 10  # px of the recorded images; objects an image, padding included
IMAGES = {'sar': ('sar0', 'sar1'), 'rgb': ('rgb',), 'ifr': ('ifr',)}


def nhwc(x):
  return jnp.asarray(x.transpose(0, 2, 3, 1))


def relative(got, want):
  return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


class Recorded:
  """The head of a task, with the official weights, features and objects."""

  def __init__(self, root, task):
    self.root, self.task = root, task
    model = json.loads((root / 'config.json').read_text())['model']
    config = official.config_from_official(model).tasks[task]
    self.entries = heads.entries(task, config.head)
    weights, tree = np.load(root / 'weights.npz'), {}
    for entry in self.entries:
      layouts.put(tree, entry.path, jnp.asarray(layouts.ours(entry, weights)))
    self.params = tree[f'heads_{task}']
    self.classes = len(config.classes)
    self.head = head_class(config.head.type)(FrozenConfigDict(config.head), self.classes)
    pyramid, inputs = np.load(root / 'eval_fpn.npz'), np.load(root / 'inputs.npz')
    self.features = [nhwc(pyramid[f'{task}.p{i}']) for i in range(5)]
    self.shapes = jnp.full((len(IMAGES[task]), 2), SIZE)
    own = lambda name: [inputs[f'gt_{name}.{image}'] for image in IMAGES[task]]
    self.targets = {
      'boxes': padded(own('bboxes'), 1), 'labels': padded(own('labels'), 0), 'shapes': self.shapes,
      'valid': padded([np.ones(len(x), bool) for x in own('labels')], False),
    }  # fmt: skip

  def load(self, name):
    """The recorded arrays of the task, without its name."""
    arrays = np.load(self.root / f'{name}.npz')
    return {k[len(self.task) + 1 :]: arrays[k] for k in arrays if k.startswith(self.task)}

  def run(self, f, *args):
    """The result of a method of the head, or of a function of the head and `args`."""
    apply = lambda params, *args: self.head.apply({'params': params}, *args, method=f)
    return jax.jit(apply)(self.params, *args)

  def losses(self):
    """Terms of all samples, and the gradients of their sum under official names."""

    def total(params):
      args = self.features, self.targets, None, 'all'
      terms = self.head.apply({'params': params}, *args, method='loss')
      return sum(terms.values()), terms

    grads, terms = jax.jit(jax.grad(total, has_aux=True))(self.params)
    tree, theirs = {f'heads_{self.task}': grads}, {}
    for entry in self.entries:
      theirs |= layouts.theirs(entry, np.asarray(layouts.get(tree, entry.path)))
    return terms, theirs


def padded(arrays, fill, size=OBJECTS):
  """One array [B, size, ...] of several."""
  out = np.full((len(arrays), size, *arrays[0].shape[1:]), fill, arrays[0].dtype)
  for row, array in zip(out, arrays, strict=True):
    row[: len(array)] = array
  return jnp.asarray(out)


def official_name(term):
  """'s0.cls' -> 's0.loss_cls', 'rpn_cls' -> 'loss_rpn_cls'."""
  stage, dot, name = term.rpartition('.')
  return f'{stage}{dot}loss_{name}'


def assert_losses(got, want, prefix):
  """Terms of ours against a dict of recorded ones."""
  for name, value in got.items():
    np.testing.assert_allclose(value, want[prefix + official_name(name)], rtol=2e-5, err_msg=name)


def assert_gradients(root, grads):
  """The norms of all gradients given, and those arrays that are recorded."""
  want = np.load(root / 'train_all_grads.npz')
  norms = dict(zip(want['grad_norm_names'].tolist(), want['grad_norms'], strict=True))
  errors = {n: abs(np.linalg.norm(g.astype(np.float64)) / norms[n] - 1) for n, g in grads.items()}
  arrays = {n: relative(g, want[f'grad.{n}']) for n, g in grads.items() if f'grad.{n}' in want}
  errors, arrays = np.asarray(list(errors.values())), np.asarray(list(arrays.values()))
  assert errors.max() < 2e-2 and arrays.max(initial=0) < 5e-3  # single ReLUs switch in float32
  assert np.mean(np.concatenate([errors, arrays]) < 1e-3) >= 0.9
