"""Accelerators that are not there, to compile for: 'v5e:4x4', 'h100'."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

# Kind -> bytes of high-bandwidth memory that XLA has on one device.
_TPU_HBM = {
    'v4': 32 << 30, 'v5e': 16 << 30, 'v5p': 95 << 30, 'v6e': 32 << 30}
_GPU_HBM = {'h100': 80 * 10**9}
# Without a GPU's plugin and driver nothing compiles for it. The nearest that
# compiles anywhere is a TPU chip with as much memory.
_STANDS_IN_FOR_GPU = 'v5p:1x1x1'
_CHIPS_OF_HOST = (2, 2, 1)

# What libtpu would ask of a machine with TPUs.
_NO_TPU_HERE = {
    'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}  # Several may plan at once.


class TopologyError(ValueError):
  """A topology that can't be described here."""


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to plan for.

  Attributes:
    name: for people.
    devices: for a mesh; nothing runs on them.
    hbm_bytes: memory of one device.
  """

  name: str
  devices: Sequence[jax.Device]
  hbm_bytes: int


def describe(name: str) -> Target:
  """'v5e:4x4' and the like, or 'h100'.

  A chip of v4 is one device of two cores, as JAX sees it on TPU VMs.

  Raises:
    TopologyError: an unknown kind or shape, or the extra [tpu] is missing.
  """
  if name in _GPU_HBM:
    return Target(
        f'one {name} (as compiled for one TPU v5p chip)',
        _tpu_devices(_STANDS_IN_FOR_GPU), _GPU_HBM[name])
  kind = name.split(':')[0]
  if kind not in _TPU_HBM or not re.fullmatch(r'\w+:\d+(x\d+){1,2}', name):
    raise TopologyError(
        f'--plan={name}: give KIND:SHAPE with a kind of '
        f'{", ".join(_TPU_HBM)}, such as v5e:4x4 or v5p:2x2x2; or '
        f'{", ".join(_GPU_HBM)}')
  return Target(name, _tpu_devices(name), _TPU_HBM[kind])


def _tpu_devices(name):
  if importlib.util.find_spec('libtpu') is None:
    raise TopologyError(
        f'--plan={name} needs the TPU compiler: install the extra [tpu] of '
        "this package (pip install -e '.[tpu]')")
  for variable, value in _NO_TPU_HERE.items():
    os.environ.setdefault(variable, value)
  kind, shape = name.split(':')
  chips = tuple(int(n) for n in shape.split('x'))
  chips += (1,) * (3 - len(chips))
  settings = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
  if math.prod(chips) < math.prod(_CHIPS_OF_HOST):
    settings['chips_per_host_bounds'] = list(chips)  # a part of a host
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=name, **settings).devices
  except jax.errors.JaxRuntimeError as error:
    raise TopologyError(f'--plan={name}: {error}') from error
