"""The child network: against a plain one, and against what must hold."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from benchmarks import torch_nas
from nas_jax import child as child_lib
from nas_jax import space as space_lib

Cell, Child, Rates = space_lib.Cell, child_lib.Child, child_lib.Rates
VOCAB, WIDTH, BATCH, STEPS = 11, 4, 4, 3
# Every choice of each setting, and most pairs of them.
FORMS = {
    'enas': dict(sharing='edge', state='mean', output='leaves'),
    'enas_pytorch': dict(
        sharing='edge', state='last', output='leaves', norm='batch'),
    'enas_lm': dict(sharing='edge_act', output='all', input_bias=False),
    'darts': dict(sharing='node', output='all', norm='rms', max_norm=0.0),
    'last_of_all': dict(sharing='node', state='last', output='all'),
}


def make(num_nodes=3, space=None, **settings):
  settings = dict(init_scale=0.8, max_norm=1.5) | settings
  return Child(space or space_lib.enas(num_nodes), VOCAB, WIDTH, **settings)


def make_params(child, key=0):
  """All of them drawn: biases and norms too."""
  params = child_lib.init_params(child, jax.random.key(key))
  for name in ('bias', 'norm_offset', 'norm_scale'):
    if name in params:
      params[name] += 0.3 * jax.random.normal(
          jax.random.key(key + 1), params[name].shape)
  return params


def make_tokens(num_steps=STEPS, batch_size=BATCH):
  return jax.random.randint(
      jax.random.key(5), (num_steps + 1, batch_size), 0, VOCAB)


def make_state(batch_size=BATCH):
  return 0.5 * jax.random.normal(jax.random.key(6), (batch_size, WIDTH))


def cells_of(space, num):
  if space.size <= num:
    return space_lib.enumerate_cells(space)
  return space_lib.sample(space, jax.random.key(7), num)


def cell_of(prev, names, num_nodes=None):
  return space_lib.from_names(space_lib.enas(num_nodes or len(prev)), prev,
                              names)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(child, params, cells, tokens, h):
  """Of weighted likelihoods and the last state, for each of the cells."""

  def loss(params, h, cell):
    nll, last = child_lib.negative_log_likelihood(
        child, params, cell, tokens, h)
    weights = jnp.arange(1.0, 1 + nll.size).reshape(nll.shape) / nll.size
    return (nll * weights).sum() + (last * last[::-1]).sum(), (nll, last)

  return jax.vmap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
                  (None, None, 0))(params, h, cells)


def plain(child, params, cell, tokens, h):
  """The same for one cell, by torch in float64."""
  as_torch = lambda x: torch.tensor(
      np.asarray(x), dtype=torch.float64).requires_grad_()
  params, h = {k: as_torch(p) for k, p in params.items()}, as_torch(h)
  nll, last = torch_nas.negative_log_likelihood(
      params, cell.prev.tolist(),
      [child.space.activations[a] for a in cell.act],
      torch.tensor(np.asarray(tokens), dtype=torch.int64), h,
      sharing=child.sharing, state=child.state, output=child.output,
      norm=child.norm, max_norm=child.max_norm)
  weights = torch.arange(1.0, 1 + nll.numel()).view(nll.shape) / nll.numel()
  ((nll * weights).sum() + (last * last.flip(0)).sum()).backward()
  return nll, last, {k: p.grad for k, p in params.items()}, h.grad


@pytest.mark.parametrize('num_nodes, num_cells, form', [
    *((3, 128, form) for form in FORMS),
    *((12, 6, form) for form in ('enas', 'enas_pytorch', 'darts'))])
def test_a_cell_of_arrays_equals_a_plain_one(num_nodes, num_cells, form):
  child = make(num_nodes, **FORMS[form])
  params, tokens, h = make_params(child), make_tokens(), make_state()
  cells = cells_of(child.space, num_cells)
  (_, (nll, last)), (d_params, d_h) = loss_and_gradients(
      child, params, cells, tokens, h)
  close = lambda ours, theirs, tolerance: np.testing.assert_allclose(
      ours, theirs.detach(), atol=tolerance, rtol=tolerance)
  for m, cell in enumerate(space_lib.unstack(cells)):
    their_nll, their_last, d_theirs, their_d_h = plain(
        child, params, cell, tokens, h)
    close(nll[m], their_nll, 2e-6)
    close(last[m], their_last, 2e-6)
    close(d_h[m], their_d_h, 1e-5)
    for name, d in d_theirs.items():
      close(d_params[name][m], d, 1e-5)


def python_cell(params, cell, x, h):
  """One step, from the equations of ENAS; numpy."""
  sigmoid = lambda u: 1 / (1 + np.exp(-u))
  functions = (np.tanh, lambda u: np.maximum(u, 0), lambda u: u, sigmoid)
  u, g = np.split(np.concatenate([x, h], -1) @ params['w0'] + params['b0'],
                  2, axis=-1)
  c = sigmoid(g)
  states = [c * functions[cell.act[0]](u) + (1 - c) * h]
  for j in range(1, len(cell.prev)):
    i = cell.prev[j]
    u, g = np.split(states[i] @ params['w'][j * (j - 1) // 2 + i], 2, axis=-1)
    c = sigmoid(g)
    states.append(c * functions[cell.act[j]](u) + (1 - c) * states[i])
  return np.mean([s for j, s in enumerate(states)
                  if j not in cell.prev[1:]], axis=0)


def test_the_states_follow_the_equations_of_enas():
  child = make(12, max_norm=0.0, init_scale=0.5)
  params, tokens = make_params(child), make_tokens()
  p = {k: np.float64(v) for k, v in params.items()}
  for cell in space_lib.unstack(cells_of(child.space, 5)):
    h = make_state()
    logits, last = logits_of(child, params, cell, tokens, h)
    h = np.float64(h)
    for z, token in zip(logits, tokens, strict=True):
      h = python_cell(p, cell, p['embedding'][token], h)
      np.testing.assert_allclose(
          z, h @ p['embedding'].T + p['bias'], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(last, h, rtol=2e-6, atol=2e-6)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(child, params, cell, tokens, h):
  return child_lib.logits(child, params, cell, tokens, h)


@functools.partial(jax.jit, static_argnums=0)
def nll_of(child, params, cell, tokens, h):
  return child_lib.negative_log_likelihood(child, params, cell, tokens, h)


def test_likelihoods_are_those_of_the_logits():
  child = make(4)
  params, tokens, h = make_params(child), make_tokens(), make_state()
  cell = next(space_lib.unstack(cells_of(child.space, 1)))
  nll, last = nll_of(child, params, cell, tokens, h)
  logits, same = logits_of(child, params, cell, tokens[:-1], h)
  expected = optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[1:])
  np.testing.assert_allclose(nll, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(last, same)


def permuted(child, params, cell, order):
  """Nodes renamed: new node k is old node order[k]; edges' weights go along."""
  place = np.argsort(order)
  prev = place[np.asarray(cell.prev)[order]]
  prev[0] = 0
  w = np.zeros_like(params['w'])
  for j in range(1, len(order)):
    w[child_lib.edge(j, prev[j])] = params['w'][
        child_lib.edge(order[j], cell.prev[order[j]])]
  return Cell(prev, np.asarray(cell.act)[order]), params | {'w': w}


