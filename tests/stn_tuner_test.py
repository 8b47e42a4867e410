"""The round: what each level moves and what it must not; and whole runs."""

import dataclasses
import functools
import os
import signal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from core_jax import loop
from core_jax import mesh as mesh_lib
from stn_jax import diagnostics
from stn_jax import losses
from stn_jax import problem as problem_lib
from stn_jax import regularize
from stn_jax import response as response_lib
from stn_jax import space
from stn_jax import state as state_lib
from stn_jax import tuner
from stn_jax import updates

B, T = 8, 2  # Examples, and training updates of a round.


class Net(nn.Module):
  """Smooth, with dropout, running statistics, and a state of its stream."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.tanh(nn.Dense(6, name='first')(x))
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    x = nn.Dropout(0.0, name='drop')(x, deterministic=not train)
    seen = self.variable('carry', 'seen', lambda: jnp.zeros(x.shape[0]))
    y = nn.Dense(3, name='last')(x) + 0.1 * jnp.tanh(seen.value)[:, None]
    if not self.is_initializing():
      seen.value = seen.value + 1
    return y


def forward(apply, batch, hypers, key):
  del key
  return apply(batch['x'], train=hypers is not None)


def loss(logits, batch, hypers):
  del hypers
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch['y'])


SPACE = {'rate': space.bounded(0.2, 0, 0.9), 'decay': space.log(1e-2)}


def problem(**changes):
  return problem_lib.Problem(**{
      'model': Net(), 'space': SPACE, 'forward': forward, 'loss': loss,
      'dropout': {'drop': 'rate'}, 'weight_decay': 'decay'} | changes)


def examples(seed, *lead):
  rng = np.random.default_rng(seed)
  return {'x': rng.standard_normal((*lead, 4)).astype(np.float32),
          'y': rng.integers(0, 3, lead).astype(np.int32)}


def batch(step):
  return {'train': examples((0, step), B, T), 'valid': examples((1, step), B)}


def optimizers():
  sgd = optax.sgd(0.1, momentum=0.9)
  return state_lib.Optimizers(sgd, sgd, optax.adam(0.05))


def start(settings, what=None, num_rounds=4):
  """The state at step 0, and the same with responses that do not vanish."""
  init = tuner.make_init(
      what or problem(), settings, optimizers(), examples(0, B), num_rounds, 0)
  state = jax.jit(init)({})
  return state, state.replace(response=jax.tree.map(
      lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape),
      state.response))


@pytest.fixture(params=['stn', 'delta_stn'], scope='module')
def method(request):
  return request.param


def settings(method, **changes):
  return state_lib.Settings(method, **changes)


@jax.jit
def outputs(state, h):
  """f(x; h) in evaluation."""
  return problem_lib.run_model(
      problem(), state.params, state.response, state.variables,
      examples(5, B), None, response_lib.Perturbation(h),
      jax.random.key(0))[0]


@functools.cache
def jitted(update, chosen):
  """An update (state, batch, key) -> (state, metrics), compiled once."""
  return jax.jit(functools.partial(
      getattr(updates, update), problem(), chosen, optimizers()))


def validation_update(state, chosen):
  return jitted('validation_update', chosen)(
      state, examples(1, B), jax.random.key(3))


def training_update(state, chosen):
  return jitted('training_update', chosen)(
      state, examples(0, B), jax.random.key(3))


def test_a_validation_step_moves_lam_and_rho_and_no_weight(method):
  _, state = start(settings(method))
  after, metrics = validation_update(state, settings(method))
  chex.assert_trees_all_equal(
      (after.params, after.response, after.opt_params, after.opt_response,
       after.variables),
      (state.params, state.response, state.opt_params, state.opt_response,
       state.variables))
  assert (after.lam != state.lam).all() and (after.rho != state.rho).all()
  assert metrics['hypergradient_norm'] > 0


def test_a_training_step_moves_the_weights_and_no_hyperparameter(method):
  _, state = start(settings(method))
  after, _ = training_update(state, settings(method))
  chex.assert_trees_all_equal(
      (after.lam, after.rho, after.opt_hyper, after.valid_carry),
      (state.lam, state.rho, state.opt_hyper, state.valid_carry))
  for moved in (after.params, after.response):
    before = state.params if moved is after.params else state.response
    assert all(jax.tree.leaves(jax.tree.map(
        lambda a, b: (a != b).any(), moved, before)))


def test_a_step_of_lam_moves_the_network_in_stn_alone():
  """By J dlam, to first order; Delta-STN's stays as it is, in every bit."""
  for method in ('stn', 'delta_stn'):
    _, state = start(settings(method))
    after, _ = validation_update(state, settings(method))
    h = lambda s, method=method: losses.answered(
        method, s.lam, jnp.zeros((B, 2)))
    before, moved = outputs(state, h(state)), outputs(after, h(after))
    if method == 'delta_stn':
      np.testing.assert_array_equal(moved, before)
      continue
    step = h(after) - h(state)
    assert np.abs(moved - before).max() > 1e-3
    error = lambda scale, state=state, h=h, step=step: np.abs(
        outputs(state, h(state) + scale * step) - outputs(state, h(state))
        - scale * jax.jvp(functools.partial(outputs, state), (h(state),), (
            step,))[1]).max()
    # Of second order: a half of the step has a quarter of the error.
    np.testing.assert_allclose(error(2.0) / error(1.0), 4, rtol=0.25)


