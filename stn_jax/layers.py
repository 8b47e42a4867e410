"""Which layers of a model answer, and the responses that they start with.

Every parameter of a model is accounted for: its layer answers, or normalises,
or is left out by name; any other is refused before anything is computed.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from stn_jax import response as response_lib

# What normalises has no response, as in the papers; nor has what has no
# weights.
_NORMS = (nn.LayerNorm, nn.BatchNorm, nn.GroupNorm, nn.RMSNorm,
          nn.InstanceNorm, nn.WeightNorm)


class Layer(NamedTuple):
  """A layer of a model that answers."""
  module: nn.Module  # unbound: its fields
  kernel_shape: tuple[int, ...]
  has_bias: bool


def find_layers(
    init: Callable[[], Mapping[str, Any]],
    handlers: Mapping[type[nn.Module], response_lib.Handler] = (
        response_lib.HANDLERS),
    without_response: Iterable[str] = (),
) -> dict[str, Layer]:
  """The layers of a model that answer, by path.

  Args:
    init: calls the model's `init` and returns its variables; is traced.
    handlers: kind of layer -> how it answers.
    without_response: paths of modules that shall stay as they are.

  Raises:
    LayerError: a module has parameters and no response.
  """
  found, kinds = {}, {}

  def record(next_fun, args, kwargs, context):
    module = context.module
    y = next_fun(*args, **kwargs)
    path = '/'.join(module.path)
    kinds[path] = type(module)
    if context.method_name == '__call__' and type(module) in handlers:
      own = module.variables.get('params', {})
      kernel = own.get('kernel', own.get('embedding'))
      _check_handled(module, kernel, own)
      found[path] = Layer(
          module.clone(parent=None), kernel.shape, 'bias' in own)
    return y

  def traced():
    with nn.intercept_methods(record):
      return init()

  params = jax.eval_shape(traced)['params']
  for path, leaf in jax.tree.leaves_with_path(params):
    names = tuple(str(entry.key) for entry in path)
    _check_leaf(names, leaf, found, kinds, tuple(without_response))
  return {path: layer for path, layer in found.items()
          if not _excluded(path, tuple(without_response))}


def _check_handled(module, kernel, own):
  """Raises LayerError for a layer that is not as `Handler` has it."""
  embeds = 'embedding' in own
  wanted = ('features', 'param_dtype',
            'embedding_init' if embeds else 'kernel_init')
  lacks = [name for name in wanted if not hasattr(module, name)]
  if kernel is None:
    lacks.insert(0, "a parameter 'kernel' or 'embedding'")
  if lacks:
    raise response_lib.LayerError(
        f'{response_lib.layer_name(module.path)}, a {type(module).__name__} '
        f'with a handler, has the parameters {sorted(own)} and lacks '
        f'{", ".join(lacks)}: see stn_jax.response.Handler')


def _excluded(path, without_response):
  return any(path == name or path.startswith(f'{name}/')
             for name in without_response)


def _check_leaf(names, leaf, found, kinds, without_response):
  """Raises LayerError for a parameter that nothing answers for."""
  path, layer = '/'.join(names[:-1]), response_lib.layer_name(names[:-1])
  kind = kinds.get(path)
  if _excluded(path, without_response) or (
      kind and issubclass(kind, _NORMS)):
    return
  if path not in found:
    hint = (' (nn.LSTMCell has the same parameters, and answers)'
            if 'OptimizedLSTMCell' in {
                kinds.get('/'.join(names[:i]), nn.Module).__name__
                for i in range(len(names))} else '')
    raise response_lib.LayerError(
        f'{layer}, a {kind.__name__ if kind else "module"}, has the parameter '
        f'{names[-1]!r} and no response{hint}. Give it a handler, or leave it '
        f'out with without_response=({path!r},)')
  if getattr(found[path].module, 'transpose_kernel', False):
    raise response_lib.LayerError(
        f'{layer}: transpose_kernel=True puts the output features of its '
        'kernel second to last, where no response scales them. Use False, or '
        f'leave it out with without_response=({path!r},)')
  if names[-1] in ('kernel', 'embedding') and (
      leaf.shape != found[path].kernel_shape):
    raise response_lib.LayerError(
        f'{layer}: its parameters {leaf.shape} are stacked over a scan of '
        f'layers, each {found[path].kernel_shape}: one response cannot serve '
        'all. Unroll the scan, or leave it out with '
        f'without_response=({path!r},)')


def init(
    key: jax.Array,
    layers: Mapping[str, Layer],
    num_hyperparameters: int,
    bottleneck_std: float = 0.0,
    rank: int = 1,
) -> dict[str, Any]:
  """Fresh responses: weights like the layers' own, bottlenecks near zero.

  Args:
    key: of the draw.
    layers: see `find_layers`.
    num_hyperparameters: n.
    bottleneck_std: of U and C; 0 makes every answer zero at the start, as in
      Delta-STN; STN has 0.01.
    rank: terms of each layer's response; the papers have one, which can
      point a unit's weights in one direction only.
  """
  def init_terms(path, layer):
    layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    if rank == 1:
      return _init_layer(
          layer_key, layer, num_hyperparameters, bottleneck_std)
    return {str(k): _init_layer(
        jax.random.fold_in(layer_key, k), layer, num_hyperparameters,
        bottleneck_std) for k in range(rank)}

  return {path: init_terms(path, layer) for path, layer in layers.items()}


def _init_layer(key, layer, n, bottleneck_std):
  kernel_key, bias_key, bottleneck_key = jax.random.split(key, 3)
  module, shape = layer.module, layer.kernel_shape
  feature_shape = _feature_shape(module)
  features = math.prod(feature_shape)  # The rows that a gate scales.
  if hasattr(module, 'embedding_init'):
    kernel = module.embedding_init(kernel_key, shape, module.param_dtype)
  else:
    flat = (math.prod(shape) // features, features)
    kernel = module.kernel_init(
        kernel_key, shape if isinstance(module, nn.Conv) else flat,
        module.param_dtype).reshape(shape)
  # Zeros with a gate of zero would both stay there.
  bound = math.sqrt(features / math.prod(shape))  # 1 / sqrt(fan_in)
  drawn = jax.random.uniform(
      jax.random.fold_in(kernel_key, 1), shape, module.param_dtype,
      -bound, bound)
  own = {'kernel': jnp.where(jnp.any(kernel != 0), kernel, drawn)}
  if layer.has_bias:  # Not as the layer's own, which is often zero.
    own['bias'] = jax.random.uniform(
        bias_key, feature_shape, module.param_dtype, -bound, bound)
  own['bottleneck'] = bottleneck_std * jax.random.normal(
      bottleneck_key, (n, features * (1 + layer.has_bias)))
  return own


def _feature_shape(module):
  features = module.features
  return (features,) if isinstance(features, int) else tuple(features)
