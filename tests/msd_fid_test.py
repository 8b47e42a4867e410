"""The FID: its network, its formula, its protocols, its reference files."""

import dataclasses
import json
import pickle
import sys
import warnings

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import orbax.checkpoint as ocp
import pytest
from scipy import linalg
from scipy.spatial import distance

from msd_jax import evaluate
from msd_jax import fid
from msd_jax import inception
from msd_jax import measure
from msd_jax import mlp
from msd_jax import networks
from msd_jax import routing
from msd_jax import torch_files
from msd_jax.formats import edm_zip


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A TorchScript archive, a pickle, pytorch-fid's state dict: random."""
  torch = pytest.importorskip('torch')
  from tests import persistent_pickle
  from tests import torch_inception
  folder = tmp_path_factory.mktemp('inception')
  module = torch_inception.stylegan(
      torch_inception.random_weights(gamma=False))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Deprecated, but the format of the file.
    torch.jit.script(module).save(folder / 'script.pt')
  with pytest.MonkeyPatch.context() as monkeypatch:
    persistent_pickle.write(folder / 'style.pkl', module, monkeypatch)
  weights = torch_inception.random_weights()
  torch.save(weights | {
      'fc.weight': torch.zeros(1008, 2048), 'fc.bias': torch.zeros(1008),
      'Conv2d_1a_3x3.bn.num_batches_tracked': torch.tensor(0)},
      folder / 'fid.pth')
  return folder


_features = jax.jit(lambda params, x: inception.Inception().apply(
    {'params': params}, x))


@pytest.mark.parametrize('name', ['script.pt', 'fid.pth'])
def test_features_are_those_of_torch(name, published, monkeypatch):
  import torch

  from tests import torch_inception
  weights = torch_inception.random_weights(gamma=name == 'fid.pth')
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
  x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
  resize = (torch_inception.resize_like_pytorch_fid if name == 'fid.pth'
            else torch_inception.resize_like_tensorflow)
  with torch.no_grad():
    resized = resize(x)
    expected = torch_inception.features(weights, resized).numpy()
  monkeypatch.setitem(sys.modules, 'torch', None)
  params, convention = inception.load(str(published / name))
  ours = jax.jit(inception.resize, static_argnums=1)(images, convention)
  np.testing.assert_allclose(ours, resized.permute(0, 2, 3, 1), atol=1e-5)
  if name == 'script.pt':  # The pickle holds the same network.
    again, _ = inception.load(str(published / 'style.pkl'))
    jax.tree.map(np.testing.assert_array_equal, again, params)
  got = _features(params, ours)
  assert got.shape == (2, 2048) and expected.std() > .1
  np.testing.assert_allclose(got, expected, atol=1e-3)


def test_another_network_is_refused_by_its_first_layers(published, tmp_path):
  import torch
  weights = torch.load(published / 'fid.pth')
  del weights['Mixed_6c.branch7x7_2.bn.bias']
  weights['Mixed_7c.branch_pool.conv.weight'] = torch.zeros(192, 1024, 1, 1)
  torch.save(weights, tmp_path / 'a.pth')
  with pytest.raises(inception.InceptionError, match=(
      r'mixed_10.tower_2_conv.weight is \(192, 1024, 1, 1\), not \(192, 2048, '
      r'1, 1\); no mixed_5.tower_conv_1.beta')):
    inception.load(str(tmp_path / 'a.pth'))
  (tmp_path / 'b.pth').write_bytes(pickle.dumps(print))
  with pytest.raises(torch_files.UnsafeFileError, match='builtins.print'):
    inception.load(str(tmp_path / 'b.pth'))


# The figures.


def normal(num, size, seed, scale=1.):
  generator = np.random.default_rng(seed)
  mix = np.random.default_rng(9).standard_normal((size, size)) / size ** .5
  return scale * generator.standard_normal((num, size)) @ mix + seed