def test_without_a_response_lam_has_no_gradient_and_rho_only_entropys():
  """-tau sigmoid(rho) / sigma: the slope of -tau log softplus(rho)."""
  chosen = settings('delta_stn', entropy_weight=0.02)
  state, _ = start(chosen)
  _, grads = jax.jit(functools.partial(
      updates.hypergradient, problem(), chosen))(
          state, examples(1, B), jax.random.key(3))
  np.testing.assert_array_equal(grads['lam'], [0, 0])
  np.testing.assert_allclose(
      grads['rho'], -0.02 * jax.nn.sigmoid(state.rho) / space.sigma(state.rho),
      rtol=1e-5)


def test_what_is_not_tuned_rests():
  frozen = SPACE | {'rate': dataclasses.replace(SPACE['rate'], tuned=False)}
  what = problem(space=frozen)
  _, state = start(settings('delta_stn'), what)
  for tune_scales in (True, False):
    chosen = settings('delta_stn', tune_scales=tune_scales)
    _, grads = jax.jit(functools.partial(
        updates.hypergradient, what, chosen))(
            state, examples(1, B), jax.random.key(3))
    moves = {name: [bool(x) for x in g != 0] for name, g in grads.items()}
    assert moves == {'lam': [False, True], 'rho': [False, tune_scales]}


def test_no_gradient_of_the_training_loss_reaches_lam_through_its_values():
  """Neither masks nor weight decay; STN's reaches it by the response only."""
  _, state = start(settings('delta_stn'))
  eps, key = 0.1 * jnp.ones((B, 2)), jax.random.key(3)
  args = problem(), state.params, state.response, state.variables, (
      examples(0, B))
  values = [
      lambda lam: losses.linearised_loss(*args, lam, eps, key),
      lambda lam: losses.perturbed_loss(*args, lam, eps, eps, key)[0]]
  for value in values:
    np.testing.assert_array_equal(jax.jit(jax.grad(value))(state.lam), [0, 0])
  moved = jax.jit(values[0])(state.lam + 1.0)
  assert abs(moved - jax.jit(values[0])(state.lam)) > 1e-3  # They are read.


def test_the_unperturbed_pass_gives_the_response_no_gradient():
  """Pass 1 of Delta-STN is plain training: any response, the same weights."""
  state, other = start(settings('delta_stn'))
  ends = [training_update(s, settings('delta_stn'))[0]
          for s in (state, other)]
  chex.assert_trees_all_equal(
      *[(end.params, end.variables, end.opt_params) for end in ends])


