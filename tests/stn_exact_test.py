"""STN and Delta-STN where the answer is known: closed forms, and runs to them.

The regression of `data.regression` has 30 rows and 20 features; F is half the
mean square error on 500 others, f that on the 30 and a weight decay, or input
dropout. All references are in float64 numpy.
"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from stn_jax import data
from stn_jax import implicit
from stn_jax import losses
from stn_jax import problem as problem_lib
from stn_jax import regularize
from stn_jax import response as response_lib
from stn_jax import space
from stn_jax import state as state_lib
from stn_jax import tuner
from stn_jax import updates


def regression():
  """(X_train, t_train, X_valid, t_valid), float64 of the float32 rows."""
  parts = data.regression().parts
  return tuple(np.asarray(parts[part][name], np.float64)
               for part in ('train', 'valid') for name in ('x', 'y'))


X, T, X_VALID, T_VALID = regression()
H, G = X.T @ X / 30, X.T @ T / 30


def validation(w):
  return 0.5 * np.mean((X_VALID @ w - T_VALID)**2)


def validation_slope(w):
  return X_VALID.T @ (X_VALID @ w - T_VALID) / 500


def ridge(lam, metric=None):
  """(w*, dw*/dlam) of f with penalty e^lam w' M w / 2; M = 1 by default."""
  metric = np.eye(20) if metric is None else metric
  a = H + np.exp(lam) * metric
  w = np.linalg.solve(a, G)
  return w, -np.linalg.solve(a, np.exp(lam) * metric @ w)


def best(metric=None):
  found = optimize.minimize_scalar(
      lambda lam: validation(ridge(lam, metric)[0]), bracket=(-4, -2, 2),
      tol=1e-12)
  return found.x, found.fun


def one_output(hyperparameter=None, loss=None, **fields):
  """A problem of a linear model with one output and one hyperparameter."""
  return problem_lib.Problem(
      nn.Dense(1, use_bias=False), {'x': hyperparameter or space.log(1.0)},
      lambda apply, batch, hypers, key: apply(batch['x']),
      loss or (lambda y, batch, hypers: 0.5 * jnp.square(y[:, 0] - batch['y'])),
      **fields)


def weights(w):
  return {'kernel': jnp.asarray(w)[:, None]}


def answering(w):
  """The response whose weights move by w where h moves by 1."""
  return {'': weights(w) | {'bottleneck': jnp.ones((1, 1))}}


def state_at(lam, w, slope, rho=-1.0):
  return state_lib.State(
      step=jnp.int32(0), key=jax.random.key(0), params=weights(w),
      response=answering(slope), lam=jnp.asarray([lam], float),
      rho=jnp.asarray([rho], float), opt_params=(), opt_response=(),
      opt_hyper=(), variables={}, valid_carry={}, history=jnp.zeros((1, 1)))


def hypergradient(problem, method, lam, w, slope, batch):
  _, grads = updates.hypergradient(
      problem,
      state_lib.Settings(method, entropy_weight=0.0, tune_scales=False),
      state_at(lam, w, slope), batch, jax.random.key(0))
  return grads['lam'][0]


@pytest.fixture
def float64():
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.enable_x64(True))
    yield


TRAIN, VALID = {'x': X, 'y': T}, {'x': X_VALID, 'y': T_VALID}


def svd():
  return np.linalg.svd(X, full_matrices=False)


def gate(lam, d):
  """sigmoid(lam v + c), v = -1, c = 2 log d (STN, theorem of section 3.1)."""
  return 1 / (1 + np.exp(lam - 2 * np.log(d)))


@pytest.mark.parametrize('lam', [-8.0, -2.0, 0.0, 1.5, 6.0])
def test_sigmoid_gates_on_hidden_units_are_the_best_response(lam):
  """y = s' Q x with a penalty e^lam ||dy/dx||^2, sums of squares."""
  u, d, vt = svd()
  q, s = gate(lam, d)[:, None] * vt, (u.T @ T) / d
  exact = np.linalg.solve(X.T @ X + np.exp(lam) * np.eye(20), X.T @ T)
  np.testing.assert_allclose(q.T @ s, exact, rtol=0, atol=1e-12)