def test_frechet_of_gaussians_is_the_closed_form():
  # Diagonal covariances: the sum of (s1 - s2)^2, beside the means'.
  a, b = np.array([1., 4, 9]), np.array([4., 4, 1])
  value = fid.frechet(np.zeros(3), np.diag(a), np.ones(3), np.diag(b))
  np.testing.assert_allclose(value, 3 + (1 + 0 + 4), rtol=1e-10)


def test_frechet_is_edms_formula_with_the_root_of_the_product():
  a, b = normal(500, 16, 0), normal(400, 16, 1, 1.3)
  (m1, s1), (m2, s2) = fid.statistics(a), fid.statistics(b)
  root = linalg.sqrtm(s1 @ s2)
  expected = np.real(
      np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * root))
  np.testing.assert_allclose(fid.frechet(m1, s1, m2, s2), expected, rtol=1e-9)
  assert fid.frechet(m1, s1, m1, s1) < 1e-9
  assert evaluate.frechet_distance(a, b) == fid.frechet(m1, s1, m2, s2)
  # Fewer images than features: the product has no root that scipy finds well.
  few, more = fid.statistics(a[:5]), fid.statistics(a[:9])
  assert 0 < fid.frechet(*few, *more) < np.inf


def test_statistics_come_batch_by_batch_and_far_from_zero():
  features = normal(300, 8, 0) + 1e4
  mean, covariance = fid.statistics_of_batches(
      [features[:1], features[1:101], features[101:]])
  np.testing.assert_allclose(mean, features.mean(0), rtol=1e-12)
  np.testing.assert_allclose(
      covariance, np.cov(features.astype(np.float64).T), rtol=1e-9, atol=1e-9)
  with pytest.raises(ValueError, match='2 or more rows, not 1'):
    fid.statistics(features[:1])


def test_precision_and_recall_are_those_of_every_pair():
  real, made = normal(60, 3, 0), normal(50, 3, 0, .5) + 1

  def share(points, among):
    gaps = np.sort(distance.squareform(distance.pdist(among)), axis=1)[:, 3]
    return np.mean([
        any(np.linalg.norm(p - q) <= gap
            for q, gap in zip(among, gaps, strict=True)) for p in points])

  precision, recall = fid.precision_recall(real, made)
  np.testing.assert_allclose(precision, share(made, real))
  np.testing.assert_allclose(recall, share(real, made))
  assert 0 < recall < precision < 1
  assert fid.precision_recall(real, real) == (1, 1)
  assert fid.precision_recall(real, made + 100) == (0, 0)


def test_protocols_differ_as_their_sources_do():
  edm, dmd2 = fid.PROTOCOLS['edm'], fid.PROTOCOLS['dmd2']
  images = np.array([-1.5, -1., 0., .999, 1., 1.5])
  np.testing.assert_array_equal(
      fid.to_uint8(edm, images), [0, 0, 128, 255, 255, 255])
  np.testing.assert_array_equal(
      fid.to_uint8(dmd2, images), [0, 0, 127, 254, 255, 255])
  np.testing.assert_array_equal(
      np.bincount(fid.labels_of(dmd2, 50, 10, seed=0)), 10 * [5])
  drawn = fid.labels_of(edm, 1000, 10, seed=0)
  assert 60 < np.bincount(drawn).min() < 100
  assert (drawn != fid.labels_of(edm, 1000, 10, seed=1)).any()
  # DMD2's covariance: 1 / (N - 1) more in every entry.
  features = normal(50, 4, 0)
  _, plain = fid.statistics(features, edm.start)
  _, more = fid.statistics(features, dmd2.start)
  np.testing.assert_allclose(more - plain, 1 / 49, rtol=1e-9)
  np.testing.assert_allclose(plain, np.cov(features.T), rtol=1e-9)


# From samples to a figure, on a small network.


def mesh(num):
  return jax.make_mesh((num,), ('data',), devices=jax.devices()[:num],
                       axis_types=(AxisType.Auto,))