def test_linearised_is_exact_for_a_linear_network_and_second_order_else():
  """Of outputs alone, at the least dropout and decay, against the full network.
  """
  _, state = start(settings('delta_stn'))
  args = state.params, state.response, state.variables, examples(0, B)

  def gap(what, scale, args=args):
    return jax.jit(functools.partial(gap_at, what, args=args))(scale)

  def gap_at(what, scale, args):
    eps = scale * jnp.asarray(
        np.random.default_rng(0).standard_normal((B, 2)), jnp.float32)
    lam, key = jnp.full(2, -60.0), jax.random.key(3)  # Next to no rate.
    return abs(
        losses.linearised_loss(what, *args, lam, eps, key)
        - losses.perturbed_loss(what, *args, lam, eps, eps, key)[0])

  smooth = problem(
      loss=lambda y, batch, hypers: jnp.sum(y, axis=1))
  np.testing.assert_allclose(
      gap(smooth, 0.2) / gap(smooth, 0.1), 4, rtol=0.3)
  linear = problem_lib.Problem(
      nn.Dense(3), SPACE, lambda apply, batch, hypers, key: apply(batch['x']),
      loss, weight_decay='decay')
  layers = state.params['last'], state.response['last']
  params, own = jax.tree.map(lambda x: x[:4] if x.ndim == 2 and (
      x.shape[0] == 6) else x, layers)
  assert gap(linear, 1.0, (params, {'': own}, {}, examples(0, B))) < 1e-6


@pytest.fixture(scope='module')
def ran():
  """The start of a run of Delta-STN with two rounds of warm-up, and the three
  rounds after it: (state, metrics) each, by a step that is traced once."""
  chosen = settings('delta_stn', warmup_rounds=2)
  state, _ = start(chosen)
  chex.clear_trace_counter()
  step = jax.jit(chex.assert_max_traces(
      tuner.make_round(problem(), chosen, optimizers()), n=1))
  found = [(state, {})]
  for i in range(3):
    found.append(step(found[-1][0], batch(i), {}))
  return found


def test_the_warm_up_keeps_hyperparameters_and_their_optimizer(ran):
  """And trains: the first free round starts from the optimizer's start."""
  (state, _), _, (warm, _), (free, metrics) = ran
  keep = lambda s: (s.lam, s.rho, s.opt_hyper)
  chex.assert_trees_all_equal(keep(warm), keep(state))
  assert (warm.params['first']['kernel'] !=
          state.params['first']['kernel']).all()
  assert (free.lam != state.lam).any()
  np.testing.assert_array_equal(optax.tree.get(free.opt_hyper, 'count'), 1)
  np.testing.assert_array_equal(
      free.history[:3], jnp.broadcast_to(state.lam[None], (3, 2)))
  np.testing.assert_allclose(
      metrics['hyper/rate'], space.constrain(SPACE, free.lam)['rate'])
  np.testing.assert_allclose(
      metrics['sigma/decay'], space.sigma(free.rho)[1])


def test_updates_written_out_equal_a_loop(ran):
  (state, _), (looped, metrics), *_ = ran
  chosen = settings('delta_stn', warmup_rounds=2, unroll=True)
  written, others = jax.jit(tuner.make_round(
      problem(), chosen, optimizers()))(state, batch(0), {})
  chex.assert_trees_all_close(
      (looped.params, looped.response, metrics),
      (written.params, written.response, others), atol=1e-6)


def test_each_stream_has_its_own_carry(ran):
  """Two training windows and one of validation in every round."""
  last, _ = ran[-1]
  np.testing.assert_array_equal(
      last.variables['carry']['seen'], np.full(B, 3 * T))
  np.testing.assert_array_equal(last.valid_carry['seen'], np.full(B, 3))


def test_statistics_follow_a_training_batch_once():
  """Decay 0.99 an update: the linearised pass and validation leave them."""
  state, _ = start(settings('delta_stn'))
  x = np.tanh(examples(0, B)['x'] @ state.params['first']['kernel'])
  mean = 0.01 * x.mean(axis=0)
  after, _ = training_update(state, settings('delta_stn'))
  after, _ = validation_update(after, settings('delta_stn'))
  np.testing.assert_allclose(
      after.variables['batch_stats']['norm']['mean'], mean, atol=1e-6)


