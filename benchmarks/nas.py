"""Architecture search against eager PyTorch, at the paper's sizes.

`nas_evaluate`: the likelihood of one window, 64 columns of 35 words, under
another cell of 12 nodes at every run: 1000 / ms architectures a second.
`nas_shared`: one update of the shared weights (SGD, norm 0.25) with another
cell at every run. `nas_controller`: one update of ENAS' controller by a cell
that it draws and that such a window rewards. Vocabulary 10,000, float32,
random words, no dropout. Ours compiles once for all cells.
"""

import functools
import itertools
import time

from benchmarks import harness
from benchmarks import msd

NUM_NODES, NUM_CELLS = 12, 8
VOCABULARY, COLUMNS, WINDOW = 10_000, 64, 35
LEARNING_RATE, MAX_NORM, POLICY_RATE = 20.0, 0.25, 3.5e-4
PEERS = ('torch, a matrix per edge', 'torch, two layers per edge')


def cases(quick: bool) -> dict[str, dict[str, harness.Case]]:
  """Benchmark -> size -> Case."""
  make = lambda ours, theirs, widths, passes: {
      f'{NUM_NODES} nodes of {width}, {COLUMNS} x {WINDOW} words':
          harness.Case(
              {'ours': functools.partial(ours, width)} | {
                  peer: functools.partial(theirs, width, peer)
                  for peer in PEERS},
              functools.partial(gflop, width, passes))
      for width in widths}
  return {
      'nas_evaluate': make(our_evaluation, torch_evaluation,
                           (64,) if quick else (64, 200, 1000), 1),
      'nas_shared': make(our_update, torch_update,
                         (64,) if quick else (64, 200), 3),
      'nas_controller': make(our_policy_update, torch_policy_update,
                             (64,) if quick else (64, 200), 1)}


def warm_imports(side: functools.partial) -> None:
  """Loads what the side needs, so that its memory is counted without."""
  if side.func in (our_evaluation, our_update, our_policy_update):
    import jax

    from nas_jax import child  # noqa: F401
    jax.devices()
  else:
    msd._torch()


def gflop(width: int, passes: int) -> float:
  """Of products; a gradient takes two passes more."""
  cell = 2 * width * 2 * width + (NUM_NODES - 1) * width * 2 * width
  rows = COLUMNS * WINDOW
  return passes * 2 * rows * (cell + VOCABULARY * width) / 1e9


# Ours.


def _problem(width):
  """Settings, weights, cells, words and state: the same for both sides."""
  import jax
  import numpy as np

  from nas_jax import child as child_lib
  from nas_jax import space as space_lib
  child = child_lib.Child(space_lib.enas(NUM_NODES), VOCABULARY, width)
  params = jax.jit(functools.partial(child_lib.init_params, child))(
      jax.random.key(0))
  cells = list(space_lib.unstack(space_lib.sample(
      child.space, jax.random.key(1), NUM_CELLS)))
  tokens = np.random.default_rng(0).integers(
      0, VOCABULARY, (WINDOW + 1, COLUMNS)).astype(np.int32)
  return child, params, cells, tokens, np.zeros((COLUMNS, width), np.float32)


def our_evaluation(width: int) -> harness.Prepared:
  import jax

  from nas_jax import child as child_lib
  child, params, cells, tokens, h = _problem(width)

  def loss(params, cell, tokens, h):
    nll, h = child_lib.negative_log_likelihood(child, params, cell, tokens, h)
    return nll.mean(), h

  compiled, seconds = _compile(jax.jit(loss), params, cells[0], tokens, h)
  following = itertools.cycle(cells)
  return harness.Prepared(
      lambda: float(compiled(params, next(following), tokens, h)[0]), seconds)