def apply(params, images):
  """A convolution, its mean and its largest value: [n, 16]."""
  x = jax.lax.conv_general_dilated(
      images.astype(jnp.float32) / 255, params, (1, 1), 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return jnp.concatenate([jnp.tanh(x).mean((1, 2)), x.max((1, 2))], axis=1)


KERNEL = np.random.default_rng(0).standard_normal((3, 3, 3, 8), np.float32)


@jax.vmap
def generate(labels, key):
  noise = jax.random.normal(key, (len(labels), 8, 8, 3))
  return .3 * noise + (labels / 5 - .4)[:, None, None, None]


def measured(num_devices, **kwargs):
  extract = fid.make_extractor(apply, KERNEL, mesh(num_devices), per_device=8)
  real = np.random.default_rng(1).integers(0, 256, (150, 8, 8, 3), np.uint8)
  real = extract(real)
  return fid.measure(
      fid.Sampler(generate, 5, num_devices, batch_size=24), extract,
      fid.statistics(real), num=100, real_features=real, **kwargs)


def test_eight_devices_give_the_figure_of_one():
  kwargs = dict(protocol='edm', seeds=range(3))
  one, eight = measured(1, **kwargs), measured(8, **kwargs)
  assert one == eight  # To the last bit.
  values = one['fid_by_seed']
  assert len(set(values)) == 3 and min(values) > 0
  np.testing.assert_allclose(one['fid_mean'], np.mean(values))
  np.testing.assert_allclose(one['fid_spread'], np.std(values, ddof=1))
  assert one['fid_least'] == min(values)
  assert one['protocol'] == 'edm' and one['num'] == 100
  assert 0 <= one['recall'] <= 1


def test_the_figure_is_that_of_all_images_at_once():
  got = measured(2, protocol='dmd2', seeds=[4])
  protocol = fid.PROTOCOLS['dmd2']
  labels = np.arange(100) % 5
  key = jax.random.key(4)
  labels = np.r_[labels, np.full(20, labels[-1])].reshape(5, 24)
  images = generate(labels, jnp.stack(
      [jax.random.fold_in(key, i) for i in range(5)]))
  images = np.asarray(images).reshape(-1, 8, 8, 3)[:100]
  features = np.asarray(apply(KERNEL, fid.to_uint8(protocol, images)))
  real = np.asarray(apply(KERNEL, np.random.default_rng(1).integers(
      0, 256, (150, 8, 8, 3), np.uint8)))
  expected = fid.frechet(
      *fid.statistics(features, 1.), *fid.statistics(real))
  np.testing.assert_allclose(got['fid_mean'], expected, rtol=1e-3)
  assert got['fid_spread'] == 0
  for name, value in dataclasses.asdict(protocol).items():
    assert got[name] == value


def test_no_more_images_are_made_than_are_measured():
  calls = []

  def counting(labels, key):
    calls.append(labels.shape)
    return generate(labels, key)

  features = fid.features_of_samples(
      fid.Sampler(counting, 5), lambda images: images.reshape(len(images), -1),
      fid.PROTOCOLS['edm'], num=7, seed=0)
  assert calls == [(1, 7)] and len(features) == 7


def test_what_can_not_be_measured_is_refused():
  with pytest.raises(ValueError, match="protocol='fid' is not known"):
    measured(1, protocol='fid', seeds=[0])
  with pytest.raises(ValueError, match='not finite'):
    fid.to_uint8(fid.PROTOCOLS['edm'], np.array([np.nan]))
  with pytest.raises(ValueError, match='3 neighbours among 3 points'):
    fid.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


# Reference files.


def test_a_reference_is_read_back(tmp_path):
  path = str(tmp_path / 'ours.npz')
  extract = fid.make_extractor(apply, KERNEL, mesh(1), per_device=8)
  images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), np.uint8)
  # Whole batches: on some CPUs a row's features hang on its place, to 1e-6.
  fid.write_reference(path, [images[:24], images[24:]], extract)
  mean, covariance = fid.read_reference(path, 8)
  expected = fid.statistics_of_batches(
      [extract(images[:24]), extract(images[24:])])
  np.testing.assert_array_equal(mean, expected[0])
  np.testing.assert_array_equal(covariance, expected[1])
  with pytest.raises(fid.StatisticsError, match='of 8x8, but .* are 16x16'):
    fid.read_reference(path, 16)
  with pytest.raises(FileNotFoundError):  # Before anything is measured.
    fid.write_reference(str(tmp_path / 'none' / 'ours.npz'), iter([]), None)


