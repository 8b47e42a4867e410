"""LPIPS beside plain torch on random weights, and its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msd_jax import distances
from msd_jax import losses
from msd_jax import published
from msd_jax import torch_files

torch = pytest.importorskip('torch')
F = torch.nn.functional

LAYERS = [  # torchvision's VGG-16 up to its last ReLU: channels, or a pool
    64, 64, 'pool', 128, 128, 'pool', 256, 256, 256, 'pool', 512, 512, 512,
    'pool', 512, 512, 512]


def make_vgg():
  layers, channels = [], 3
  for layer in LAYERS:
    if layer == 'pool':
      layers.append(torch.nn.MaxPool2d(2))
    else:
      layers += [torch.nn.Conv2d(channels, layer, 3, padding=1),
                 torch.nn.ReLU()]
      channels = layer
  return torch.nn.Sequential(*layers)


def torch_lpips(vgg, linear, x, y, size):
  """As in the paper: unit channels, weighted square difference, mean."""
  mean = torch.tensor([.485, .456, .406])[None, :, None, None]
  deviation = torch.tensor([.229, .224, .225])[None, :, None, None]

  def features(images):
    z = F.interpolate(
        images.expand(-1, 3, -1, -1), (size, size), mode='bilinear',
        align_corners=False)
    z, found = ((z + 1) / 2 - mean) / deviation, []
    for i, layer in enumerate(vgg):
      z = layer(z)
      if i in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, ...
        found.append(z)
    return found

  total = 0
  for weight, a, b in zip(linear, features(x), features(y), strict=True):
    unit = lambda z: z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10)
    square = (unit(a) - unit(b)).square()
    total = total + (square * weight).sum(1).mean((1, 2))
  return total


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A VGG and linear layers in the two published files' formats."""
  torch.manual_seed(0)
  path = tmp_path_factory.mktemp('lpips')
  vgg = make_vgg()
  linear = [torch.rand(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]
  state = {f'features.{name}': value for name, value in
           vgg.state_dict().items()} | {'classifier.0.bias': torch.zeros(3)}
  torch.save(state, path / 'vgg16.pth')
  torch.save({f'lin{i}.model.1.weight': w for i, w in enumerate(linear)},
             path / 'vgg.pth')
  return vgg, linear, str(path / 'vgg16.pth'), str(path / 'vgg.pth')


@pytest.mark.parametrize('channels', [1, 3])
def test_lpips_and_its_gradient_are_torchs(weights, channels):
  vgg, linear, *paths = weights
  draw = np.random.default_rng(channels).uniform
  x, y = draw(-1, 1, (2, 2, 20, 20, channels)).astype(np.float32)
  tensor = lambda a: torch.from_numpy(a).permute(0, 3, 1, 2)
  tx = tensor(x).requires_grad_()
  expected = torch_lpips(vgg, linear, tx, tensor(y), size=32)
  expected.sum().backward()
  distance = distances.lpips(distances.read_lpips(*paths), size=32)
  found, pull_back = jax.vjp(lambda x: distance(x, y), x)
  np.testing.assert_allclose(found, expected.detach(), rtol=1e-4)
  gradient = tx.grad.permute(0, 2, 3, 1).numpy()
  np.testing.assert_allclose(
      pull_back(jnp.ones(2))[0], gradient, atol=1e-4 * np.abs(gradient).max())


def test_files_that_are_no_lpips_are_refused(weights):
  _, _, vgg, linear = weights
  with pytest.raises(torch_files.FileError, match='needs lpips_vgg_path'):
    distances.read_lpips('', linear)
  with pytest.raises(published.MismatchError, match='features.0.weight is abs'):
    distances.read_lpips(linear, linear)


def test_the_distance_of_features_is_their_mean_square():
  apply = lambda variables, images: (
      None, images.mean((1, 2)) * variables['params'])
  x, y = jnp.ones((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 3))
  np.testing.assert_allclose(
      distances.of_features(apply, jnp.array([[1., 2., 3.]]))(x, y),
      [14 / 3, 14 / 3], rtol=1e-6)


def test_no_gradient_flows_into_the_target_of_a_regression():
  x, y = jnp.ones((2, 3)), jnp.zeros((2, 3))
  dx, dy = jax.grad(losses.regression_loss, argnums=(0, 1))(x, y)
  np.testing.assert_allclose(dx, np.full((2, 3), 2 / 6), rtol=1e-6)
  np.testing.assert_array_equal(dy, np.zeros((2, 3)))