def test_a_structured_response_is_the_gate_linearised(float64):
  """Q + (U eps) * Q_0 with U = dgate/dlam: the exact response of a deep net."""

  class Two(nn.Module):

    @nn.compact
    def __call__(self, x):
      x = nn.Dense(20, use_bias=False, name='q')(x)
      return nn.Dense(1, use_bias=False, name='s')(x)

  u, d, vt = svd()
  lam, g = -1.0, gate(-1.0, d)
  params = {'q': {'kernel': (g[:, None] * vt).T},
            's': {'kernel': ((u.T @ T) / d)[:, None]}}
  response = {'q': {'kernel': jnp.asarray(vt.T),
                    'bottleneck': jnp.asarray(-g * (1 - g))[None]}}

  def outputs(h):
    with nn.intercept_methods(response_lib.interceptor(
        response, response_lib.Perturbation(h))):
      return Two().apply({'params': params}, X)[:, 0]

  zero = jnp.zeros((30, 1))
  y, dy = jax.jvp(outputs, (zero,), (zero + 1,))
  a = X.T @ X + np.exp(lam) * np.eye(20)
  w = np.linalg.solve(a, X.T @ T)
  np.testing.assert_allclose(y, X @ w, atol=1e-11)
  np.testing.assert_allclose(
      dy, -X @ np.linalg.solve(a, np.exp(lam) * w), atol=1e-11)


def test_the_optimum_of_weight_decay_is_where_it_is_known():
  lam, value = best()
  np.testing.assert_allclose([lam, value], [-2.367521, 6.646928], atol=2e-6)
  for lam, value in ((-4, 8.299534), (2, 10.599487)):
    np.testing.assert_allclose(validation(ridge(lam)[0]), value, atol=2e-6)


@pytest.mark.parametrize('method', ['stn', 'delta_stn'])
@pytest.mark.parametrize('lam', [-4.0, -2.0, 1.0])
def test_with_the_exact_response_the_hypergradient_is_exact(
    float64, method, lam):
  """Against central differences of F(w*(lam))."""
  w, slope = ridge(lam)
  base = w - lam * slope if method == 'stn' else w
  found = hypergradient(one_output(), method, lam, base, slope, VALID)
  step = 1e-5
  expected = (validation(ridge(lam + step)[0])
              - validation(ridge(lam - step)[0])) / (2 * step)
  np.testing.assert_allclose(found, expected, atol=1e-8)


def solved(loss, *size):
  """The minimum of a quadratic of `size` numbers, by one step of Newton."""
  x = jnp.zeros(size)
  return x - jnp.linalg.solve(jax.hessian(loss)(x), jax.grad(loss)(x))


def fitted(problem, method, lam, sigma, batch=None):
  """(w at lam, its slope) that minimise the expectation over eps.

  The expectation of a polynomial times e^eps is exact by 24 nodes of Gauss
  and Hermite.
  """
  batch = batch or TRAIN
  nodes, mass = np.polynomial.hermite_e.hermegauss(24)
  num, key = len(batch['x']), jax.random.key(0)
  mass = mass / mass.sum()
  lam = jnp.asarray([lam], float)

  def expected(loss):
    at = jax.vmap(lambda node: loss(jnp.full((num, 1), sigma * node)))
    return jnp.sum(mass * at(nodes))

  def stn(ws):
    w, slope = jnp.split(ws, 2)
    return expected(lambda eps: losses.perturbed_loss(
        problem, weights(w), answering(slope), {}, batch, lam, eps,
        losses.answered('stn', lam, eps), key)[0])

  if method == 'stn':
    w, slope = jnp.split(solved(stn, 40), 2)
    return w + lam * slope, slope
  no_eps = jnp.zeros((num, 1))
  w = solved(lambda w: losses.perturbed_loss(
      problem, weights(w), answering(w), {}, batch, lam, no_eps, no_eps,
      key)[0], 20)
  return w, solved(lambda slope: expected(lambda eps: losses.linearised_loss(
      problem, weights(w), answering(slope), {}, batch, lam, eps, key)), 20)


def weight_decay():
  return one_output(weight_decay='x')


@pytest.mark.parametrize(('method', 'sigma', 'root'), [
    ('stn', 0.1, -2.36611), ('stn', 0.5, -2.33979), ('stn', 1.0, -2.33840),
    ('delta_stn', 0.1, -2.36704), ('delta_stn', 0.5, -2.35564),
    ('delta_stn', 1.0, -2.32463)])