def test_renaming_nodes_changes_nothing_unless_the_last_node_is_the_state():
  # 0 -> 1 -> 3, 0 -> 2: nodes 2 and 3 exchanged.
  cell = cell_of((0, 0, 0, 1), ('tanh', 'relu', 'sigmoid', 'identity'))
  tokens, h = make_tokens(), make_state()
  for state, same in (('mean', True), ('last', False)):
    child = make(4, state=state)
    params = make_params(child)
    renamed, moved = permuted(child, params, cell, np.array([0, 1, 3, 2]))
    assert space_lib.canonical(renamed) == space_lib.canonical(cell)
    a, _ = nll_of(child, params, cell, tokens, h)
    b, _ = nll_of(child, moved, renamed, tokens, h)
    assert (np.abs(a - b).max() < 2e-6) == same


def gated(params, gate):
  """Node 0's gate closed (-) or open (+), and all others' by large states."""
  params = jax.tree.map(lambda p: 0 * p, params)
  params['b0'] = params['b0'].at[WIDTH:].set(gate)
  params['w'] = params['w'].at[..., WIDTH:].set(gate)
  return params


def test_closed_gates_copy_the_state():
  child = make(4, max_norm=0.0)
  h = 1 + jnp.abs(make_state())  # Positive, so that s W is very negative.
  params = gated(make_params(child), -100.0)
  for cell in space_lib.unstack(cells_of(child.space, 5)):
    _, last = nll_of(child, params, cell, make_tokens(), h)
    np.testing.assert_allclose(last, h, rtol=1e-6)


