"""Best responses added to the layers of an unchanged linen module.

A layer W x + b answers a perturbation h [n] of the hyperparameters with

  W(h) = W + (U h) * W_r,   b(h) = b + (C h) * b_r

where * scales rows (output features): STN, eq. 10. For a batch of h [B, n] no
weight is made per example: the layer is applied once more with W_r, and its
output is scaled, (U h) * (W_r x). An interceptor does that around the layers
of a model, so that the model's code, its parameters and where they lie stay
as they were; the response lives in a tree of its own, path of the layer ->
{'kernel', 'bias', 'bottleneck'}, or of rank r, sum_k (U_k h) * W_k, path ->
{'0': {...}, '1': {...}, ...}.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp

Response = Mapping[str, Mapping[str, jax.Array]]

# A layer's copy that applies the response kernel: not to be answered again.
_COPY = 'response'


class LayerError(ValueError):
  """A layer that cannot answer; the message says what to do."""


class Perturbation(NamedTuple):
  """What the layers answer to.

  Attributes:
    h: [B, n], a row an example, aligned with the leading axis of every input.
    centred: h is zero, and only its tangent is asked for. Products with it
      are then zeros whose tangent is one product, where the chain rule would
      multiply W_r by the tangent of x as well, only to scale it by zero.
  """
  h: jax.Array
  centred: bool = False


# (module, own, perturbation, next_fun, args, kwargs) -> the answered output.
# `module` is bound; `own` its response, see `terms`; `next_fun` the plain
# layer. It has a parameter 'kernel' or 'embedding' whose last axes are the
# output features, perhaps a 'bias' of these, and the attributes `features`,
# `param_dtype`, and `kernel_init` or `embedding_init`.
Handler = Callable[..., Any]


@jax.custom_jvp
def _zero_product(gate, value):
  """gate * value where gate is known to be zero."""
  return jnp.zeros(jnp.broadcast_shapes(gate.shape, value.shape), value.dtype)


def _zero_product_jvp(primals, tangents):
  gate, value = primals
  gate_tangent, value_tangent = tangents
  zero = _zero_product(gate, value)
  if isinstance(gate_tangent, SymbolicZero):
    # By something else than h, such as x for a penalty of dy/dx: zero too,
    # but its own tangent by h is not.
    return zero, gate * value_tangent
  # A constant, whatever the response: no gradient is carried through it.
  return jnp.zeros_like(zero), gate_tangent * value


_zero_product.defjvp(_zero_product_jvp, symbolic_zeros=True)


def terms(own: Mapping[str, Any]) -> list[Mapping[str, jax.Array]]:
  """A layer's response as the terms of its sum, one for each rank."""
  return [own] if 'bottleneck' in own else list(own.values())


def gates(
    own: Mapping[str, jax.Array], perturbation: Perturbation
) -> tuple[jax.Array, jax.Array | None]:
  """(U h [B, F], C h [B, F] or None without a bias)."""
  scales = perturbation.h @ own['bottleneck']
  if 'bias' not in own:
    return scales, None
  return tuple(jnp.split(scales, 2, axis=-1))


def scaled(
    gate: jax.Array, value: jax.Array, perturbation: Perturbation
) -> jax.Array:
  """gate [B, F] * value [B, ..., *features], F their product; as `value`."""
  num_features = gate.shape[-1]
  features, size = [], 1
  for dim in reversed(value.shape):
    if size == num_features:
      break
    size *= dim
    features.insert(0, dim)
  middle = value.ndim - 1 - len(features)
  gate = gate.reshape(gate.shape[0], *(1,) * middle, *features)
  gate = gate.astype(value.dtype)  # Of a layer in bfloat16, say.
  return (_zero_product if perturbation.centred else jnp.multiply)(gate, value)


def affine(module, own, perturbation, next_fun, args, kwargs):
  """Any layer that is linear in `kernel` and adds `bias` at the end."""
  y = next_fun(*args, **kwargs)
  _check_rows(module, y, perturbation)
  copy = module.clone(parent=None, name=_COPY, **(
      {'use_bias': False} if hasattr(module, 'use_bias') else {}))
  for term in terms(own):
    value = copy.apply({'params': {'kernel': term['kernel']}}, *args, **kwargs)
    weight_gate, bias_gate = gates(term, perturbation)
    y = y + scaled(weight_gate, value, perturbation)
    if bias_gate is not None:
      bias = term['bias'].astype(y.dtype)
      bias = bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
      y = y + scaled(bias_gate, bias, perturbation)
  return y


