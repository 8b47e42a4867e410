"""The Inception of the FID in plain torch: pytorch-fid's names, random weights.

Written apart from the JAX network, as functions of a flat dict of tensors.
"""

import torch
import torch.nn.functional as F

# (name, in, out, kernel) of every convolution.
STEM = [('Conv2d_1a_3x3', 3, 32, 3), ('Conv2d_2a_3x3', 32, 32, 3),
        ('Conv2d_2b_3x3', 32, 64, 3), ('Conv2d_3b_1x1', 64, 80, 1),
        ('Conv2d_4a_3x3', 80, 192, 3)]


def _convolutions():
  yield from STEM
  for block, cin, pool in (('5b', 192, 32), ('5c', 256, 64), ('5d', 288, 64)):
    name = f'Mixed_{block}.branch'
    yield from [
        (name + '1x1', cin, 64, 1), (name + '5x5_1', cin, 48, 1),
        (name + '5x5_2', 48, 64, 5), (name + '3x3dbl_1', cin, 64, 1),
        (name + '3x3dbl_2', 64, 96, 3), (name + '3x3dbl_3', 96, 96, 3),
        (name + '_pool', cin, pool, 1)]
  yield from [
      ('Mixed_6a.branch3x3', 288, 384, 3),
      ('Mixed_6a.branch3x3dbl_1', 288, 64, 1),
      ('Mixed_6a.branch3x3dbl_2', 64, 96, 3),
      ('Mixed_6a.branch3x3dbl_3', 96, 96, 3)]
  for block, w in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
    name = f'Mixed_{block}.branch'
    yield from [
        (name + '1x1', 768, 192, 1), (name + '7x7_1', 768, w, 1),
        (name + '7x7_2', w, w, (1, 7)), (name + '7x7_3', w, 192, (7, 1)),
        (name + '7x7dbl_1', 768, w, 1), (name + '7x7dbl_2', w, w, (7, 1)),
        (name + '7x7dbl_3', w, w, (1, 7)), (name + '7x7dbl_4', w, w, (7, 1)),
        (name + '7x7dbl_5', w, 192, (1, 7)), (name + '_pool', 768, 192, 1)]
  yield from [
      ('Mixed_7a.branch3x3_1', 768, 192, 1),
      ('Mixed_7a.branch3x3_2', 192, 320, 3),
      ('Mixed_7a.branch7x7x3_1', 768, 192, 1),
      ('Mixed_7a.branch7x7x3_2', 192, 192, (1, 7)),
      ('Mixed_7a.branch7x7x3_3', 192, 192, (7, 1)),
      ('Mixed_7a.branch7x7x3_4', 192, 192, 3)]
  for block, cin in (('7b', 1280), ('7c', 2048)):
    name = f'Mixed_{block}.branch'
    yield from [
        (name + '1x1', cin, 320, 1), (name + '3x3_1', cin, 384, 1),
        (name + '3x3_2a', 384, 384, (1, 3)),
        (name + '3x3_2b', 384, 384, (3, 1)),
        (name + '3x3dbl_1', cin, 448, 1), (name + '3x3dbl_2', 448, 384, 3),
        (name + '3x3dbl_3a', 384, 384, (1, 3)),
        (name + '3x3dbl_3b', 384, 384, (3, 1)), (name + '_pool', cin, 192, 1)]


def random_weights(gamma=True):
  """A state dict whose activations stay near 1; gamma=False: all ones."""
  draw = torch.Generator().manual_seed(0)
  uniform = lambda low, high, *shape: low + (high - low) * torch.rand(
      shape, generator=draw)
  weights = {}
  for name, cin, cout, kernel in _convolutions():
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    bound = (6 / (cin * size[0] * size[1])) ** .5
    weights[f'{name}.conv.weight'] = uniform(-bound, bound, cout, cin, *size)
    weights[f'{name}.bn.weight'] = (
        uniform(.8, 1.2, cout) if gamma else torch.ones(cout))
    weights[f'{name}.bn.bias'] = uniform(-.2, .2, cout)
    weights[f'{name}.bn.running_mean'] = uniform(-.2, .2, cout)
    weights[f'{name}.bn.running_var'] = uniform(.8, 1.2, cout)
  return weights