def test_open_gates_and_identities_multiply_matrices():
  # 0 -> 1 -> 2 -> 3, one step: h W0h W1 W2 W3 where all stays positive.
  child = make(4, max_norm=0.0)
  cell = cell_of((0, 0, 1, 2), ('identity',) * 4)
  h = 1 + jnp.abs(make_state())
  params = gated(make_params(child), 100.0)
  product = np.asarray(h)
  draw = lambda key: jax.random.uniform(
      jax.random.key(key), (WIDTH, WIDTH), minval=0.1)
  params['w0'] = params['w0'].at[WIDTH:, :WIDTH].set(draw(0))
  product = product @ draw(0)
  for j in range(1, 4):
    e = child_lib.edge(j, j - 1)
    params['w'] = params['w'].at[e, :, :WIDTH].set(draw(j))
    product = product @ draw(j)
  _, last = nll_of(child, params, cell, make_tokens(1), h)
  np.testing.assert_allclose(last, product, rtol=1e-5)


def test_tanh_and_sigmoid_keep_the_state_within_one():
  # s_j is between s_i and f(u), so |s| <= max(1, |h|).
  space = space_lib.Space(6, ('tanh', 'sigmoid'))
  child = make(space=space, max_norm=0.0, init_scale=4.0)
  h = 3 * make_state()
  for cell in space_lib.unstack(cells_of(space, 5)):
    _, last = nll_of(child, make_params(child), cell, make_tokens(20), h)
    assert np.abs(last).max() <= max(1, np.abs(h).max()) + 1e-6


def test_an_exploding_state_is_shortened_and_keeps_its_direction():
  cell = cell_of((0, 0, 1), ('relu', 'identity', 'relu'))
  free = make(3, max_norm=0.0, init_scale=6.0)
  params, h = make_params(free), 20 * make_state()
  clipped = dataclasses.replace(free, max_norm=25.0)
  _, long = nll_of(free, params, cell, make_tokens(1), h)
  _, short = nll_of(clipped, params, cell, make_tokens(1), h)
  norms = np.linalg.norm(long, axis=-1)
  assert norms.max() > 25
  np.testing.assert_allclose(
      short, long * np.minimum(1, 25 / norms)[:, None], rtol=1e-5)
  nll, after = nll_of(clipped, params, cell, make_tokens(60), h)
  assert np.isfinite(nll).all()
  assert np.linalg.norm(after, axis=-1).max() <= 25 * (1 + 1e-6)


