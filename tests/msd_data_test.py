"""Tests of msd_jax/data.py and msd_jax/toy2d.py."""

import functools
import gzip
import io
import os
import struct
import sys

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import PIL.Image
import pytest

from msd_jax import data
from msd_jax import toy2d

# The time would be in the bytes, and in the names of the cases.
_gzip = functools.partial(gzip.compress, mtime=0)


def _config(dataset, data_path=''):
  return ml_collections.ConfigDict(
      {'dataset': dataset, 'data_path': str(data_path), 'seed': 0})


def _idx_bytes(values):
  header = struct.pack(f'>BBBB{values.ndim}I', 0, 0, 8, values.ndim,
                       *values.shape)
  return header + values.astype(np.uint8).tobytes()


def _write_idx(path, values):
  path.write_bytes(_gzip(_idx_bytes(values)))


@pytest.fixture
def fashion(tmp_path):
  """A folder like Fashion-MNIST's, of 20 + 10 images; labels 0..9 in turn."""
  for prefix, num in (('train', 20), ('t10k', 10)):
    images = np.arange(num)[:, None, None] + np.ones((num, 28, 28), int)
    _write_idx(tmp_path / f'{prefix}-images-idx3-ubyte.gz', images)
    _write_idx(tmp_path / f'{prefix}-labels-idx1-ubyte.gz', np.arange(num) % 10)
  return tmp_path


@pytest.fixture
def folder(tmp_path):
  """A folder of image files: 2 classes, 3 + 2 RGB images of 4x4 each."""
  for split, num in (('train', 3), ('test', 2)):
    for label, name in enumerate(['cat', 'dog']):
      place = tmp_path / split / name
      place.mkdir(parents=True)
      for i in range(num):
        pixels = np.full((4, 4, 3), 100 * label + i, np.uint8)
        PIL.Image.fromarray(pixels).save(place / f'{i}.png')
  return tmp_path


# Data sets.


def test_digits_are_split_by_class_into_1442_and_355():
  dataset = data.load(_config('digits'))
  assert (len(dataset.train), len(dataset.test)) == (1442, 355)
  assert dataset.shape == (8, 8, 1)
  assert dataset.num_classes == 10
  assert dataset.class_names == tuple('0123456789')
  for source in (dataset.train, dataset.test):
    images, labels = source.arrays['image'], source.arrays['label']
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert images.shape[1:] == dataset.shape
    assert (images.min(), images.max()) == (0, 255)
  # 174 to 183 images of each digit; every fifth of them is 34 to 36.
  counts = np.bincount(dataset.test.arrays['label'])
  assert counts.min() >= 34 and counts.max() <= 36


def test_toy2d_is_the_same_for_every_seed_and_stays_in_its_square():
  config = _config('toy2d')
  dataset = data.load(config)
  points = dataset.train.arrays['image']
  assert points.shape == (200_000, 2) and points.dtype == np.float32
  assert dataset.test.arrays['image'].shape == (50_000, 2)
  assert dataset.shape == (2,) and dataset.num_classes == 8
  assert np.abs(points).max() < toy2d.LIMIT
  np.testing.assert_allclose(points.std(), toy2d.DEVIATION, atol=0.005)
  config.seed = 1
  again = data.load(config).train.arrays
  jax.tree.map(np.testing.assert_array_equal, again, dataset.train.arrays)


def test_fashion_is_read_and_padded_with_black(fashion):
  dataset = data.load(_config('fashion', fashion))
  assert (len(dataset.train), len(dataset.test)) == (20, 10)
  assert dataset.shape == (32, 32, 1)
  assert dataset.class_names[9] == 'Ankle boot'
  images = dataset.train.arrays['image']
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(images[7, 2:30, 2:30], 8)
  assert images[7].sum() == 8 * 28 * 28
  np.testing.assert_array_equal(
      dataset.train.arrays['label'], np.arange(20) % 10)


def test_fashion_is_read_from_plain_files_too(fashion):
  expected = data.load(_config('fashion', fashion)).test.arrays
  for path in fashion.glob('*.gz'):
    path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
  got = data.load(_config('fashion', fashion)).test.arrays
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.skipif(not os.path.isdir(data.FASHION_PATH),
                    reason='needs the Debian package dataset-fashion-mnist')