def features(weights, x):
  """x [B, 3, 299, 299] in [-1, 1] -> [B, 2048]."""

  def conv(name, x, stride=1, padding=0):
    x = F.conv2d(x, weights[f'{name}.conv.weight'], stride=stride,
                 padding=padding)
    return F.relu(F.batch_norm(
        x, *(weights[f'{name}.bn.{kind}'] for kind in (
            'running_mean', 'running_var', 'weight', 'bias')), eps=1e-3))

  average = lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
  x = conv('Conv2d_1a_3x3', x, 2)
  x = conv('Conv2d_2a_3x3', x)
  x = F.max_pool2d(conv('Conv2d_2b_3x3', x, padding=1), 3, 2)
  x = conv('Conv2d_4a_3x3', conv('Conv2d_3b_1x1', x))
  x = F.max_pool2d(x, 3, 2)
  for block in ('5b', '5c', '5d'):
    b = f'Mixed_{block}.branch'
    five = conv(b + '5x5_2', conv(b + '5x5_1', x), padding=2)
    three = conv(b + '3x3dbl_2', conv(b + '3x3dbl_1', x), padding=1)
    x = torch.cat([conv(b + '1x1', x), five,
                   conv(b + '3x3dbl_3', three, padding=1),
                   conv(b + '_pool', average(x))], 1)
  b = 'Mixed_6a.branch'
  three = conv(b + '3x3dbl_2', conv(b + '3x3dbl_1', x), padding=1)
  x = torch.cat([conv(b + '3x3', x, 2), conv(b + '3x3dbl_3', three, 2),
                 F.max_pool2d(x, 3, 2)], 1)
  for block in ('6b', '6c', '6d', '6e'):
    b = f'Mixed_{block}.branch'
    seven = conv(b + '7x7_2', conv(b + '7x7_1', x), padding=(0, 3))
    long = conv(b + '7x7dbl_1', x)
    for i, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
      long = conv(f'{b}7x7dbl_{i}', long, padding=padding)
    x = torch.cat([conv(b + '1x1', x),
                   conv(b + '7x7_3', seven, padding=(3, 0)), long,
                   conv(b + '_pool', average(x))], 1)
  b = 'Mixed_7a.branch'
  seven = conv(b + '7x7x3_2', conv(b + '7x7x3_1', x), padding=(0, 3))
  seven = conv(b + '7x7x3_3', seven, padding=(3, 0))
  x = torch.cat([conv(b + '3x3_2', conv(b + '3x3_1', x), 2),
                 conv(b + '7x7x3_4', seven, 2), F.max_pool2d(x, 3, 2)], 1)
  for block in ('7b', '7c'):
    b = f'Mixed_{block}.branch'
    three = conv(b + '3x3_1', x)
    long = conv(b + '3x3dbl_2', conv(b + '3x3dbl_1', x), padding=1)
    pooled = average(x) if block == '7b' else F.max_pool2d(x, 3, 1, 1)
    x = torch.cat([
        conv(b + '1x1', x), conv(b + '3x3_2a', three, padding=(0, 1)),
        conv(b + '3x3_2b', three, padding=(1, 0)),
        conv(b + '3x3dbl_3a', long, padding=(0, 1)),
        conv(b + '3x3dbl_3b', long, padding=(1, 0)),
        conv(b + '_pool', pooled)], 1)
  return x.mean((2, 3))


# pytorch-fid's names beside those of StyleGAN's TorchScript archive.
_BLOCKS = dict(zip(
    ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b', '7c'),
    ['mixed'] + [f'mixed_{i}' for i in range(1, 11)], strict=True))
