"""Multi-student distillation against plain PyTorch.

`msd_round`: DMD2's cycle for one student: 1 generator update, 5 fake-score
updates, AdamW, clip 10 per network. `msd_generate`: one-step generation. Both
with the ADM U-Net, no dropout, float32, on random weights. `msd_students`: a
round of four students, and four rounds of one.
"""

import functools
import time
from typing import Any

from benchmarks import harness

NUM_CLASSES = 10
RATIO = 5
LEARNING_RATE = 2e-6
STUDENTS = 4
PEERS = ('torch contiguous', 'torch channels_last')
# Name -> (batch size, fields of the network). Images have 3 channels.
SIZES = {
    '16x16, 32 channels [1, 2]': (32, dict(
        resolution=16, model_channels=32, channel_mult=(1, 2))),
    '32x32, 64 channels [1, 2, 2]': (16, dict(
        resolution=32, model_channels=64, channel_mult=(1, 2, 2))),
}


def cases(quick: bool) -> dict[str, dict[str, harness.Case]]:
  """Benchmark -> size -> Case; the last size stands for the benchmark."""
  sizes = list(SIZES)[:1] if quick else list(SIZES)
  make = lambda ours, theirs, gflop: {
      size: harness.Case(
          {'ours': functools.partial(ours, size)} | {
              peer: functools.partial(theirs, size, peer) for peer in PEERS},
          functools.partial(gflop, size))
      for size in sizes}
  size = sizes[0]
  students = harness.Case(
      {'ours': functools.partial(our_round, size, STUDENTS),
       f'{STUDENTS} rounds of one': functools.partial(our_rounds_of_one, size)},
      lambda: STUDENTS * round_gflop(size))
  return {'msd_round': make(our_round, torch_round, round_gflop),
          'msd_generate': make(our_generate, torch_generate, generate_gflop),
          'msd_students': {size: students}}


def network_config(size: str) -> dict[str, Any]:
  """The fields of the ADM network, the same for both sides."""
  return dict(SIZES[size][1], channels=3, num_classes=NUM_CLASSES,
              num_blocks=2, attention_resolutions=(16, 8), dropout=0.)


def image_shape(size: str) -> tuple[int, int, int]:
  resolution = SIZES[size][1]['resolution']
  return resolution, resolution, 3


def warm_imports(side: functools.partial) -> None:
  """Loads what the side needs, so that its memory is counted without."""
  if side.func in (our_round, our_rounds_of_one, our_generate):
    import jax

    from msd_jax import students  # noqa: F401
    jax.devices()
  else:
    _torch()


# Ours.


def our_round(size: str, num_students: int = 1) -> harness.Prepared:
  import jax
  from jax.sharding import PartitionSpec

  from core_jax import mesh as mesh_lib
  from msd_jax import partition
  from msd_jax import students
  from msd_jax import turns
  batch_size, _ = SIZES[size]
  module, params, networks = _our_networks(size)
  mesh = mesh_lib.make_mesh(1, devices=jax.devices()[:1])
  settings = turns.Settings(batch_size=batch_size, ratio=RATIO)
  classes, sizes = partition.members(
      partition.consecutive(NUM_CLASSES, num_students))
  frozen = {'teacher': params, 'start': params, 'classes': classes,
            'sizes': sizes}
  init = students.make_init(
      networks, num_students, key=jax.random.key(0), ema=False)
  state = jax.jit(init)(frozen)
  round_ = students.make_round(networks, settings, image_shape(size), mesh)
  spec = students.State(
      step=PartitionSpec(), key=PartitionSpec(),
      students=PartitionSpec('student'))
  start = time.perf_counter()
  compiled = mesh_lib.compile_step(round_, mesh, spec).lower(
      state, {}, frozen).compile()
  seconds = time.perf_counter() - start
  # The state is donated, so each round hands it to the next.
  holder = [jax.device_put(state, compiled.input_shardings[0][0])]
  frozen = jax.device_put(frozen, compiled.input_shardings[0][2])

  def run():
    holder[0], metrics = compiled(holder[0], {}, frozen)
    jax.block_until_ready((holder[0].students, metrics))

  return harness.Prepared(run, seconds)


