"""Self-tuning networks against plain PyTorch, at the papers' sizes.

`stn_lstm`, `stn_alexnet`: STN's round, two training updates and one of the
hyperparameters. `<name>_plain`: two ordinary updates of the same network; the
quotient of the two is what self-tuning costs. `<name>_delta`: one training
update of Delta-STN, to be divided by half of `<name>_plain`. Float32, random
data; dropout rates are tuned, and neither side augments images.
"""

import functools
import time

from benchmarks import harness
from benchmarks import msd

LSTM = {'2 x 650, vocabulary 10,000, 40 x 70': (650, 10_000, 40, 70)}
LSTM_QUICK = {'2 x 64, vocabulary 1,000, 8 x 20': (64, 1_000, 8, 20)}
ALEXNET = {'CIFAR-10, batch 128': 128}
ALEXNET_QUICK = {'CIFAR-10, batch 16': 16}
KINDS = ('', '_plain', '_delta')


def cases(quick: bool) -> dict[str, dict[str, harness.Case]]:
  """Benchmark -> size -> Case."""
  found = {}
  for model, sizes in (
      ('lstm', LSTM_QUICK if quick else LSTM),
      ('alexnet', ALEXNET_QUICK if quick else ALEXNET)):
    for kind in KINDS:
      found[f'stn_{model}{kind}'] = {
          name: harness.Case(
              {'ours': functools.partial(ours, model, size, kind)} | {
                  peer: functools.partial(theirs, model, size, kind, peer)
                  for peer in _peers(kind)},
              functools.partial(gflop, model, size, kind))
          for name, size in sizes.items()}
  return found


def _peers(kind):
  if kind == '_delta':
    return ('torch double backward', 'torch forward mode')
  return ('torch',)


def warm_imports(side: functools.partial) -> None:
  """Loads what the side needs, so that its memory is counted without."""
  if side.func is ours:
    import jax

    from stn_jax import tuner  # noqa: F401
    jax.devices()
  else:
    msd._torch()


def ours(model: str, size, kind: str) -> harness.Prepared:
  """Our side: a compiled program that hands its state on."""
  import jax
  import optax

  from stn_jax import state as state_lib
  from stn_jax import tuner
  from stn_jax import updates
  problem, batches = _problem(model, size)
  sgd = lambda: optax.sgd(0.01, 0.9)
  optimizers = state_lib.Optimizers(sgd(), sgd(), optax.adam(3e-3))
  settings = state_lib.Settings(
      'delta_stn' if kind == '_delta' else 'stn', unroll=model == 'alexnet',
      diagnose=False)
  example = jax.tree.map(lambda x: x[:, 0], batches['train'])
  state = jax.jit(tuner.make_init(
      problem, settings, optimizers, example, 1, 0))({})
  if kind == '_plain':
    step, state = _plain(problem, optimizers, state)
  elif kind == '_delta':
    step = lambda state, batches: updates.training_update(
        problem, settings, optimizers, state,
        jax.tree.map(lambda x: x[:, 0], batches['train']),
        jax.random.key(1))[0]
  else:
    round_ = tuner.make_round(problem, settings, optimizers)
    step = lambda state, batches: round_(
        state.replace(step=state.step * 0), batches, {})[0]
  start = time.perf_counter()
  compiled = jax.jit(step, donate_argnums=0).lower(state, batches).compile()
  seconds = time.perf_counter() - start
  holder = [state]

  def run():
    holder[0] = compiled(holder[0], batches)
    jax.block_until_ready(holder[0])

  return harness.Prepared(run, seconds)


