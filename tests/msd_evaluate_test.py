"""Distances against closed forms, the classifier, and the figures drawn."""

import functools
import types

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
import scipy.linalg
from sklearn import datasets

from core_jax import data as core_data
from msd_jax import classifier
from msd_jax import evaluate
from msd_jax import figures
from msd_jax.formats import source as source_lib


def _exact(mean, covariance, n, seed):
  """A set [n, F] whose mean and unbiased covariance are exactly these."""
  x = np.random.default_rng(seed).normal(size=(n, len(mean)))
  x -= x.mean(axis=0)[None]
  white = np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
  return x @ white @ np.linalg.cholesky(covariance).T + np.array(mean)[None]


def _random_covariance(f, seed):
  a = np.random.default_rng(seed).normal(size=(f, f))
  return a @ a.T / f


def test_frechet_of_equal_sets_is_zero():
  x = np.random.default_rng(0).normal(size=(50, 8))
  assert evaluate.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
  assert evaluate.frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_of_shifted_set_is_squared_shift():
  x = np.random.default_rng(0).normal(size=(50, 3))
  # 1^2 + 2^2 + (-2)^2 = 9.
  shifted = x + np.array([1.0, 2.0, -2.0])[None]
  assert evaluate.frechet_distance(x, shifted) == pytest.approx(9, rel=1e-9)


def test_frechet_of_diagonal_covariances():
  # Commuting covariances: sum of (s1 - s2)^2 over deviations,
  # (1 - 2)^2 + (3 - 1)^2 + (0.5 - 2)^2 = 7.25, and the mean adds 0.5^2.
  a = _exact([0, 0, 0], np.diag([1.0, 9.0, 0.25]), 40, seed=0)
  b = _exact([0, 0.5, 0], np.diag([4.0, 1.0, 4.0]), 60, seed=1)
  assert evaluate.frechet_distance(a, b) == pytest.approx(7.5, rel=1e-9)


def test_frechet_agrees_with_general_matrix_square_root():
  s1, s2 = _random_covariance(6, 0), _random_covariance(6, 1)
  a, b = _exact([0] * 6, s1, 40, seed=2), _exact([1] * 6, s2, 30, seed=3)
  root = scipy.linalg.sqrtm(s1 @ s2).real
  expected = 6 + np.trace(s1 + s2 - 2 * root)
  assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_symmetric_and_invariant_under_rotation():
  a = _exact([0] * 5, _random_covariance(5, 0), 40, seed=2)
  b = _exact([1] * 5, _random_covariance(5, 1), 40, seed=3)
  q, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(5, 5)))
  distance = evaluate.frechet_distance(a, b)
  assert evaluate.frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)
  assert evaluate.frechet_distance(a @ q, b @ q) == pytest.approx(
      distance, rel=1e-9)


def test_frechet_of_singular_covariances_is_finite():
  # On a line: (|u| s1 - |u| s2)^2 = (sqrt(2) (1 - 3))^2 = 8, more features
  # than rows.
  line = np.array([[-1.0], [0.0], [1.0]]) * np.array([[1.0, 1.0, 0, 0, 0]])
  assert evaluate.frechet_distance(line, 3 * line) == pytest.approx(8, rel=1e-6)


def test_frechet_bias_falls_as_one_over_n():
  key = np.random.default_rng(0)
  real = key.normal(size=(20_000, 8))
  means = [
      np.mean([
          evaluate.frechet_distance(key.normal(size=(n, 8)), real)
          for _ in range(20)])
      for n in (100, 400)]
  assert means[0] / means[1] == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize('a, b, message', [
    (np.zeros((1, 3)), np.zeros((5, 3)), 'at least 2 rows.* 1 and 5'),
    (np.zeros((5, 3)), np.zeros((5, 4)), '3 features against 4'),
    (np.full((5, 3), np.nan), np.zeros((5, 3)), 'not finite'),
])
def test_frechet_refuses(a, b, message):
  with pytest.raises(ValueError, match=message):
    evaluate.frechet_distance(a, b)