def test_the_real_fashion_mnist_has_its_known_counts():
  dataset = data.load(_config('fashion'))
  train, test = dataset.train.arrays, dataset.test.arrays
  np.testing.assert_array_equal(np.bincount(train['label']), 10 * [6000])
  np.testing.assert_array_equal(np.bincount(test['label']), 10 * [1000])
  # Published statistics of the training pixels in [0, 1]: 0.2860, 0.3530.
  pixels = train['image'][:, 2:30, 2:30] / np.float32(255)
  np.testing.assert_allclose(pixels.mean(), 0.2860, atol=1e-4)
  np.testing.assert_allclose(pixels.std(), 0.3530, atol=1e-4)


def test_a_folder_of_images_is_read_by_class(folder):
  dataset = data.load(_config('folder', folder))
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.shape == (4, 4, 3)
  train = dataset.train.arrays
  np.testing.assert_array_equal(train['label'], [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(
      train['image'][:, 0, 0, 0], [0, 1, 2, 100, 101, 102])
  assert len(dataset.test) == 4


def test_grey_images_have_one_channel(folder):
  for path in folder.glob('*/*/*.png'):
    PIL.Image.new('L', (4, 4), 9).save(path)
  assert data.load(_config('folder', folder)).shape == (4, 4, 1)


def test_fashion_is_read_from_a_prepared_tfds_folder(tmp_path):
  tfds = pytest.importorskip('tensorflow_datasets')

  class Tiny(tfds.core.GeneratorBasedBuilder):
    """Twelve and six images in Fashion-MNIST's format."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict({
              'image': tfds.features.Image(shape=(28, 28, 1)),
              'label': tfds.features.ClassLabel(num_classes=10)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(12),
              'test': self._generate_examples(6)}

    def _generate_examples(self, num):
      for i in range(num):
        buffer = io.BytesIO()  # Bytes: TFDS needs TensorFlow to encode pixels.
        PIL.Image.new('L', (28, 28), 10 * i).save(buffer, 'PNG')
        yield i, {'image': buffer.getvalue(), 'label': i % 10}

  builder = Tiny(data_dir=str(tmp_path), file_format='array_record')
  builder.download_and_prepare()
  dataset = data.load(_config('fashion', f'tfds:{builder.data_dir}'))
  assert (len(dataset.train), len(dataset.test)) == (12, 6)
  images, labels = (dataset.train.arrays[k] for k in ('image', 'label'))
  assert images.dtype == np.uint8 and labels.dtype == np.int32
  # TFDS shuffles by key; the pixels still say which label belongs to them.
  np.testing.assert_array_equal(images[:, 2, 2, 0] // 10 % 10, labels)
  assert 'tensorflow' not in sys.modules


# Bad data.


def _raises(message, dataset, path=''):
  with pytest.raises(data.DataError, match=message):
    data.load(_config(dataset, path))


def test_an_unknown_data_set_is_answered_with_the_known_names():
  _raises('cifar.* there are: array_record, cifar10, digits', 'cifar')


def test_a_path_for_data_without_files_is_refused():
  _raises('reads no files', 'digits', '/some/where')


def test_a_missing_folder_says_what_to_install(tmp_path):
  _raises('apt-get install dataset-fashion-mnist.*data_path', 'fashion',
          tmp_path / 'nowhere')
  _raises("no folder '.*nowhere/train'", 'folder', tmp_path / 'nowhere')
  _raises('data_path=FOLDER', 'folder')


def test_a_missing_idx_file_is_named(fashion):
  (fashion / 't10k-labels-idx1-ubyte.gz').unlink()
  _raises('no file t10k-labels-idx1-ubyte.gz', 'fashion', fashion)


def test_an_unprepared_tfds_data_set_says_how_to_prepare_it(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  _raises('tfds build .*array_record', 'fashion', f'tfds:{tmp_path}')
  _raises(r'no_such_name.*\[prepare\]', 'fashion', 'tfds:no_such_name')


_IMAGES = _idx_bytes(np.zeros((20, 28, 28)))


@pytest.mark.parametrize('content, message', [
    (_gzip(_IMAGES)[:-9], 'truncated or damaged gzip'),
    (_gzip(_IMAGES)[:-6] + b'wrong!', 'truncated or damaged gzip'),
    (b'\x1f\x8b not gzip at all', 'truncated or damaged gzip'),
    (_gzip(b'GIF89a' + _IMAGES), 'begins with 47494638, not 00000803'),
    (b'', 'begins with nothing'),
    (_gzip(_IMAGES[:10]), 'truncated within its header'),
    (_gzip(_IMAGES[:-1]), '15680 values, but 15679 follow'),
    (_gzip(_IMAGES + b'x'), '15680 values, but 15681 follow'),
    (_gzip(_idx_bytes(np.zeros(20))), 'not 00000803'),
    (_gzip(_idx_bytes(np.zeros((20, 8, 8)))), r'\(8, 8, 1\), not'),
    (_gzip(_idx_bytes(np.zeros((19, 28, 28)))),
     '19 images, but 20 labels'),
    (_gzip(_idx_bytes(np.zeros((0, 28, 28)))),
     '0 images, but 20 labels'),
])
def test_a_bad_image_file_is_one_clear_error(fashion, content, message):
  (fashion / 'train-images-idx3-ubyte.gz').write_bytes(content)
  _raises(message, 'fashion', fashion)


def test_the_first_label_out_of_range_is_named(fashion):
  labels = np.arange(20) % 10
  labels[[13, 15]] = 10, 200
  _write_idx(fashion / 'train-labels-idx1-ubyte.gz', labels)
  _raises(r'train.*label 10 at index 13 .* 0\.\.9', 'fashion', fashion)
  with pytest.raises(data.DataError, match='label -1 at index 2'):
    data.check_labels(np.array([0, 1, -1]), 10, 'labels')


def test_an_unreadable_image_is_named(folder):
  path = folder / 'train' / 'dog' / '1.png'
  whole = path.read_bytes()
  # Cut in the pixels, in the header; changed in the pixels; not an image.
  for content in (whole[:-20], whole[:20], whole[:45] + b'????' + whole[49:],
                  b'hello', b''):
    path.write_bytes(content)
    _raises(r'train/dog/1\.png: not a readable image', 'folder', folder)


def test_an_image_of_another_size_or_mode_is_named(folder):
  path = folder / 'test' / 'dog' / '1.png'
  PIL.Image.new('RGB', (5, 4)).save(path)
  _raises(r'test/dog/1\.png: .*\(4, 5, 3\).*\(4, 4, 3\)', 'folder', folder)
  PIL.Image.new('L', (4, 4)).save(path)
  _raises(r'test/dog/1\.png: .*\(4, 4, 1\).*\(4, 4, 3\)', 'folder', folder)
  PIL.Image.new('RGBA', (4, 4)).save(path)
  _raises(r'test/dog/1\.png: its mode is RGBA', 'folder', folder)


def test_train_and_test_must_have_the_same_classes(folder):
  (folder / 'test' / 'emu').mkdir()
  _raises('in one only: emu', 'folder', folder)
  (folder / 'train' / 'emu').mkdir()
  _raises('train/emu: no image files', 'folder', folder)


# The toy's exact score.


_SIGMAS = (0.01, 0.1, 0.5, 3.0)
_LABELS = (0, 3, 7, -1)


def _grid(num=401):
  """Returns points [num^2, 2] of the square and the area of a cell."""
  ticks = np.linspace(-toy2d.LIMIT, toy2d.LIMIT, num)
  points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
  return points, (ticks[1] - ticks[0]) ** 2


def _density(points, labels):
  """The mixture's density [N], written out in float64."""
  means, deviations = (a.astype(np.float64) for a in toy2d.mixture())
  if labels >= 0:
    means, deviations = means[labels], deviations[labels]
  modes = zip(means.reshape(-1, 2), deviations.reshape(-1), strict=True)
  return np.mean([
      np.exp(-((points - m) ** 2).sum(-1) / (2 * s ** 2)) / (2 * np.pi * s ** 2)
      for m, s in modes], axis=0)


def _inputs(num=6):
  """Returns noised points, sigmas and labels over all pairs of the above."""
  pairs = np.array([(s, y) for s in _SIGMAS for y in _LABELS])
  sigma = np.repeat(pairs[:, 0], num).astype(np.float32)
  labels = np.repeat(pairs[:, 1], num).astype(np.int32)
  points, _ = toy2d.sample(0, len(sigma))
  noise = np.random.default_rng(1).standard_normal(points.shape)
  x = points + sigma[:, None] * noise.astype(np.float32)
  return jnp.asarray(x), jnp.asarray(sigma), jnp.asarray(labels)


def test_mixture_is_in_the_square_with_the_deviations_of_the_spec():
  means, deviations = toy2d.mixture()
  chex.assert_shape(means, (8, 8, 2))
  chex.assert_shape(deviations, (8, 8))
  assert 0.05 <= deviations.min() and deviations.max() <= 0.1
  assert (np.abs(means) + 5 * deviations[..., None]).max() < toy2d.LIMIT
  np.testing.assert_allclose(means.mean(axis=(0, 1)), 0, atol=1e-6)


def test_neighbouring_labels_are_neighbours_in_the_plane():
  means, _ = toy2d.mixture()
  gaps = np.linalg.norm(
      means[:, None, :, None] - means[None, :, None], axis=-1)
  # From each mode to the nearest of another class, in the mean over modes.
  between = gaps.min(axis=3).mean(axis=2)
  for label in range(7):
    apart = [between[label, other] for other in range(label + 2, 8)]
    assert all(between[label, label + 1] < gap for gap in apart)


def test_samples_follow_the_density():
  points, labels = toy2d.sample(0, 200_000)
  assert points.dtype == np.float32 and labels.dtype == np.int32
  np.testing.assert_allclose(np.bincount(labels) / 25_000, 1, atol=0.03)
  means, deviations = toy2d.mixture()
  for label in range(8):
    chosen = points[labels == label]
    # Deviations near 0.5: the error of a mean of 25,000 is 0.003.
    np.testing.assert_allclose(
        chosen.mean(0), means[label].mean(0), atol=0.012)
    second = (means[label] ** 2).sum() / 8 + 2 * (deviations[label] ** 2).mean()
    np.testing.assert_allclose(
        (chosen ** 2).sum(1).mean(), second, rtol=0.03)


def test_denoised_equals_the_integral_over_the_data():
  x, sigma, labels = _inputs(num=2)
  keep = np.asarray(sigma) >= 0.05  # A narrower kernel slips through the grid.
  x, sigma, labels = x[keep], sigma[keep], labels[keep]
  points, _ = _grid()
  densities = {y: _density(points, y) for y in _LABELS}
  expected = []
  for x_i, sigma_i, label in zip(
      *(np.asarray(a, np.float64) for a in (x, sigma, labels)), strict=True):
    squares = ((points - x_i) ** 2).sum(-1) / (2 * sigma_i ** 2)
    weights = densities[int(label)] * np.exp(squares.min() - squares)
    expected.append(weights @ points / weights.sum())
  got = jax.jit(toy2d.denoised)(x, sigma, labels)
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_log_density_integrates_to_one():
  points, cell = _grid()
  sigma = jnp.full(len(points), 0.02)
  for label in (2, -1):
    labels = jnp.full(len(points), label)
    logs = jax.jit(toy2d.log_density)(jnp.asarray(points), sigma, labels)
    np.testing.assert_allclose(np.exp(logs).sum() * cell, 1, atol=1e-4)


def test_score_is_the_gradient_of_the_log_density():
  x, sigma, labels = _inputs()
  total = lambda x: toy2d.log_density(x, sigma, labels).sum()
  gradient = jax.jit(jax.grad(total))(x)
  got = jax.jit(toy2d.score)(x, sigma, labels)
  np.testing.assert_allclose(got, gradient, rtol=1e-4, atol=1e-3)


def test_denoised_is_x_plus_sigma_squared_times_score():
  x, sigma, labels = _inputs()
  expected = x + jnp.square(sigma)[:, None] * toy2d.score(x, sigma, labels)
  np.testing.assert_allclose(
      toy2d.denoised(x, sigma, labels), expected, atol=1e-5)


def test_without_noise_x_stays_and_under_all_noise_the_mean_is_left():
  x, _, labels = _inputs()
  denoised = jax.jit(toy2d.denoised)
  clean = denoised(x, jnp.zeros(len(x)), labels)
  np.testing.assert_allclose(clean, x, atol=1e-5)
  # At sigma 1e4 the posterior is the prior: the mean of the class's modes.
  lost = denoised(x, jnp.full(len(x), 1e4), labels)
  means = toy2d.mixture()[0]
  expected = [means[y].mean(0) if y >= 0 else np.zeros(2) for y in labels]
  np.testing.assert_allclose(lost, np.stack(expected), atol=1e-4)