def test_what_a_fit_under_perturbations_converges_to(
    float64, method, sigma, root):
  """Weights and slope of the normal equations with the moments of e^eps.

  A wide perturbation bends the slope, as weight decay is not quadratic in
  its logarithm: the stationary lam is off by a known little.
  """
  m0 = np.exp(sigma**2 / 2)
  m1, m2 = sigma**2 * m0, (sigma**2 + sigma**4) * m0
  decay, eye = np.exp(root), np.eye(20)
  if method == 'stn':
    both = np.linalg.solve(
        np.block([[H + decay * m0 * eye, decay * m1 * eye],
                  [decay * m1 * eye, sigma**2 * H + decay * m2 * eye]]),
        np.concatenate([G, np.zeros(20)]))
    w, slope = np.split(both, 2)
  else:
    w = ridge(root)[0]
    slope = -np.linalg.solve(
        sigma**2 * H + decay * m2 * eye, decay * m1 * w)
  found = jax.jit(lambda: fitted(weight_decay(), method, root, sigma))()
  np.testing.assert_allclose(found[0], w, atol=1e-10)
  np.testing.assert_allclose(found[1], slope, atol=1e-10)
  # Stationary: its gradient, over F's curvature, is the digits left out.
  assert abs(validation_slope(w) @ slope) < 2e-5


@pytest.mark.parametrize('method', ['stn', 'delta_stn'])
def test_a_jointly_quadratic_loss_is_answered_exactly_at_any_sigma(
    float64, method):
  """Targets t + lam a: w* is affine in lam, with slope H^-1 X'a / N."""
  a = np.random.default_rng(1).standard_normal(30)
  problem = one_output(space.real(0.0), lambda y, batch, hypers: (
      0.5 * jnp.square(y[:, 0] - batch['y'] - hypers['x'] * batch['a'])))
  for sigma in (0.1, 2.0):
    w, slope = jax.jit(lambda sigma=sigma: fitted(
        problem, method, 0.7, sigma, TRAIN | {'a': a}))()
    np.testing.assert_allclose(
        w, np.linalg.solve(H, X.T @ (T + 0.7 * a) / 30), atol=1e-10)
    np.testing.assert_allclose(
        slope, np.linalg.solve(H, X.T @ a / 30), atol=1e-10)


@pytest.mark.parametrize(('solve', 'num_steps'), [
    (implicit.conjugate_gradient, 20),
    (functools.partial(implicit.neumann, step_size=0.3), 1000)])
def test_the_implicit_function_has_the_exact_hypergradient(
    float64, solve, num_steps):
  """At the optimum of f; by few terms of Neumann's series it falls short."""
  lam = -1.0
  w, slope = ridge(lam)
  (f, _), (_, outer) = (implicit.smooth_losses(
      weight_decay(), {}, batch, jax.random.key(0)) for batch in (TRAIN, VALID))
  found = lambda num_steps: jax.jit(lambda w: implicit.hypergradient(
      f, outer, w, jnp.asarray([lam]), functools.partial(
          solve, num_steps=num_steps)))(weights(w))[0]
  exact = validation_slope(w) @ slope
  np.testing.assert_allclose(found(num_steps), exact, rtol=1e-4)
  assert abs(found(2) / exact - 1) > 0.01


