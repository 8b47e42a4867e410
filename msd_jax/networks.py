"""Networks by name, and how saved params say which network they are of."""

from collections.abc import Callable
from collections.abc import Mapping
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from msd_jax import layers
from msd_jax import mlp
from msd_jax import songunet
from msd_jax import unet

NETWORKS = {
    'mlp': mlp.ResidualMLP, 'adm': unet.ADM, 'ddpmpp': songunet.SongUNet,
    'ncsnpp': songunet.NCSNpp}


def build(
    network: Mapping[str, Any],
    shape: tuple[int, ...],
    num_classes: int,
    *,
    dtype: str = 'float32',
    remat: bool = False,
) -> nn.Module:
  """The module that a config's `network` describes.

  Args:
    network: `kind`, one of NETWORKS, and the fields of its module.
    shape: of one example, (H, W, C) or (D,).
    num_classes: Y.
    dtype: that a U-Net computes in, 'bfloat16' or 'float32'; params are
      float32 always.
    remat: a U-Net's blocks are computed again for their gradient.

  Raises:
    ValueError: an unknown kind or field, a shape that the kind can't take, or
      sizes that no block can have.
  """
  settings = dict(network)
  kind = settings.pop('kind')
  if kind not in NETWORKS:
    raise ValueError(
        f'network.kind={kind!r} is not known; there are {sorted(NETWORKS)}')
  settings = {
      name: tuple(value) if isinstance(value, (list, tuple)) else value
      for name, value in settings.items()}
  if dtype not in ('bfloat16', 'float32'):
    raise ValueError(f"compute.dtype={dtype!r}: give 'bfloat16' or 'float32'")
  if kind == 'mlp':
    if dtype != 'float32' or remat:
      raise ValueError(
          f"compute.dtype={dtype!r}, compute.remat={remat}: network.kind='mlp' "
          "is float32, and has no blocks to rematerialise")
    settings['shape'] = tuple(shape)
  elif len(shape) == 3 and shape[0] == shape[1]:
    settings['resolution'], settings['channels'] = shape[0], shape[2]
    settings |= {'dtype': jnp.dtype(dtype), 'remat': remat}
  else:
    raise ValueError(
        f"network.kind={kind!r} takes square images, not {shape}; use 'mlp'")
  known = set(NETWORKS[kind].__dataclass_fields__) - {'parent', 'name'}
  if set(settings) - known:
    raise ValueError(
        f'network has no {sorted(set(settings) - known)}; {kind!r} has '
        f'{sorted(known)}')
  module = NETWORKS[kind](num_classes=num_classes, **settings)
  if kind != 'mlp':
    _check_blocks(module)
  return module


def _check_blocks(module):
  """Params can be made of sizes that the network could not be applied with."""
  halvings = len(module.channel_mult) - 1
  if module.resolution % 2**halvings:
    raise ValueError(
        f'network.channel_mult={module.channel_mult} halves the size of images '
        f'{halvings} times, and {module.resolution} is not to be halved so')
  for block in itertools.chain(*module.blocks()):
    for channels in (block.in_channels, block.out_channels):
      try:
        layers.num_groups(channels)
      except ValueError as error:
        raise ValueError(
            f'network.model_channels={module.model_channels}, block '
            f'{block.name!r}: {error}') from error
    if block.num_heads and block.out_channels % block.num_heads:
      raise ValueError(
          f'network.model_channels={module.model_channels}: the '
          f'{block.out_channels} channels of block {block.name!r} do not '
          f'divide into its {block.num_heads} heads of attention')


def settings(module: nn.Module) -> dict[str, dict[str, Any]]:
  """{kind: {field: value}}: what JSON can hold of a module.

  All fields are there, since a default may change, but for those of how it is
  computed.
  """
  kind = next(k for k, cls in NETWORKS.items() if type(module) is cls)
  skip = ('parent', 'name', 'dtype', 'remat')
  return {kind: {
      field: getattr(module, field)
      for field in module.__dataclass_fields__ if field not in skip}}


def from_settings(description: Mapping[str, Mapping[str, Any]]) -> nn.Module:
  """The inverse of `settings`, also after JSON has made lists of tuples."""
  (kind, fields), = description.items()
  return NETWORKS[kind](**{
      field: tuple(value) if isinstance(value, list) else value
      for field, value in fields.items()})


def describe(module: nn.Module) -> dict[str, dict[str, np.ndarray]]:
  """{kind: {field: array}}: `settings` as leaves beside the module's params.

  A tuple carries its length first: an array of no elements cannot be saved.
  """
  (kind, fields), = settings(module).items()
  return {kind: {field: _to_array(value) for field, value in fields.items()}}


def _to_array(value):
  return np.asarray(
      (len(value), *value) if isinstance(value, tuple) else value)


def from_description(description: Mapping[str, Any]) -> nn.Module:
  """The inverse of `describe`."""
  (kind, fields), = description.items()
  return from_settings({kind: {
      field: value[1:].tolist() if value.ndim else value.item()
      for field, value in (
          (f, np.asarray(v)) for f, v in fields.items())}})


def example_shape(module: nn.Module) -> tuple[int, ...]:
  """Of one image or point."""
  if hasattr(module, 'shape'):
    return module.shape
  return (module.resolution, module.resolution, module.channels)


def apply_fn(module: nn.Module) -> Callable[..., jax.Array]:
  """(params, x, c_noise, labels, dropout_key=None) -> F; no key, no dropout."""

  def apply(params, x, c_noise, labels, dropout_key=None):
    rngs = {} if dropout_key is None else {'dropout': dropout_key}
    return module.apply(
        {'params': params}, x, c_noise, labels,
        deterministic=dropout_key is None, rngs=rngs)

  return apply


def encode_fn(module: nn.Module) -> Callable[..., jax.Array]:
  """(params, x, c_noise, labels) -> features of the encoder, float32."""

  def encode(params, x, c_noise, labels):
    return module.apply(
        {'params': params}, x, c_noise, labels, encode=True)

  return encode


def init_params(
    module: nn.Module, key: jax.Array, shape: tuple[int, ...]
) -> Any:
  """Fresh params for examples of `shape`."""
  return module.init(
      key, jnp.zeros((1, *shape)), jnp.zeros((1,)),
      jnp.zeros((1,), jnp.int32))['params']