def our_rounds_of_one(size: str) -> harness.Prepared:
  one = our_round(size)
  return harness.Prepared(
      lambda: [one.run() for _ in range(STUDENTS)], one.compile_seconds)


def our_generate(size: str) -> harness.Prepared:
  import jax
  import numpy as np

  import msd_jax
  from msd_jax import routing
  batch_size, _ = SIZES[size]
  module, params, _ = _our_networks(size)
  bundle = routing.bundle(
      jax.tree.map(lambda x: x[None], params), module,
      np.zeros(NUM_CLASSES, np.int32), sigma_max=80., sigma_data=.5)
  labels = np.arange(batch_size) % NUM_CLASSES
  run = lambda: msd_jax.generate(
      bundle, labels, jax.random.key(0)).block_until_ready()
  return harness.compiled_by_running(run)


def _our_networks(size):
  import jax

  from msd_jax import diffusion
  from msd_jax import networks
  from msd_jax import teacher
  from msd_jax import turns
  from msd_jax import unet
  module = unet.ADM(**network_config(size))
  params = jax.jit(lambda key: networks.init_params(
      module, key, image_shape(size)))(jax.random.key(0))
  denoiser = diffusion.make_denoiser(networks.apply_fn(module), .5)
  tx = teacher.make_optimizer(
      lr=LEARNING_RATE, warmup_steps=0, clip_norm=10., weight_decay=.01)
  return module, params, turns.Networks(
      generator=denoiser, fake=denoiser, teacher=denoiser,
      generator_tx=tx, fake_tx=tx)


# The peer's.


def torch_round(size: str, peer: str) -> harness.Prepared:
  from benchmarks import torch_msd
  torch = _torch()
  memory_format = _memory_format(peer)
  student, teacher, fake = (_torch_network(size, peer) for _ in range(3))
  round_ = torch_msd.Round(
      student, teacher, fake, ratio=RATIO, learning_rate=LEARNING_RATE,
      num_classes=NUM_CLASSES, memory_format=memory_format)
  shape = _torch_shape(size)
  torch.manual_seed(0)
  return harness.Prepared(lambda: round_(shape))


def torch_generate(size: str, peer: str) -> harness.Prepared:
  from benchmarks import torch_msd
  torch = _torch()
  network = _torch_network(size, peer)
  shape = _torch_shape(size)
  labels = torch.arange(shape[0]) % NUM_CLASSES

  @torch.no_grad()
  def run():
    z = torch.randn(shape).contiguous(memory_format=_memory_format(peer))
    return torch_msd.generate(network, z, labels)

  return harness.Prepared(run)


def round_gflop(size: str) -> float:
  return _counted(torch_round(size, PEERS[0]).run)


def generate_gflop(size: str) -> float:
  return _counted(torch_generate(size, PEERS[0]).run)


def _counted(run):
  """GFLOP of the convolutions and products of a run, as torch counts them."""
  from torch.nn import attention
  from torch.utils import flop_counter
  _torch()
  # The fused attention of CPUs is unknown to the counter.
  with (attention.sdpa_kernel(attention.SDPBackend.MATH),
        flop_counter.FlopCounterMode(display=False) as counter):
    run()
  return counter.get_total_flops() / 1e9


def _torch():
  import os

  import torch
  if 'OMP_NUM_THREADS' in os.environ:
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
  return torch


def _torch_network(size, peer):
  from benchmarks import torch_msd
  return torch_msd.ADM(**network_config(size)).to(
      memory_format=_memory_format(peer))


def _torch_shape(size):
  batch_size, _ = SIZES[size]
  resolution, _, channels = image_shape(size)
  return batch_size, channels, resolution, resolution


def _memory_format(peer):
  torch = _torch()
  return (torch.channels_last if peer.endswith('channels_last')
          else torch.contiguous_format)