def test_for_a_logistic_regression_it_nears_the_implicit_function(float64):
  """Delta-STN's hypergradient against -F_w (f_ww)^-1 f_wlam, as sigma falls."""
  log_loss = lambda y, batch, hypers: (
      jnp.logaddexp(0, y[:, 0]) - batch['y'] * y[:, 0])
  problem = one_output(loss=log_loss, weight_decay='x')
  train, valid = ({'x': x, 'y': (t > 0).astype(float)} for x, t in (
      (X, T), (X_VALID, T_VALID)))
  lam, key = jnp.asarray([-3.0]), jax.random.key(0)
  newton = lambda loss, x: jax.lax.fori_loop(
      0, 12, lambda _, x: x - jnp.linalg.solve(
          jax.hessian(loss)(x), jax.grad(loss)(x)), x)
  def plain(w, lam):
    # By hand: no gradient passes through the problem's own values.
    y = train['x'] @ w
    return jnp.mean(jnp.logaddexp(0, y) - train['y'] * y) + (
        0.5 * jnp.exp(lam[0]) * w @ w)

  @jax.jit
  def errors():
    w = newton(lambda w: plain(w, lam), jnp.zeros(20))
    outer = jax.grad(lambda w: jnp.mean(
        log_loss((valid['x'] @ w)[:, None], valid, None)))(w)
    exact = -outer @ jnp.linalg.solve(
        jax.hessian(plain)(w, lam),
        jax.jacobian(jax.grad(plain), 1)(w, lam)[:, 0])

    def error(sigma):
      eps = jnp.asarray([-sigma, sigma]).repeat(30)[:, None]
      twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), train)
      slope = newton(lambda slope: losses.linearised_loss(
          problem, weights(w), answering(slope), {}, twice, lam, eps, key),
                     jnp.zeros(20))
      found = hypergradient(problem, 'delta_stn', lam[0], w, slope, valid)
      return found / exact - 1

    return jax.lax.map(error, jnp.asarray([0.05, 0.2, 1.0]))

  small, middle, large = np.abs(errors())
  assert small < 0.01 and small < middle < large < 1


def test_one_unit_answers_many_hyperparameters_by_rank_one():
  """The known limit: a decay for each weight needs more than one unit has."""
  lam, _ = best()
  w, _ = ridge(lam)
  a = H + np.exp(lam) * np.eye(20)
  exact = -np.linalg.solve(a, np.diag(np.exp(lam) * w))  # [20 weights, 20]
  own = {'kernel': np.ones((20, 1)), 'bottleneck': np.ones((20, 1))}
  rng = np.random.default_rng(0)
  own = {'': jax.tree.map(
      lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), own)}

  def outputs(h):
    with nn.intercept_methods(response_lib.interceptor(
        own, response_lib.Perturbation(jnp.repeat(h[None], 20, 0)))):
      return nn.Dense(1, use_bias=False).apply(
          {'params': {'kernel': jnp.zeros((20, 1))}}, jnp.eye(20))[:, 0]

  assert np.linalg.matrix_rank(jax.jacobian(outputs)(jnp.zeros(20))) == 1
  left, values, right = np.linalg.svd(exact)
  nearest = values[0] * np.outer(left[:, 0], right[0])
  error = np.linalg.norm(nearest - exact) / np.linalg.norm(exact)
  one, all_ = validation_slope(w) @ nearest, validation_slope(w) @ exact
  cosine = one @ all_ / np.linalg.norm(one) / np.linalg.norm(all_)
  np.testing.assert_allclose([error, cosine], [0.72, 0.21], atol=5e-3)


@pytest.mark.parametrize(('lam', 'sigma', 'stn', 'delta'), [
    (3.0, 0.1, 1.0e4, 100), (3.0, 0.5, 418, 4), (-2.944, 1.0, 112, 1)])
def test_centring_conditions_the_fit(float64, lam, sigma, stn, delta):
  """Condition of the Hessian of one weight and its slope, quadratic loss."""
  problem, key = one_output(space.real(0.0)), jax.random.key(0)
  batch = {'x': jnp.ones((2, 1)), 'y': jnp.zeros(2)}
  at, eps = jnp.asarray([lam]), jnp.asarray([[-sigma], [sigma]])
  joint = jax.hessian(lambda ws: losses.perturbed_loss(
      problem, weights(ws[:1]), answering(ws[1:]), {}, batch, at, eps,
      losses.answered('stn', at, eps), key)[0])(jnp.zeros(2))
  slope = jax.hessian(lambda ws: losses.linearised_loss(
      problem, weights(jnp.zeros(1)), answering(ws), {}, batch, at, eps,
      key))(jnp.zeros(1))
  np.testing.assert_allclose(np.linalg.cond(joint), stn, rtol=0.02)
  np.testing.assert_allclose(1 / slope, [[delta]], rtol=1e-6)