@pytest.mark.parametrize('form', ['enas', 'enas_lm'])
def test_only_weights_that_a_cell_uses_get_a_gradient(form):
  child = make(3, **FORMS[form])
  cells = cells_of(child.space, 128)
  _, (gradients, _) = loss_and_gradients(
      child, make_params(child), cells, make_tokens(), make_state())
  for m, cell in enumerate(space_lib.unstack(cells)):
    edges = child_lib.edge(np.arange(1, 3), cell.prev[1:])
    used = np.zeros(gradients['w'].shape[1:-2], bool)
    used[(cell.act[1:], edges) if form == 'enas_lm' else edges] = True
    largest = np.abs(gradients['w'][m]).max((-1, -2))
    np.testing.assert_array_equal(largest != 0, used)


def test_parameters_are_as_many_as_published():
  shared = Child(space_lib.enas(12), 10_000, 1000, norm='batch')
  darts = Child(space_lib.darts(), 10_000, 850, sharing='node',
                input_bias=False)
  single = dataclasses.replace(shared, norm='none', sharing='node')
  shared_plain = dataclasses.replace(shared, norm='none')
  published = space_lib.published()
  assert child_lib.count_params(shared) == 146_014_000
  assert child_lib.count_params(single) == 36_012_000
  assert child_lib.count_params(darts) == 22_960_000
  for child in (shared, darts):
    shapes = jax.eval_shape(
        lambda key, child=child: child_lib.init_params(child, key),
        jax.random.key(0))
    assert child_lib.count_params(child) == sum(
        math.prod(p.shape) for p in shapes.values())
  alone = jax.eval_shape(
      lambda key: child_lib.single_params(
          shared_plain, child_lib.init_params(shared_plain, key), published),
      jax.random.key(0))
  assert sum(math.prod(p.shape) for p in alone.values()) == 36_012_000


def test_a_zero_softmax_gives_the_logarithm_of_the_vocabulary():
  child = Child(space_lib.enas(3), 10_000, WIDTH)
  params = child_lib.init_params(child, jax.random.key(0))
  cell = next(space_lib.unstack(cells_of(child.space, 1)))
  tokens, h = make_tokens(), child_lib.initial_state(child, BATCH)
  uniform = params | {'embedding': 0 * params['embedding']}
  nll, _ = nll_of(child, uniform, cell, tokens, h)
  np.testing.assert_allclose(nll, math.log(10_000), rtol=1e-6)  # 9.2103
  nll, _ = nll_of(child, params, cell, tokens, h)
  assert abs(math.exp(nll.mean()) / 10_000 - 1) < 0.01


def test_two_windows_that_hand_on_their_state_equal_one_but_cut_gradients():
  child = make(4)
  params, tokens, h = make_params(child), make_tokens(6), make_state()
  cell = next(space_lib.unstack(cells_of(child.space, 1)))
  whole, last = nll_of(child, params, cell, tokens, h)
  first, middle = nll_of(child, params, cell, tokens[:4], h)
  second, end = nll_of(child, params, cell, tokens[3:], middle)
  np.testing.assert_allclose(whole, jnp.concatenate([first, second]),
                             rtol=1e-5)
  np.testing.assert_allclose(last, end, rtol=1e-5)

  @functools.partial(jax.jit, static_argnums=1)
  def slope(params, cut):
    a, h_mid = child_lib.negative_log_likelihood(
        child, params, cell, tokens[:4], h)
    h_mid = jax.lax.stop_gradient(h_mid) if cut else h_mid
    b, _ = child_lib.negative_log_likelihood(
        child, params, cell, tokens[3:], h_mid)
    return a.sum() + b.sum()

  one = jax.jit(jax.grad(lambda p: child_lib.negative_log_likelihood(
      child, p, cell, tokens, h)[0].sum()))(params)
  carried, cut = (jax.grad(slope)(params, c) for c in (False, True))
  chex.assert_trees_all_close(one, carried, rtol=1e-4, atol=1e-5)
  assert np.abs(one['w0'] - cut['w0']).max() > 1e-3