def embedding(module, own, perturbation, next_fun, args, kwargs):
  """A table of rows: E[token] + (U h) * E_r[token]; there is no bias."""
  y = next_fun(*args, **kwargs)
  _check_rows(module, y, perturbation)
  for term in terms(own):
    gate, _ = gates(term, perturbation)
    tokens = args[0] if args else kwargs['inputs']
    value = jnp.take(term['kernel'], tokens, axis=0).astype(y.dtype)
    y = y + scaled(gate, value, perturbation)
  return y


HANDLERS: Mapping[type[nn.Module], Handler] = {
    nn.Dense: affine,
    nn.DenseGeneral: affine,
    nn.Conv: affine,
    nn.ConvTranspose: affine,
    nn.Embed: embedding,
}


def layer_name(path: Sequence[str]) -> str:
  """A module's path, for people."""
  return '/'.join(path) or 'the model'


def _check_rows(module, y, perturbation):
  if y.shape[0] != perturbation.h.shape[0]:
    raise LayerError(
        f'{layer_name(module.path)}: its output {y.shape} has {y.shape[0]} '
        f'rows, but the batch has {perturbation.h.shape[0]} examples: a layer '
        'with a response needs the batch as its leading axis')


def interceptor(
    response: Response,
    perturbation: Perturbation | None,
    dropout: Callable[..., jax.Array] | None = None,
    handlers: Mapping[type[nn.Module], Handler] = HANDLERS,
) -> Callable[..., Any]:
  """What `nn.intercept_methods` takes to make a model answer.

  Args:
    response: path of a layer -> its own; see `layers.init`.
    perturbation: None leaves every layer as it is.
    dropout: (next_fun, module, args, kwargs) -> x, called in place of every
      `nn.Dropout`, whose own call `next_fun` is; None leaves them alone.
    handlers: kind of layer -> how it answers.
  """

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    copy = not module.path and module.name == _COPY
    if context.method_name != '__call__' or copy:
      return next_fun(*args, **kwargs)
    if isinstance(module, nn.Dropout) and dropout is not None:
      return dropout(next_fun, module, args, kwargs)
    own = response.get('/'.join(module.path))
    if own is None or perturbation is None:
      return next_fun(*args, **kwargs)
    return handlers[type(module)](
        module, own, perturbation, next_fun, args, kwargs)

  return intercept


def materialise(params: Any, response: Response, h: jax.Array) -> Any:
  """The weights W(h), b(h) of one h [n], as parameters of the plain model.

  Where a layer's `__call__` alone uses them they make the network that the
  interceptor makes. A table that another method reads too, as `nn.Embed` in
  `attend`, answers there as well with these, and not with the interceptor.
  """

  def answer(path, leaf):
    names = [str(entry.key) for entry in path]
    own = response.get('/'.join(names[:-1]))
    if own is None:
      return leaf
    for term in terms(own):
      weight_gate, bias_gate = gates(term, Perturbation(h[None]))
      gate, added = (
          (bias_gate, term['bias']) if names[-1] == 'bias'
          else (weight_gate, term['kernel']))
      rows = added.reshape(-1, gate.shape[-1])
      leaf = leaf + (gate * rows).reshape(leaf.shape)
    return leaf

  return jax.tree.map_with_path(answer, params)


def squared_norm(
    params: Any, response: Response, perturbation: Perturbation | None,
    batch_size: int,
) -> jax.Array:
  """||W(h)||^2 of the kernels and embeddings of a model, [B].

  Of layers with a response, row by row, without making a weight per example:
  ||W||^2 + 2 sum_i s_i <W_i, W_r,i> + sum_i s_i^2 ||W_r,i||^2, s = U h; with
  more terms, all their products.
  Biases and norms' scales are not in it.
  """
  total = jnp.zeros(batch_size)
  for path, leaf in jax.tree.leaves_with_path(params):
    names = [str(entry.key) for entry in path]
    if names[-1] not in ('kernel', 'embedding'):
      continue
    total = total + jnp.sum(jnp.square(leaf))
    own = response.get('/'.join(names[:-1]))
    if own is None or perturbation is None:
      continue
    if perturbation.centred:
      raise ValueError('a norm is quadratic in h: ask for it at h, not at 0')
    scales = [gates(term, perturbation)[0] for term in terms(own)]
    rows = [w.reshape(-1, scales[0].shape[-1])
            for w in (leaf, *(term['kernel'] for term in terms(own)))]
    inner = lambda a, b: jnp.sum(a * b, axis=0)
    for s, w in zip(scales, rows[1:], strict=True):
      total = total + 2 * s @ inner(rows[0], w)
      for s_, w_ in zip(scales, rows[1:], strict=True):
        total = total + (s * s_) @ inner(w, w_)
  return total