def test_histogram_l1_of_equal_disjoint_and_half():
  x = np.random.default_rng(0).uniform(-1, 0, size=(1000, 2))
  assert evaluate.histogram_l1(x, x) == 0
  assert evaluate.histogram_l1(x, x + 1.1) == pytest.approx(2)
  # Half of the mass of one set is elsewhere: 0.5 missing, 0.5 too much.
  half = np.concatenate([x, x + 1.1])
  assert evaluate.histogram_l1(x, half) == pytest.approx(1)


def test_histogram_l1_counts_what_lies_outside():
  x = np.zeros((10, 2))
  outside = np.concatenate([x[:5], x[5:] + 9])
  assert evaluate.histogram_l1(x, outside) == pytest.approx(1)
  assert evaluate.histogram_l1(x, np.full((10, 2), np.nan)) == 2


def _gaussian_points(scale, labels, key):
  return scale * jax.random.normal(key, (len(labels), 2))


def test_points_floor_is_small_and_grows_with_error():
  samplers = {
      'teacher': functools.partial(_gaussian_points, 0.3),
      'exact': functools.partial(_gaussian_points, 0.3),
      'near': functools.partial(_gaussian_points, 0.33),
      'far': functools.partial(_gaussian_points, 0.5)}
  values = evaluate.evaluate_points(
      samplers, 3, jax.random.key(0), num_samples=20_000, bins=24,
      batch_size=7000)
  assert values.keys() == {'floor_l1', 'exact_l1', 'near_l1', 'far_l1'}
  assert values['exact_l1'] == pytest.approx(values['floor_l1'], rel=0.3)
  assert 0 < values['floor_l1'] < values['near_l1'] < values['far_l1']


def test_points_have_every_class_equally_often():
  seen = []

  def sampler(labels, key):
    seen.append(labels)
    return _gaussian_points(0.3, labels, key)

  evaluate.evaluate_points(
      {'teacher': sampler}, 4, jax.random.key(0), num_samples=1000,
      batch_size=300)
  assert {len(labels) for labels in seen} == {300}  # One shape, one program.
  reference = np.concatenate(seen[:4])[:1000]
  np.testing.assert_array_equal(np.bincount(reference), [250] * 4)


@pytest.fixture(scope='module')
def digits():
  """Real digits: 'train' 1,437 and 'test' 360, as uint8 [N, 8, 8, 1]."""
  images, labels = datasets.load_digits(return_X_y=True)
  images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  order = np.random.default_rng(0).permutation(len(images))

  def source(rows):
    return core_data.ArraySource(
        {'image': images[rows], 'label': labels[rows].astype(np.int32)})

  return types.SimpleNamespace(
      train=source(order[360:]), test=source(order[:360]))


@pytest.fixture(scope='module')
def trained(digits):
  """A classifier and what its params are after 80 steps."""
  arrays = digits.train.arrays
  images = jnp.asarray(arrays['image'], jnp.float32) / 127.5 - 1
  labels = jnp.asarray(arrays['label'])
  model = classifier.Classifier(num_classes=10, width=8)
  params = jax.jit(model.init)(jax.random.key(0), images[:1])['params']
  tx = optax.adam(optax.cosine_decay_schedule(1e-2, 80))

  @jax.jit
  def step(params, opt_state, key):
    rows = jax.random.randint(key, (64,), 0, len(images))
    value, grads = jax.value_and_grad(
        lambda p: classifier.loss(
            model.apply, p, images[rows], labels[rows]))(params)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value

  opt_state, values = tx.init(params), []
  for key in jax.random.split(jax.random.key(1), 80):
    params, opt_state, value = step(params, opt_state, key)
    values.append(float(value))
  assert values[0] == pytest.approx(np.log(10), rel=0.4)  # Nats.
  assert values[-1] < 0.2
  return model, params


@pytest.fixture(scope='module')
def classify(trained):
  model, params = trained
  return functools.partial(evaluate.predict, model.apply, params)


@pytest.mark.parametrize('shape', [(8, 8, 1), (32, 32, 1), (28, 28, 1),
                                   (32, 32, 3), (2, 2, 1)])