def test_dropout_is_the_same_at_all_steps_and_one_in_the_mean():
  rates = Rates(0.3, 0.5, 0.25, 0.5)
  draw = jax.vmap(lambda key: child_lib.masks(
      (VOCAB, WIDTH), 8, (WIDTH, 2 * WIDTH), rates, key))
  masks = draw(jax.random.split(jax.random.key(0), 2000))
  shapes = dict(embedding=(VOCAB,), input=(8, WIDTH), output=(8, WIDTH),
                weight=(WIDTH, 2 * WIDTH))
  for name, mask in masks.items():
    rate = getattr(rates, name)
    assert mask.shape[1:] == shapes[name]  # None has an axis of time.
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
    sd = math.sqrt(rate / (1 - rate) / mask.size)
    assert abs(mask.mean() - 1) < 4 * sd


@functools.partial(jax.jit, static_argnums=0)
def dropped_nll(child, params, cell, rates, key):
  return child_lib.negative_log_likelihood(
      child, params, cell, make_tokens(), make_state(), rates=rates, key=key)


def test_zero_rates_are_an_evaluation_and_keys_repeat_their_masks():
  child = make(3)
  params, key = make_params(child), jax.random.key(3)
  cell = next(space_lib.unstack(cells_of(child.space, 1)))
  evaluated, _ = nll_of(child, params, cell, make_tokens(), make_state())
  run = lambda rates, key: dropped_nll(child, params, cell, rates, key)[0]
  np.testing.assert_allclose(run(Rates(), key), evaluated, rtol=1e-6)
  for i in range(4):
    one = Rates(**{Rates._fields[i]: 0.5})
    assert np.abs(run(one, key) - evaluated).max() > 1e-3
    np.testing.assert_array_equal(run(one, key), run(one, key))


@pytest.mark.parametrize('form', ['enas', 'enas_pytorch'])
def test_split_columns_are_those_of_each_cell_alone(form):
  child = make(4, **FORMS[form])
  params, tokens, h = make_params(child), make_tokens(), make_state()
  cells = cells_of(child.space, 2)

  @jax.jit
  def split(params):
    nll, last = child_lib.negative_log_likelihood_split(
        child, params, cells, tokens, h)
    return nll.mean(), (nll, last)

  @jax.jit
  def alone(params, m):
    cell = jax.tree.map(lambda x: x[m], cells)
    columns = lambda x: jax.lax.dynamic_slice_in_dim(x, 2 * m, 2, axis=-1)
    nll, last = child_lib.negative_log_likelihood(
        child, params, cell, columns(tokens), columns(h.T).T)
    return nll.mean(), (nll, last)

  (_, (nll, last)), mean = jax.value_and_grad(split, has_aux=True)(params)
  apart = [jax.value_and_grad(alone, has_aux=True)(params, m)
           for m in range(2)]
  for m, ((_, (one, end)), _) in enumerate(apart):
    np.testing.assert_allclose(nll[:, 2 * m:2 * m + 2], one, rtol=2e-6)
    np.testing.assert_allclose(last[2 * m:2 * m + 2], end, rtol=2e-5, atol=1e-6)
  chex.assert_trees_all_close(
      mean, jax.tree.map(lambda a, b: (a + b) / 2, *[g for _, g in apart]),
      rtol=1e-5, atol=1e-6)


def test_cells_must_divide_the_columns():
  child = make(3)
  with pytest.raises(ValueError, match='cells_per_update=3 does not divide'):
    child_lib.negative_log_likelihood_split(
        child, make_params(child), cells_of(child.space, 3), make_tokens(),
        make_state())