def test_a_response_gains_what_it_predicts_to_first_order(method, ran):
  """Of f at lam + eps, against the loss of the weights that rest."""
  _, state = start(settings(method))
  small = state.replace(
      response=jax.tree.map(lambda x: 1e-2 * x, state.response))
  found = jax.jit(functools.partial(
      diagnostics.response_quality, problem(), method))(
          small, examples(0, B), jax.random.key(3))
  assert abs(found['actual_gain']) > 1e-5
  np.testing.assert_allclose(
      found['predicted_gain'], found['actual_gain'], rtol=0.05)
  assert found.keys() < ran[-1][1].keys()


def stage(devices=None, what=None, diagnose=True, num_rounds=4,
          method='delta_stn'):
  chosen = settings(method, warmup_rounds=1, diagnose=diagnose)
  what = what or problem()
  return loop.Stage(
      name='tune', num_steps=num_rounds,
      mesh=mesh_lib.make_mesh(devices=devices),
      init=tuner.make_init(
          what, chosen, optimizers(), examples(0, B), num_rounds, 0),
      step=tuner.make_round(what, chosen, optimizers()),
      params=lambda state: {
          'params': state.params, 'response': state.response,
          'lam': state.lam, 'rho': state.rho, 'history': state.history,
          'opt_hyper': state.opt_hyper},
      batch=batch)


def config():
  return ml_collections.ConfigDict(dict(
      log_every_steps=1, checkpoint_every_steps=2, keep=2))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return loop.fit([stage()], config(), str(tmp_path_factory.mktemp('whole')))


def test_one_device_equals_eight(whole, tmp_path):
  """B = 8: an example a device."""
  alone = loop.fit(
      [stage(devices=jax.devices()[:1])], config(), str(tmp_path))
  chex.assert_trees_all_close(alone, whole, atol=2e-5)


@pytest.mark.parametrize('by', ['delta_stn', 'stn'])
def test_killed_and_resumed_equals_uninterrupted(by, tmp_path):
  """In the same bits: weights, responses, hyperparameters, both optimizers."""
  once = stage(devices=jax.devices()[:1], diagnose=False, method=by)
  whole = loop.fit([once], config(), str(tmp_path / 'whole'))

  def killed(step):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return batch(step)

  with pytest.raises(loop.Interrupted):
    loop.fit([dataclasses.replace(once, batch=killed)],
             config(), str(tmp_path / 'killed'))
  chex.assert_trees_all_equal(
      loop.fit([once], config(), str(tmp_path / 'killed')), whole)


def test_a_hypergradient_that_is_not_a_number_stops_the_run(tmp_path):
  """The root of F has no slope where it is taken."""
  broken = problem(loss=lambda y, batch, hypers: (
      loss(y, batch, hypers) if hypers is not None
      else jnp.sqrt(jnp.abs(y[:, 0] - jax.lax.stop_gradient(y[:, 0])))))
  stopping = stage(devices=jax.devices()[:1], what=broken, diagnose=False)
  with pytest.raises(FloatingPointError, match='hypergradient_norm is nan'):
    loop.fit([stopping], config(), str(tmp_path))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'space': SPACE | {'noise': space.positive(0.1)}},
     'nothing reads noise: use it in forward or loss'),
    ({'space': SPACE | {'learning_rate': space.log(0.1)}},
     "'learning_rate' cannot be tuned"),
    ({'dropout': {'dorp': 'rate'}}, r"dropout names \['dorp'\], but"),
    ({'dropout': {'drop': 'rat'}}, "drop: 'rat' is not in the space"),
    ({'weight_decay': 'wd'}, "weight_decay: 'wd' is not in the space")])