@pytest.mark.parametrize(('tau', 'k'), [(0.1, 1.0), (0.5, 2.0), (0.5, 0.25)])
def test_sigma_settles_where_entropy_and_curvature_balance(tau, k):
  """F(lam + eps) = k (lam + eps)^2 / 2 ends at lam = 0, sigma^2 = tau / k."""
  problem = one_output(
      space.real(1.0), lambda y, batch, hypers: 0.5 * k * jnp.square(y[:, 0]))
  settings = state_lib.Settings('stn', entropy_weight=tau)
  tx = state_lib.Optimizers(None, None, optax.sgd(0.5 / k))
  batch = {'x': jnp.ones((2048, 1)), 'y': jnp.zeros(2048)}
  state = state_at(1.0, np.zeros(1, np.float32), np.ones(1, np.float32), 0.0)
  state = state.replace(opt_hyper=tx.hyper.init(
      {'lam': state.lam, 'rho': state.rho}))

  def body(state, key):
    state, _ = updates.validation_update(
        problem, settings, tx, state, batch, key)
    return state, (state.lam[0], space.sigma(state.rho)[0])

  _, (lam, sigma) = jax.jit(lambda state: jax.lax.scan(
      body, state, jax.random.split(jax.random.key(1), 250)))(state)
  np.testing.assert_allclose(lam[-100:].mean(), 0, atol=0.01)
  np.testing.assert_allclose(sigma[-100:].mean(), np.sqrt(tau / k), rtol=0.02)


def test_input_dropout_is_a_ridge():
  """p / (1 - p) = e^lam of diag(X'X) where lam = logit p."""
  metric = np.diag(np.diag(H))
  lam, value = best(metric)
  np.testing.assert_allclose([lam, value], [-2.0080, 6.39376], atol=5e-5)
  for p, value in ((0.05, 6.93915), (0.5, 8.04456)):
    np.testing.assert_allclose(
        validation(ridge(np.log(p / (1 - p)), metric)[0]), value, atol=2e-5)


def stochastic(kind):
  """Problem, its known optimum, and where a run starts."""
  if kind == 'weight decay':
    start = space.log(np.exp(-1.0), sigma=0.5)
    return one_output(start, weight_decay='x'), best()[0]
  problem = problem_lib.Problem(
      nn.Dense(1, use_bias=False), {'x': space.bounded(0.27, 0, 1)},
      lambda apply, batch, hypers, key: apply(
          batch['x'] if hypers is None
          else regularize.dropout(key, batch['x'], hypers['x'])),
      one_output().loss)
  return problem, best(np.diag(np.diag(H)))[0]


@pytest.fixture
def fast_programs():
  """A run of thousands of rounds is worth its compiling."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.mark.parametrize('kind', ['weight decay', 'input dropout'])
@pytest.mark.parametrize('method', ['stn', 'delta_stn'])
def test_a_run_finds_the_optimum(fast_programs, kind, method):
  """Within 0.05 in log or logit, for each of 3 seeds; from 1 away."""
  problem, optimum = stochastic(kind)
  num_rounds = 4000 if kind == 'weight decay' else 2500
  single = lambda x: jnp.asarray(x, jnp.float32)
  train = jax.tree.map(lambda x: single(np.tile(
      x, (8,) + (1,) * (x.ndim - 1))), TRAIN)
  tx = state_lib.Optimizers(optax.sgd(0.1), optax.sgd(0.1), optax.adam(4e-3))
  settings = state_lib.Settings(
      method, 300, entropy_weight=0.0, tune_scales=False, diagnose=False)
  round_ = tuner.make_round(problem, settings, tx)
  batch = {'train': jax.tree.map(lambda x: jnp.stack([x, x], 1), train),
           'valid': jax.tree.map(single, VALID)}

  def run(state):
    return jax.lax.scan(
        lambda state, _: (round_(state, batch, {})[0], None), state,
        length=num_rounds)[0].history[:, 0]

  states = [tuner.make_init(problem, settings, tx, train, num_rounds, seed)({})
            for seed in range(3)]
  states = jax.tree.map(lambda *x: jnp.stack(x), *states)
  history = np.asarray(jax.jit(jax.vmap(run))(states))
  assert np.abs(history[:, 0] - optimum).min() > 0.9
  found = history[:, num_rounds // 2:].mean(axis=1)
  np.testing.assert_allclose(found, optimum, atol=0.05)