def test_bad_references_are_one_clear_sentence(tmp_path):
  path = tmp_path / 'imagenet-64x64.npz'
  np.savez(path, mu=np.zeros(4), sigma=np.eye(4))
  fid.read_reference(str(path), 64, num_features=4)
  with pytest.raises(fid.StatisticsError, match='4 features, but .* has 2048'):
    fid.read_reference(str(path), 64, num_features=2048)
  with pytest.raises(fid.StatisticsError, match='of 64x64, but .* are 32x32'):
    fid.read_reference(str(path), 32)
  cases = [
      (lambda: np.savez(path, mu=np.zeros(4), sigma=np.eye(3)), 'needs mu'),
      (lambda: np.savez(path, mean=np.zeros(4)), 'needs mu'),
      (lambda: np.savez(path, mu=np.array([{}]), sigma=np.eye(1)), 'pickled'),
      (lambda: path.write_bytes(pickle.dumps({'mu': 1})), 'pickled'),
      (lambda: path.write_bytes(b'PK\x03\x04'), 'cannot be read'),
      (lambda: np.save(path.open('wb'), np.eye(3)), 'not an .npz'),
      (path.unlink, 'cannot be read')]
  for write, message in cases:
    write()
    with pytest.raises(fid.StatisticsError, match=message):
      fid.read_reference(str(path), 64)


# The command.


def test_the_command_measures_students(
    published, tmp_path, monkeypatch, capsys):
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: one)  # Compiles sooner.
  module = mlp.ResidualMLP((8, 8, 3), 4, width=16, depth=1)
  params = jax.tree.map(
      lambda leaf: np.full((1, *leaf.shape), .01, np.float32),
      jax.eval_shape(lambda key: networks.init_params(module, key, (8, 8, 3)),
                     jax.random.key(0)))
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / 'students', routing.bundle(
        params, module, np.zeros(4, np.int32), sigma_max=80., sigma_data=.5))
  images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
  edm_zip.write(str(tmp_path / 'a.zip'), zip(images, [0, 1, 2, 3] * 2,
                                             strict=False))

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['measure', *map(str, args)])
    measure.main()
    return capsys.readouterr().out

  common = ('--inception', published / 'script.pt', '--per_device', 1)
  assert '7 images' in run(
      'reference', f'edm_zip:{tmp_path}/a.zip', tmp_path / 'r.npz', *common)
  given = ('fid', tmp_path / 'students', '--reference', tmp_path / 'r.npz')
  figures = json.loads(run(
      *given, '--num', 6, '--num_seeds', 1, '--real',
      f'edm_zip:{tmp_path}/a.zip', *common))
  assert figures['fid_mean'] > 0 and figures['seeds'] == [0]
  assert figures['precision'] == 0  # Grey noise is no member of noise.
  assert figures['ema_decay'] is None  # Nobody said.
  edm_zip.write(str(tmp_path / 'large.zip'), zip(
      images.repeat(2, 1).repeat(2, 2), [0, 1, 2, 3] * 2, strict=False))
  for field in ('--num', '--num_seeds'):
    with pytest.raises(SystemExit, match=f'{field}=0: give'):
      run(*given, field, 0, *common)
  with pytest.raises(SystemExit, match=r'has images \(16, 16, 3\), the stud'):
    run(*given, '--real', f'edm_zip:{tmp_path}/large.zip', *common)
  (tmp_path / 'b.npz').write_bytes(pickle.dumps({}))
  with pytest.raises(SystemExit, match='pickled statistics are refused'):
    run('fid', tmp_path / 'students', '--reference', tmp_path / 'b.npz',
        *common)