def _plain(problem, optimizers, state):
  """Two ordinary updates, and the state that they need."""
  import jax
  import jax.numpy as jnp

  from stn_jax import problem as problem_lib
  from stn_jax import updates
  state = state.replace(
      response=(), opt_response=(),
      opt_params=jax.jit(optimizers.params.init)(state.params))

  def step(state, batches):
    for i in range(2):
      batch = jax.tree.map(lambda x, i=i: x[:, i], batches['train'])
      params, opt_params, variables, _ = updates.plain_update(
          problem, optimizers.params, state.params, state.opt_params,
          state.variables, batch, problem_lib.constant(
              problem, state.lam, problem_lib.num_examples(batch)),
          jax.random.fold_in(jax.random.key(1), i))
      state = state.replace(
          params=params, opt_params=opt_params, variables=variables)
    return state

  return step, jax.tree.map(jnp.copy, state)


def _problem(model, size):
  """Our problem, and the batches of a round: random data."""
  import ml_collections
  import numpy as np

  from stn_jax import experiment
  rng = np.random.default_rng(0)
  rate = dict(kind='bounded', start=0.05, low=0.0, high=1.0)
  if model == 'lstm':
    width, vocabulary_size, batch_size, window = size
    names = ('input_dropout', 'hidden_dropout1', 'output_dropout')
    config = dict(kind='lstm', width=width, num_layers=2)
    ids = lambda *shape: rng.integers(
        0, vocabulary_size, shape).astype(np.int32)
    fields = lambda *several: {
        'tokens': ids(batch_size, *several, window),
        'targets': ids(batch_size, *several, window)}
  else:
    names = [*(f'dropout{i}' for i in range(5)), 'fcdropout0', 'fcdropout1']
    config, vocabulary_size = dict(kind='alexnet'), 10
    fields = lambda *several: {
        'image': rng.random((size, *several, 32, 32, 3), np.float32),
        'label': rng.integers(0, 10, (size, *several)).astype(np.int32)}
  return experiment.make_problem(
      ml_collections.ConfigDict(dict(
          model=config, space={name: dict(rate) for name in names},
          normalise=(0.0, 1.0), flip=False)),
      vocabulary_size), {'train': fields(2), 'valid': fields()}


def theirs(model: str, size, kind: str, peer: str) -> harness.Prepared:
  """Torch's side: eager, contiguous."""
  from benchmarks import torch_stn
  torch = msd._torch()
  torch.manual_seed(0)
  std = 0.0 if kind == '_delta' else 0.01
  if model == 'lstm':
    width, vocabulary_size, batch_size, window = size
    network = torch_stn.LSTM(vocabulary_size, width, std)
    x, targets = torch.randint(vocabulary_size, (2, window, batch_size))
  else:
    network = torch_stn.AlexNet(std)
    x, targets = torch.rand(size, 3, 32, 32), torch.randint(10, (size,))
  lam = torch.full((network.num_hypers,), -2.9)
  hyper = [lam.clone().requires_grad_(), torch.zeros_like(lam).requires_grad_()]
  sgd = lambda params: torch.optim.SGD(list(params), 0.01, momentum=0.9)
  response = [p for name, p in network.named_parameters()
              if name.endswith(('_r', 'bottleneck'))]
  own = {id(p) for p in response}
  general = [p for p in network.parameters() if id(p) not in own]
  plain, answering, everything = (
      sgd(general), sgd(response), sgd(network.parameters()))
  adam = torch.optim.Adam(hyper, 3e-3)

  def run():
    if kind == '_plain':
      for _ in range(2):
        torch_stn.plain_update(network, plain, x, targets, lam)
    elif kind == '_delta':
      torch_stn.delta_stn_update(
          network, plain, answering, x, targets, lam, 0.5,
          forward_mode=peer.endswith('forward mode'))
    else:
      for _ in range(2):
        torch_stn.stn_update(network, everything, x, targets, lam, 0.5)
      torch_stn.validation_update(network, adam, x, targets, hyper)

  return harness.Prepared(run)


def gflop(model: str, size, kind: str) -> float:
  """Of the definition, as torch counts its products."""
  return msd._counted(theirs(model, size, kind, _peers(kind)[-1]).run)