def test_a_scan_over_cells_gives_the_gradient_of_their_mean():
  child = make(4)
  params, cells = make_params(child), cells_of(child.space, 4)

  def loss(params, cell):
    return child_lib.negative_log_likelihood(
        child, params, cell, make_tokens(), make_state())[0].mean()

  @jax.jit
  def scanned(params):
    add = lambda total, cell: (
        jax.tree.map(jnp.add, total, jax.grad(loss)(params, cell)), None)
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), cells)
    return jax.tree.map(lambda x: x / 4, total)

  mean = jax.jit(jax.grad(lambda params: jax.vmap(
      loss, (None, 0))(params, cells).mean()))
  chex.assert_trees_all_close(
      scanned(params), mean(params), rtol=1e-5, atol=1e-6)


def test_one_program_runs_all_architectures():
  child = make(3)
  params, tokens, h = make_params(child), make_tokens(), make_state()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def loss(cell):
    return child_lib.negative_log_likelihood(
        child, params, cell, tokens, h)[0].mean()

  losses = [float(loss(cell)) for cell in space_lib.unstack(
      space_lib.enumerate_cells(child.space))]
  # 128 cells, and no two of them are one function, but those where node 2
  # and node 1 change places with their weights.
  assert len(set(losses)) == 128


@pytest.mark.parametrize('form', FORMS)
def test_a_cell_alone_needs_its_own_weights_only(form):
  child = make(4, **FORMS[form])
  params, cell = make_params(child), next(
      space_lib.unstack(cells_of(child.space, 1)))
  alone = child_lib.single_params(child, params, cell)
  single = dataclasses.replace(child, sharing='node')
  assert sum(p.size for p in alone.values()) == child_lib.count_params(
      single)
  expected = nll_of(child, params, cell, make_tokens(), make_state())
  found = nll_of(single, alone, cell, make_tokens(), make_state())
  chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_a_cell_of_one_node_is_node_zero():
  child = make(1)
  cell = Cell(np.zeros(1, np.int32), np.zeros(1, np.int32))
  params, tokens, h = make_params(child), make_tokens(1), make_state()
  _, last = nll_of(child, params, cell, tokens, h)
  p = {k: np.float64(v) for k, v in params.items()}
  u, g = np.split(np.concatenate([p['embedding'][tokens[0]], h], -1)
                  @ p['w0'] + p['b0'], 2, axis=-1)
  expected = h + (np.tanh(u) - h) / (1 + np.exp(-g))
  np.testing.assert_allclose(last, expected, rtol=1e-5)


def test_a_small_batch_is_learnt_by_heart():
  child = Child(space_lib.enas(4), VOCAB, 16, init_scale=0.25)
  tokens = jax.random.randint(jax.random.key(8), (9, 4), 0, VOCAB)
  tokens = tokens.at[0].set(jnp.arange(4))  # Columns can be told apart.
  cell = cell_of((0, 0, 1, 1), ('tanh', 'relu', 'tanh', 'identity'))
  tx = optax.adam(0.02)
  params = child_lib.init_params(child, jax.random.key(0))
  loss = lambda params: child_lib.negative_log_likelihood(
      child, params, cell, tokens, jnp.zeros((4, 16)))[0].mean()

  def step(carry, _):
    params, opt_state = carry
    value, gradients = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(gradients, opt_state)
    return (optax.apply_updates(params, updates), opt_state), value

  _, losses = jax.jit(lambda params: jax.lax.scan(
      step, (params, tx.init(params)), length=300))(params)
  assert losses[0] > 2
  assert losses[-1] < 0.05


@pytest.mark.parametrize('field, value', [
    ('sharing', 'all'), ('state', 'first'), ('output', 'none'),
    ('norm', 'layer'), ('hidden_size', 0), ('max_norm', -1.0)])
def test_an_unknown_setting_is_refused_by_name(field, value):
  with pytest.raises(ValueError, match=f'{field}={value!r}'):
    dataclasses.replace(make(), **{field: value})


def test_a_cell_of_another_space_is_refused():
  child = make(4)
  with pytest.raises(AssertionError):
    nll_of(child, make_params(child), cell_of((0, 0, 1), ('tanh',) * 3),
           make_tokens(), make_state())