def test_a_problem_that_cannot_be_tuned_is_refused_at_once(changes, message):
  with pytest.raises(space.SpaceError, match=message):
    tuner.make_init(problem(**changes), state_lib.Settings(), optimizers(),
                    examples(0, B), 4, 0)


def test_an_unknown_method_is_refused():
  with pytest.raises(ValueError, match='there are delta_stn, stn, implicit'):
    state_lib.Settings('delta')


def test_the_balance_of_sigma_is_one_at_rest():
  """F = k (lam + eps)^2 / 2 has dF/dsigma = k sigma; tau / sigma at rest."""
  problem = problem_lib.Problem(
      None, {'a': space.real(0.0, sigma=0.5)}, None, None)
  k, tau = 0.5, 0.02
  for sigma, expected in ((np.sqrt(tau / k), 1.0), (0.5, k * 0.25 / tau)):
    rho = space.inverse_softplus(np.array([sigma], np.float32))
    by_sigma = k * sigma - tau / sigma
    grad = jnp.asarray(by_sigma / (1 + np.exp(-rho)), jnp.float32)
    found = diagnostics.sigma_balance(problem, tau, jnp.asarray(rho), grad)
    np.testing.assert_allclose(
        found['sigma_balance/a'], expected, rtol=1e-4)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'rank': 0}, 'rank=0: give 1 or more'),
    ({'entropy_weight': -1e-3}, 'entropy_weight=-0.001: give 0 or more'),
    ({'warmup_rounds': -1}, 'warmup_rounds=-1: give 0 or more')])
def test_settings_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    state_lib.Settings(**changes)


def test_a_run_that_would_move_nothing_is_refused():
  make = lambda what, chosen: tuner.make_init(
      what, chosen, optimizers(), examples(0, B), 4, 0)
  with pytest.raises(ValueError, match='warmup_rounds=4 leaves no round of '):
    make(problem(), settings('stn', warmup_rounds=4))
  silent = problem(without_response=('first', 'last'))
  with pytest.raises(response_lib.LayerError, match='no layer of the model'):
    make(silent, settings('stn'))
  still = {name: dataclasses.replace(h, tuned=False)
           for name, h in SPACE.items()}
  with pytest.raises(space.SpaceError, match='leaves nothing to tune'):
    make(problem(space=still), settings('stn'))
  with pytest.raises(ValueError, match='its round is stn_jax.implicit'):
    tuner.make_round(problem(), settings('implicit'), optimizers())


class Memoryless(nn.Module):

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dropout(0.0, name='drop')(x, deterministic=not train)
    return nn.Dense(3, name='last')(x)


def test_the_implicit_function_refuses_what_it_would_leave_at_rest():
  make = lambda **changes: tuner.make_init(
      problem(model=Memoryless(), **changes), settings('implicit'),
      optimizers(), examples(0, B), 4, 0)
  with pytest.raises(space.SpaceError, match='smooth in every .* rate enters'):
    make()
  with pytest.raises(space.SpaceError, match='a state from batch to batch'):
    tuner.make_init(problem(), settings('implicit'), optimizers(),
                    examples(0, B), 4, 0)
  with pytest.raises(space.SpaceError, match="whose outputs have no 'more'"):
    make(loss=lambda outputs, batch, hypers: (
        hypers['rate'] * outputs['more'][:, 0]),
         forward=lambda apply, batch, hypers, key: {
             'y' if hypers is None else 'more': forward(
                 apply, batch, hypers, key)})
  make(space=SPACE | {'rate': dataclasses.replace(
      SPACE['rate'], tuned=False)})


@pytest.mark.parametrize(('train', 'valid', 'message'), [
    (B, 4, r"carry is of \[8\] streams, .* has 8 rows and .*\['valid'\] 4"),
    (4, 4, r"carry is of \[8\] streams, but batch\['train'\] has 4 rows"),
    (B, 0, r"batch\['train'\] has 8 examples and batch\['valid'\] 0"),
    (0, B, r"batch\['train'\] has 0 examples")])