def test_classifier_takes_any_size(shape):
  model = classifier.Classifier(num_classes=7, width=4, num_features=16)
  (logits, features), _ = jax.eval_shape(
      model.init_with_output, jax.random.key(0), jnp.zeros((5, *shape)))
  assert logits.shape == (5, 7)
  assert features.shape == (5, 16)


def test_loss_of_known_logits():
  def apply(variables, images):
    return variables['params'] * images[:, 0, 0, :], None

  # Logits (0, log 3): classes have probabilities 1/4 and 3/4.
  images = jnp.array([[[[0.0, 1.0]]]] * 2)
  value = classifier.loss(apply, jnp.log(3.0), images, jnp.array([0, 1]))
  expected = (np.log(4) + np.log(4 / 3)) / 2
  assert value == pytest.approx(expected, rel=1e-6)


def test_predict_in_batches_equals_whole_and_traces_once(digits, trained):
  model, params = trained
  images = digits.test.arrays['image'][:50] / 127.5 - 1
  num_traces = 0

  def apply(variables, images):
    nonlocal num_traces
    num_traces += 1
    return model.apply(variables, images)

  logits, features = evaluate.predict(apply, params, images, batch_size=16)
  assert num_traces == 1
  assert features.dtype == np.float64
  whole = jax.jit(model.apply)(
      {'params': params}, jnp.asarray(images, jnp.float32))
  np.testing.assert_allclose(logits, whole[0], atol=1e-5)
  np.testing.assert_allclose(features, whole[1], atol=1e-5)
  # Layer normalisation: every image has features of one scale.
  np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-5)
  np.testing.assert_allclose(features.var(axis=1), 1, rtol=1e-2)


def _noisy_images(digits, noise, labels, key):
  """Training images of these labels with noise added."""
  arrays = digits.train.arrays
  rows = np.array([
      np.flatnonzero(arrays['label'] == label)[i % 100]
      for i, label in enumerate(labels)])
  images = arrays['image'][rows] / 127.5 - 1
  return images + noise * jax.random.normal(key, images.shape)


def test_worse_images_are_further(digits, classify):
  samplers = {
      'teacher': functools.partial(_noisy_images, digits, 0.0),
      'students': functools.partial(_noisy_images, digits, 0.3),
      'single': functools.partial(_noisy_images, digits, 0.8)}
  router = np.arange(10) // 5
  values, samples = evaluate.evaluate_images(
      samplers, digits, classify, jax.random.key(0), num_sets=2,
      partitions={'students': router}, batch_size=100)
  assert all(isinstance(value, float) for value in values.values())
  assert values['real_accuracy'] > 0.95
  assert values['teacher_accuracy'] > values['single_accuracy']
  assert (
      values['teacher_frechet'] < values['students_frechet']
      < values['single_frechet'])
  assert values['floor_frechet'] < values['students_frechet']
  assert values['teacher_frechet_spread'] < 1e-6  # No noise: equal sets.
  assert values['students_frechet_spread'] > 1e-6
  for k in range(2):
    prefix = f'students_partition{k}'
    assert (
        values[f'{prefix}_floor_frechet'] < values[f'{prefix}_frechet'])
    assert (
        values[f'{prefix}_teacher_frechet'] < values[f'{prefix}_frechet'])
    assert 0 < values[f'{prefix}_frechet_pooled'] < values[f'{prefix}_frechet']
  test = digits.test.arrays
  assert samples.keys() == {'real', *samplers}
  np.testing.assert_array_equal(samples['real'], test['image'])
  assert samples['single'].dtype == np.uint8
  assert samples['single'].shape == test['image'].shape


