"""Kinds of experts, each with its backward pass by hand; the dispatch of tokens knows no more."""

from collections.abc import Callable
from typing import NamedTuple

from sm3det_jax.layers import activations


class Expert(NamedTuple):
  """One kind of expert: `forward(params, x) -> (saved, y)`, and its backward pass by hand.

  `backward(params, x, saved, dy) -> (dparams, dx)`; params are one expert's. `hidden` says of each
  array of an expert which axis runs over the hidden channels; None: none.
  """

  forward: Callable
  backward: Callable
  hidden: tuple[int | None, ...]


def _affine(x, w, b):
  return x @ w.astype(x.dtype) + b.astype(x.dtype)[None]


def _ffn(activation, activation_and_slope):
  def forward(params, x):
    w1, b1, w2, b2 = params
    h = _affine(x, w1, b1)
    return h, _affine(activation(h), w2, b2)

  def backward(params, x, h, dy):
    w1, _, w2, _ = params
    y, slope = activation_and_slope(h)
    dh = (dy @ w2.T.astype(dy.dtype)) * slope
    return (x.T @ dh, dh.sum(0), y.T @ dy, dy.sum(0)), dh @ w1.T.astype(dy.dtype)

  return Expert(forward, backward, hidden=(1, 0, 0, None))


def _linear_forward(params, x):
  return (), _affine(x, *params)


def _linear_backward(params, x, _, dy):
  return (x.T @ dy, dy.sum(0)), dy @ params[0].T.astype(dy.dtype)


FFN = _ffn(activations.gelu, activations.gelu_and_slope)
FFNS = {'erf': FFN, 'tanh': _ffn(activations.gelu_tanh, activations.gelu_tanh_and_slope)}
LINEAR = Expert(_linear_forward, _linear_backward, hidden=(None, None))