_NAMES = {
    '5': {'1x1': 'conv', '5x5_1': 'tower.conv', '5x5_2': 'tower.conv_1',
          '3x3dbl_1': 'tower_1.conv', '3x3dbl_2': 'tower_1.conv_1',
          '3x3dbl_3': 'tower_1.conv_2', '_pool': 'tower_2.conv'},
    '6a': {'3x3': 'conv', '3x3dbl_1': 'tower.conv',
           '3x3dbl_2': 'tower.conv_1', '3x3dbl_3': 'tower.conv_2'},
    '6': {'1x1': 'conv', '7x7_1': 'tower.conv', '7x7_2': 'tower.conv_1',
          '7x7_3': 'tower.conv_2', '7x7dbl_1': 'tower_1.conv',
          '7x7dbl_2': 'tower_1.conv_1', '7x7dbl_3': 'tower_1.conv_2',
          '7x7dbl_4': 'tower_1.conv_3', '7x7dbl_5': 'tower_1.conv_4',
          '_pool': 'tower_2.conv'},
    '7a': {'3x3_1': 'tower.conv', '3x3_2': 'tower.conv_1',
           '7x7x3_1': 'tower_1.conv', '7x7x3_2': 'tower_1.conv_1',
           '7x7x3_3': 'tower_1.conv_2', '7x7x3_4': 'tower_1.conv_3'},
    '7': {'1x1': 'conv', '3x3_1': 'tower_conv', '3x3_2a': 'tower_mixed_conv',
          '3x3_2b': 'tower_mixed_conv_1', '3x3dbl_1': 'tower_1_conv',
          '3x3dbl_2': 'tower_1_conv_1', '3x3dbl_3a': 'tower_1_mixed_conv',
          '3x3dbl_3b': 'tower_1_mixed_conv_1', '_pool': 'tower_2_conv'}}
_KINDS = {'conv.weight': 'weight', 'bn.bias': 'beta',
          'bn.running_mean': 'mean', 'bn.running_var': 'var'}


class Holder(torch.nn.Module):
  """Parameters and modules by name; nothing that it computes is of use."""

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return x


def stylegan(weights):
  """A module with the names of StyleGAN's archive."""
  stem = [name for name, *_ in STEM]
  root = Holder()
  for name, value in weights.items():
    layer, kind = name.split('.conv.')[0].split('.bn.')[0], name.split('.')[-2:]
    kind = '.'.join(kind)
    if kind not in _KINDS:
      continue
    if layer in stem:
      i = stem.index(layer)
      path = f'conv_{i}' if i else 'conv'
    else:
      block, branch = layer.removeprefix('Mixed_').split('.branch')
      names = _NAMES.get(block, _NAMES[block[0]])
      path = f'{_BLOCKS[block]}.{names[branch]}'
    node = root
    for part in ['layers', *path.split('.')]:
      if not hasattr(node, part):
        node.add_module(part, Holder())
      node = getattr(node, part)
    node.register_parameter(_KINDS[kind], torch.nn.Parameter(value))
  root.layers.add_module('pool0', torch.nn.MaxPool2d(3, 2))
  return root


def resize_like_tensorflow(x):
  """[B, 3, H, W] in 0..255 -> [-1, 1): pixel i of the new lies at i H / 299."""
  height, width = x.shape[2:]
  at = [torch.arange(299) * n / 299 for n in (height, width)]
  # grid_sample's own coordinates, corners at the centres of pixels.
  rows, columns = 2 * at[0] / (height - 1) - 1, 2 * at[1] / (width - 1) - 1
  grid = torch.stack(torch.meshgrid(rows, columns, indexing='ij')[::-1], -1)
  sampled = F.grid_sample(
      x, grid.expand(len(x), -1, -1, -1), mode='bilinear',
      padding_mode='border', align_corners=True)
  return (sampled - 128) / 128


def resize_like_pytorch_fid(x):
  return 2 * F.interpolate(
      x / 255, (299, 299), mode='bilinear', align_corners=False) - 1
