"""DDPM++ and NCSN++ in plain torch, written apart from the JAX networks.

From their description (Song et al. 2021; Karras et al. 2022, table 7 and
appendix C), with the names of EDM's parameters. `decoder_type` is 'standard'.
"""

import math

import torch
from torch import nn
import torch.nn.functional as F


def fir(taps):
  one = torch.tensor(taps, dtype=torch.float32)
  both = torch.outer(one, one)
  return (both / both.sum())[None, None]


def down(x, f):
  c = x.shape[1]
  return F.conv2d(x, f.expand(c, 1, -1, -1), stride=2,
                  padding=(f.shape[-1] - 1) // 2, groups=c)


def up(x, f):
  c = x.shape[1]
  return F.conv_transpose2d(
      x, 4 * f.expand(c, 1, -1, -1), stride=2,
      padding=(f.shape[-1] - 1) // 2, groups=c)


class Conv(nn.Conv2d):
  """A convolution that carries the filter of its level, as EDM's does."""

  def __init__(self, cin, cout, kernel, taps=None):
    super().__init__(cin, cout, kernel, padding=kernel // 2)
    self.register_buffer('resample_filter', fir(taps) if taps else None)


def norm(channels):
  return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):

  def __init__(self, cin, cout, emb, taps, resample='', attention=False):
    super().__init__()
    self.in_channels, self.resample = cin, resample
    taps = taps if resample else None
    self.norm0, self.norm1 = norm(cin), norm(cout)
    self.conv0 = Conv(cin, cout, 3, taps)
    self.affine = nn.Linear(emb, cout)
    self.conv1 = Conv(cout, cout, 3)
    self.skip = Conv(cin, cout, 1, taps) if cin != cout or resample else None
    self.norm2 = self.qkv = self.proj = None
    if attention:
      self.norm2 = norm(cout)
      self.qkv, self.proj = Conv(cout, 3 * cout, 1), Conv(cout, cout, 1)

  def moved(self, x):
    f = self.conv0.resample_filter
    return {'': lambda: x, 'down': lambda: down(x, f),
            'up': lambda: up(x, f)}[self.resample]()

  def forward(self, x, emb):
    h = self.conv0(self.moved(F.silu(self.norm0(x))))
    h = h + self.affine(emb)[:, :, None, None]
    h = self.conv1(F.silu(self.norm1(h)))
    shortcut = self.moved(x)
    if self.skip is not None:
      shortcut = self.skip(shortcut)
    x = (shortcut + h) / math.sqrt(2)
    if self.qkv is not None:
      b, c, height, width = x.shape
      q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, -1).unbind(2)
      weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), dim=2)
      mixed = (v @ weights.transpose(1, 2)).reshape(b, c, height, width)
      x = (self.proj(mixed) + x) / math.sqrt(2)
    return x


class Fourier(nn.Module):

  def __init__(self, channels):
    super().__init__()
    self.register_buffer('freqs', torch.randn(channels // 2) * 16)


class Side(Conv):
  """A 3x3 convolution and the filter, both over one padding."""

  def forward(self, x):
    f = self.resample_filter
    margin = (f.shape[-1] - 1) // 2
    x = F.conv2d(x, self.weight, padding=1 + margin)
    c = x.shape[1]
    x = F.conv2d(x, f.expand(c, 1, -1, -1), stride=2, groups=c)
    return x + self.bias[None, :, None, None]


class Song(nn.Module):

  def __init__(self, resolution, channels, num_classes, model_channels,
               channel_mult, num_blocks, attention_resolutions,
               channel_mult_emb=4, augment_dim=0, residual_encoder=False,
               resample_filter=(1, 1), fourier=False, channel_mult_noise=1):
    super().__init__()
    self.num_classes, taps = num_classes, resample_filter
    self.noise = model_channels * channel_mult_noise
    emb = model_channels * channel_mult_emb
    if fourier:
      self.map_noise = Fourier(self.noise)
    self.fourier = fourier
    if num_classes:
      self.map_label = nn.Linear(num_classes, self.noise)
    if augment_dim:
      self.map_augment = nn.Linear(augment_dim, self.noise, bias=False)
    self.map_layer0 = nn.Linear(self.noise, emb)
    self.map_layer1 = nn.Linear(emb, emb)
    block = lambda *args, **kw: Block(*args, emb, taps, **kw)
    sizes = [resolution >> i for i in range(len(channel_mult))]
    self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
    cout, side = model_channels, channels
    self.enc[f'{resolution}x{resolution}_conv'] = Conv(channels, cout, 3)
    skips = [cout]
    for size, mult in zip(sizes, channel_mult, strict=True):
      if size != resolution:
        self.enc[f'{size}x{size}_down'] = block(cout, cout, resample='down')
        skips.append(cout)
        if residual_encoder:
          self.enc[f'{size}x{size}_aux_residual'] = Side(side, cout, 3, taps)
          side = cout
      for i in range(num_blocks):
        self.enc[f'{size}x{size}_block{i}'] = block(
            cout, model_channels * mult,
            attention=size in attention_resolutions)
        cout = model_channels * mult
        skips.append(cout)
    for size, mult in zip(sizes[::-1], channel_mult[::-1], strict=True):
      if size == sizes[-1]:
        self.dec[f'{size}x{size}_in0'] = block(cout, cout, attention=True)
        self.dec[f'{size}x{size}_in1'] = block(cout, cout)
      else:
        self.dec[f'{size}x{size}_up'] = block(cout, cout, resample='up')
      for i in range(num_blocks + 1):
        self.dec[f'{size}x{size}_block{i}'] = block(
            cout + skips.pop(), model_channels * mult,
            attention=i == num_blocks and size in attention_resolutions)
        cout = model_channels * mult
    self.dec[f'{resolution}x{resolution}_aux_norm'] = norm(cout)
    self.dec[f'{resolution}x{resolution}_aux_conv'] = Conv(cout, channels, 3)

  def embed(self, c_noise, labels, augment_labels):
    half = self.noise // 2
    if self.fourier:
      freqs = 2 * math.pi * self.map_noise.freqs
    else:
      freqs = 10000. ** -(torch.arange(half) / (half - 1))
    angles = torch.outer(c_noise, freqs)
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    if self.num_classes:
      one_hot = F.one_hot(labels, self.num_classes).float()
      emb = emb + self.map_label(one_hot * math.sqrt(self.num_classes))
    if augment_labels is not None:
      emb = emb + self.map_augment(augment_labels)
    return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

  def forward(self, x, c_noise, labels, augment_labels=None):
    emb = self.embed(c_noise, labels, augment_labels)
    skips, aux = [], x
    for name, layer in self.enc.items():
      if 'aux_residual' in name:
        x = skips[-1] = aux = (x + layer(aux)) / math.sqrt(2)
      else:
        x = layer(x, emb) if isinstance(layer, Block) else layer(x)
        skips.append(x)
    for name, layer in self.dec.items():
      if 'aux_norm' in name:
        x = F.silu(layer(x))
      elif 'aux_conv' in name:
        x = layer(x)
      else:
        if x.shape[1] != layer.in_channels:
          x = torch.cat([x, skips.pop()], dim=1)
        x = layer(x, emb)
    return x