def test_real_images_as_samples_are_at_the_floor(digits, classify):
  test = digits.test.arrays

  def sampler(labels, key):
    np.testing.assert_array_equal(labels, test['label'])
    return test['image'] / 127.5 - 1

  values, samples = evaluate.evaluate_images(
      {'students': sampler}, digits, classify, jax.random.key(0), num_sets=1,
      partitions={'students': np.arange(10) % 2})
  # Rounding to bytes gives the very same images back.
  np.testing.assert_array_equal(samples['students'], test['image'])
  assert values['students_frechet'] == values['floor_frechet']
  assert values['students_accuracy'] == values['real_accuracy']
  assert values['students_partition1_frechet'] == pytest.approx(
      values['students_partition1_floor_frechet'])


def test_data_read_in_parts_gives_the_figures_of_data_in_memory(
    digits, classify, monkeypatch):
  sampler = functools.partial(_noisy_images, digits, 0.3)
  read = lambda dataset: evaluate.evaluate_images(
      {'students': sampler}, dataset, classify, jax.random.key(0), num_sets=1,
      partitions={'students': np.arange(10) % 2})[0]
  expected = read(digits)
  monkeypatch.setattr(evaluate, '_CHUNK', 600)
  rows = lambda source: source_lib.Rows(source, np.arange(len(source)))
  found = read(types.SimpleNamespace(
      train=rows(digits.train), test=rows(digits.test)))
  assert found == pytest.approx(expected, rel=1e-5)


def test_of_too_many_examples_evenly_spaced_ones_are_measured(monkeypatch):
  monkeypatch.setattr(evaluate, '_MOST_EXAMPLES', 4)
  np.testing.assert_array_equal(evaluate.rows(range(10)), [0, 2, 5, 7])
  np.testing.assert_array_equal(evaluate.rows(range(3)), [0, 1, 2])


def test_samples_that_are_not_finite_are_refused(digits, classify):
  sampler = lambda labels, key: np.full((len(labels), 8, 8, 1), np.nan)
  with pytest.raises(ValueError, match="sampler 'students'"):
    evaluate.evaluate_images(
        {'students': sampler}, digits, classify, jax.random.key(0), num_sets=1,
        partitions={})


def test_image_grid_shows_pixels_of_each_class(tmp_path):
  # A class whose images are one level: black, white; inverted on paper.
  images = np.array([0, 255] * 6, np.uint8)[:, None, None, None]
  images = np.broadcast_to(images, (12, 8, 8, 1))
  path = tmp_path / 'new' / 'grid.png'
  figures.image_grid(
      str(path), {'real': images, 'students': images / 127.5 - 1},
      labels=np.arange(12) % 2, class_names=['a', 'b'], title='two classes')
  picture = matplotlib.image.imread(path)[..., 0]
  # Ink of class 'b': 2 blocks of 4 images of 64 x 64 pixels.
  ink = (picture < 0.02).sum()
  assert ink == pytest.approx(2 * 4 * 64 * 64, rel=0.02)


def test_image_grid_draws_colour_and_rare_classes(tmp_path):
  images = np.zeros((3, 32, 32, 3), np.uint8)
  images[..., 0] = 255
  path = tmp_path / 'grid.png'
  figures.image_grid(
      str(path), {'real': images}, labels=np.array([0, 0, 2]),
      class_names=['a', 'b', 'c'])
  picture = matplotlib.image.imread(path)[..., :3]
  red = (picture == np.array([1.0, 0, 0])).all(axis=-1).sum()
  assert red == 3 * 64 * 64


def test_points_and_curve_are_drawn(tmp_path):
  xy = np.random.default_rng(0).normal(size=(100, 2))
  labels = np.arange(100) % 12
  figures.points(
      str(tmp_path / 'points.png'),
      {f'K = {k}': (xy, labels) for k in range(1, 6)}, 1.5, title='points')
  rows = [
      {'line': size, 'x': k, 'distance': 1 / k + 0.1 * seed}
      for size in ('small', 'large') for k in (1, 2, 4) for seed in range(3)]
  figures.curves(
      str(tmp_path / 'curve.png'), rows, xlabel='students',
      ylabel='distance', floor=0.1, teacher=0.2)
  for name in ('points.png', 'curve.png'):
    picture = matplotlib.image.imread(tmp_path / name)
    assert picture.shape[0] > 300 and picture.std() > 0.01