def test_a_batch_that_a_round_cannot_use_is_named(train, valid, message):
  chosen = settings('delta_stn')
  step = tuner.make_round(problem(), chosen, optimizers())
  state = jax.eval_shape(lambda: tuner.make_init(
      problem(), chosen, optimizers(), examples(0, B), 4, 0)({}))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda state: step(state, {
        'train': examples(0, train, T), 'valid': examples(1, valid)}, {}),
                   state)


def moved(tx, grads, what=None, **changes):
  """A state, and what `move` makes of it."""
  state, _ = start(settings('delta_stn', **changes), what)
  chosen = optimizers()._replace(hyper=tx)
  state = state.replace(opt_hyper=tx.init({'lam': state.lam, 'rho': state.rho}))
  return state, *updates.move(
      what or problem(), settings('delta_stn', **changes), chosen, state, grads)


def test_a_hypergradient_that_is_not_finite_moves_nothing():
  grads = {'lam': jnp.array([jnp.nan, 1.0]), 'rho': jnp.ones(2)}
  state, after, metrics = moved(optax.adam(0.1), grads)
  keep = lambda s: (s.lam, s.rho, s.opt_hyper)
  chex.assert_trees_all_equal(keep(after), keep(state))
  assert metrics['hypergradient_skipped'] == 1
  grads['lam'] = jnp.ones(2)
  state, after, metrics = moved(optax.adam(0.1), grads)
  assert (after.lam != state.lam).all()
  assert metrics['hypergradient_skipped'] == 0


def test_what_is_not_tuned_rests_under_an_optimizer_with_a_decay():
  frozen = SPACE | {'rate': dataclasses.replace(SPACE['rate'], tuned=False)}
  grads = {'lam': jnp.zeros(2), 'rho': jnp.zeros(2)}
  decay = optax.adamw(0.1, weight_decay=0.5)
  state, after, _ = moved(decay, grads, problem(space=frozen))
  assert [bool(x) for x in after.lam != state.lam] == [False, True]
  assert [bool(x) for x in after.rho != state.rho] == [False, True]
  state, after, _ = moved(decay, grads, tune_scales=False)
  np.testing.assert_array_equal(after.rho, state.rho)


def read_as(reading):
  """A problem whose loss reads the hyperparameters in another way."""
  return problem(loss=lambda y, batch, hypers: loss(y, batch, hypers) + (
      0 if hypers is None else reading(hypers)), weight_decay='')


@pytest.mark.parametrize('reading', [
    lambda hypers: hypers.get('decay'),
    lambda hypers: sum(value for _, value in hypers.items()),
    lambda hypers: (lambda rate, decay: rate + decay)(**hypers),
    lambda hypers: jax.vmap(lambda h: h['decay'])(hypers)])
def test_hyperparameters_may_be_read_as_of_any_mapping(reading):
  problem_lib.check_all_read(read_as(reading), examples(0, B))
  with pytest.raises(space.SpaceError, match='nothing reads decay'):
    problem_lib.check_all_read(
        read_as(lambda hypers: hypers['rate']), examples(0, B))


def test_a_jacobian_after_a_plain_call_leaves_the_statistics_of_that_call():
  """Those of a call inside a derivative are of its trace."""

  def twice(apply, batch, hypers, key):
    call = lambda x: apply(x, train=hypers is not None)
    y = call(batch['x'])
    if hypers is None:
      return {'y': y}
    return {'y': y, 'jacobian': regularize.projected_jacobian(
        call, batch['x'], key)}

  what = problem(forward=twice, loss=lambda y, batch, hypers: (
      loss(y['y'], batch, hypers)
      + (regularize.squared_norm(y['jacobian']) if hypers else 0.0)))
  chosen = settings('delta_stn')
  state = jax.jit(tuner.make_init(
      what, chosen, optimizers(), examples(0, B), 4, 0))({})
  after, _ = jax.jit(tuner.make_round(what, chosen, optimizers()))(
      state, batch(0), {})
  np.testing.assert_array_equal(
      after.variables['carry']['seen'], np.full(B, T))