def our_update(width: int) -> harness.Prepared:
  import jax
  import optax

  from nas_jax import child as child_lib
  child, params, cells, tokens, h = _problem(width)
  tx = optax.chain(
      optax.clip_by_global_norm(MAX_NORM), optax.sgd(LEARNING_RATE))

  def step(state, cell, tokens):
    params, opt_state, h = state

    def loss(params):
      nll, last = child_lib.negative_log_likelihood(
          child, params, cell, tokens, h)
      return nll.mean(), last

    gradients, h = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(gradients, opt_state)
    return optax.apply_updates(params, updates), opt_state, h

  holder = [(params, tx.init(params), jax.numpy.asarray(h))]
  compiled, seconds = _compile(
      jax.jit(step, donate_argnums=0), holder[0], cells[0], tokens)
  following = itertools.cycle(cells)

  def run():
    holder[0] = compiled(holder[0], next(following), tokens)
    jax.block_until_ready(holder[0])

  return harness.Prepared(run, seconds)


def our_policy_update(width: int) -> harness.Prepared:
  import jax
  import optax

  from nas_jax import controller as controller_lib
  from nas_jax import enas
  from nas_jax import memory
  from nas_jax import search
  from nas_jax import strategies
  child, params, _, tokens, _ = _problem(width)
  strategy = enas.strategy(enas.Settings(
      controller_lib.Controller(child.space), memory.Memory(),
      enas.Reward(), optax.adam(POLICY_RATE)))

  def step(state, params, tokens, key):
    supernet = strategies.Supernet(
        lambda cells, key: search.cell_losses(child, params, cells, tokens))
    key, draw = jax.random.split(key)
    return strategy.update(state, draw, supernet)[0], key

  key = jax.random.key(0)
  holder = [(jax.jit(strategy.init)(key), key)]
  compiled, seconds = _compile(
      jax.jit(step, donate_argnums=0), holder[0][0], params, tokens, key)

  def run():
    state, key = holder[0]
    holder[0] = compiled(state, params, tokens, key)
    jax.block_until_ready(holder[0])

  return harness.Prepared(run, seconds)


def _compile(function, *args):
  start = time.perf_counter()
  compiled = function.lower(*args).compile()
  return compiled, time.perf_counter() - start


# Theirs.


def _torch_problem(width, peer):
  """Weights, an endless row of (prev, names), words, state, and which way."""
  import jax
  import numpy as np

  from benchmarks import torch_nas
  from nas_jax import space as space_lib
  torch = msd._torch()
  _, params, cells, tokens, h = _problem(width)
  linears = peer == PEERS[1]
  params = torch_nas.parameters(jax.tree.map(np.asarray, params), linears)
  names = lambda cell: [space_lib.ACTIVATIONS[a] for a in cell.act]
  following = itertools.cycle(
      [(cell.prev.tolist(), names(cell)) for cell in cells])
  return (params, following, torch.tensor(tokens, dtype=torch.int64),
          torch.tensor(h), linears)


def torch_evaluation(width: int, peer: str) -> harness.Prepared:
  from benchmarks import torch_nas
  torch = msd._torch()
  params, following, tokens, h, linears = _torch_problem(width, peer)

  @torch.inference_mode()
  def run():
    nll, _ = torch_nas.negative_log_likelihood(
        params, *next(following), tokens, h, linears=linears)
    return nll.mean().item()

  return harness.Prepared(run)


def torch_update(width: int, peer: str) -> harness.Prepared:
  from benchmarks import torch_nas
  torch = msd._torch()
  params, following, tokens, h, linears = _torch_problem(width, peer)
  optimizer = torch.optim.SGD(torch_nas.leaves(params), LEARNING_RATE)
  holder = [h]

  def run():
    holder[0] = torch_nas.update(
        optimizer, params, *next(following), tokens, holder[0], MAX_NORM,
        linears)

  return harness.Prepared(run)


def torch_policy_update(width: int, peer: str) -> harness.Prepared:
  from benchmarks import torch_nas
  from nas_jax import space as space_lib
  torch = msd._torch()
  params, _, tokens, h, linears = _torch_problem(width, peer)
  space = space_lib.enas(NUM_NODES)
  controller = torch_nas.Controller(
      space.num_options.tolist(), len(space.activations), 100)
  optimizer = torch.optim.Adam(controller.parameters(), POLICY_RATE)
  baseline = [0.0]

  def run():
    baseline[0] = torch_nas.reinforce(
        controller, optimizer, params, space.activations, tokens, h, linears,
        baseline[0])

  return harness.Prepared(run)
