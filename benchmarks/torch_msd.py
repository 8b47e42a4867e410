"""The peer of msd_jax: the same network and the same round, in plain PyTorch.

Written from the published description of EDM's ADM network and of DMD2's loop
to be what a careful user of PyTorch would write. Images are [B, C, H, W].
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

SIGMA_DATA = .5
SIGMA_MAX = 80.


def _norm(channels):
  return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-5)


class UNetBlock(nn.Module):
  """A residual block with optional resampling and attention."""

  def __init__(self, in_channels, out_channels, emb_channels, *, resample='',
               num_heads=0, dropout=0.):
    super().__init__()
    self.in_channels, self.out_channels = in_channels, out_channels
    self.resample, self.num_heads, self.dropout = resample, num_heads, dropout
    self.norm0 = _norm(in_channels)
    self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    self.affine = nn.Linear(emb_channels, 2 * out_channels)
    self.norm1 = _norm(out_channels)
    self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
    if in_channels != out_channels:
      self.skip = nn.Conv2d(in_channels, out_channels, 1)
    if num_heads:
      self.norm2 = _norm(out_channels)
      self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
      self.proj = nn.Conv2d(out_channels, out_channels, 1)

  def _scaled(self, x):
    if self.resample == 'down':
      return F.avg_pool2d(x, 2)
    if self.resample == 'up':
      return F.interpolate(x, scale_factor=2, mode='nearest')
    return x

  def forward(self, x, emb):
    h = self.conv0(self._scaled(F.silu(self.norm0(x))))
    scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
    h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
    h = self.conv1(F.dropout(h, self.dropout, self.training))
    x = self._scaled(x)
    x = h + (self.skip(x) if hasattr(self, 'skip') else x)
    if self.num_heads:
      x = x + self.proj(self._attend(self.qkv(self.norm2(x))))
    return x

  def _attend(self, qkv):
    b, c3, height, width = qkv.shape
    # [B, heads, C / heads, {q, k, v}, H * W]
    qkv = qkv.reshape(b, self.num_heads, -1, 3, height * width)
    q, k, v = qkv.permute(3, 0, 1, 4, 2).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(2, 3).reshape(b, c3 // 3, height, width)


class ADM(nn.Module):
  """F(x; c_noise, label), with the names of EDM's parameters."""

  def __init__(self, resolution, channels, num_classes, model_channels=192,
               channel_mult=(1, 2, 3, 4), channel_mult_emb=4, num_blocks=3,
               attention_resolutions=(32, 16, 8), channels_per_head=64,
               dropout=0.):
    super().__init__()
    emb = model_channels * channel_mult_emb
    self.model_channels = model_channels
    self.num_classes = num_classes
    self.map_layer0 = nn.Linear(model_channels, emb)
    self.map_layer1 = nn.Linear(emb, emb)
    self.map_label = nn.Linear(num_classes, emb, bias=False)
    sizes = [resolution >> i for i in range(len(channel_mult))]
    widths = [model_channels * mult for mult in channel_mult]

    def block(cin, cout, resample='', attention=False):
      heads = max(1, cout // channels_per_head) if attention else 0
      return UNetBlock(cin, cout, emb, resample=resample, num_heads=heads,
                       dropout=dropout)

    self.enc = nn.ModuleDict()
    cout, skips = widths[0], [widths[0]]
    for size, width in zip(sizes, widths, strict=True):
      if size == resolution:
        self.enc[f'{size}x{size}_conv'] = nn.Conv2d(
            channels, width, 3, padding=1)
      else:
        self.enc[f'{size}x{size}_down'] = block(cout, cout, 'down')
        skips.append(cout)
      for i in range(num_blocks):
        self.enc[f'{size}x{size}_block{i}'] = block(
            cout, width, attention=size in attention_resolutions)
        cout = width
        skips.append(cout)

    self.dec = nn.ModuleDict()
    for size, width in zip(sizes[::-1], widths[::-1], strict=True):
      if size == sizes[-1]:
        self.dec[f'{size}x{size}_in0'] = block(cout, cout, attention=True)
        self.dec[f'{size}x{size}_in1'] = block(cout, cout)
      else:
        self.dec[f'{size}x{size}_up'] = block(cout, cout, 'up')
      for i in range(num_blocks + 1):
        self.dec[f'{size}x{size}_block{i}'] = block(
            cout + skips.pop(), width, attention=size in attention_resolutions)
        cout = width
    self.out_norm = _norm(cout)
    self.out_conv = nn.Conv2d(cout, channels, 3, padding=1)
    self._zero()

  @torch.no_grad()
  def _zero(self):
    for name, parameter in self.named_parameters():
      if name.split('.')[-2] in ('conv1', 'proj', 'out_conv'):
        parameter.zero_()
    self.map_label.weight.normal_()

  def embed(self, c_noise, labels):
    half = self.model_channels // 2
    steps = torch.arange(half, device=c_noise.device) / half
    angles = torch.outer(c_noise, 10000. ** -steps)
    emb = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = self.map_layer1(F.silu(self.map_layer0(emb)))
    one_hot = F.one_hot(labels, self.num_classes).to(emb.dtype)
    return F.silu(emb + self.map_label(one_hot))

  def forward(self, x, c_noise, labels):
    emb = self.embed(c_noise, labels)
    skips = []
    for layer in self.enc.values():
      x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
      skips.append(x)
    for layer in self.dec.values():
      if x.shape[1] != layer.in_channels:
        x = torch.cat([x, skips.pop()], dim=1)
      x = layer(x, emb)
    return self.out_conv(F.silu(self.out_norm(x)))


def denoise(network, x, sigma, labels):
  """EDM's D(x; sigma, label). x [B, C, H, W], sigma [B]."""
  s = sigma[:, None, None, None]
  total = s ** 2 + SIGMA_DATA ** 2
  f = network(x / total.sqrt(), sigma.log() / 4, labels)
  return x * (SIGMA_DATA ** 2 / total) + f * (s * SIGMA_DATA / total.sqrt())


def generate(network, z, labels):
  """One step from unit noise z [B, C, H, W]."""
  sigma = torch.full((len(z),), SIGMA_MAX)
  return denoise(network, z * SIGMA_MAX, sigma, labels)


def karras_levels(num_levels=1000, sigma_min=.002, rho=7.):
  """Ascending noise levels [num_levels]."""
  ramp = torch.linspace(0, 1, num_levels)
  low, high = sigma_min ** (1 / rho), SIGMA_MAX ** (1 / rho)
  return (low + ramp * (high - low)) ** rho


class Round:
  """DMD2's loop: one generator update and `ratio` updates of the fake score."""

  def __init__(self, student, teacher, fake, *, ratio=5, learning_rate=2e-6,
               num_classes=10, memory_format=torch.contiguous_format):
    self.student, self.teacher, self.fake = student, teacher, fake
    self.ratio, self.num_classes = ratio, num_classes
    self.memory_format = memory_format
    self.levels = karras_levels()
    adamw = lambda net: torch.optim.AdamW(
        net.parameters(), lr=learning_rate, weight_decay=.01, fused=True)
    self.student_tx, self.fake_tx = adamw(student), adamw(fake)
    teacher.requires_grad_(False)

  def __call__(self, shape):
    """Runs a round on fresh noise of the shape [B, C, H, W]."""
    for i in range(self.ratio):
      z = torch.randn(shape).contiguous(memory_format=self.memory_format)
      labels = torch.randint(self.num_classes, shape[:1])
      with torch.set_grad_enabled(i == 0):
        x = generate(self.student, z, labels)
      if i == 0:
        self._update_student(x, labels)
        x = x.detach()
      loss = self._update_fake(x, labels)
    return loss

  def _noised(self, x, low, high):
    sigma = self.levels[torch.randint(low, high, (len(x),))]
    return x + sigma[:, None, None, None] * torch.randn_like(x), sigma

  def _update_student(self, x, labels):
    with torch.no_grad():
      x_t, sigma = self._noised(x, 20, 981)
      real = denoise(self.teacher, x_t, sigma, labels)
      fake = denoise(self.fake, x_t, sigma, labels)
      weight = (x - real).abs().mean((1, 2, 3), keepdim=True)
      gradient = torch.nan_to_num((fake - real) / weight)
    loss = .5 * F.mse_loss(x, (x - gradient).detach())
    self._step(loss, self.student, self.student_tx)

  def _update_fake(self, x, labels):
    x_t, sigma = self._noised(x, 0, len(self.levels))
    denoised = denoise(self.fake, x_t, sigma, labels)
    weight = sigma ** -2 + SIGMA_DATA ** -2
    loss = (weight[:, None, None, None] * (denoised - x) ** 2).mean()
    self._step(loss, self.fake, self.fake_tx)
    return loss.detach()

  def _step(self, loss, network, tx):
    tx.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 10.)
    tx.step()


def randomize(network, seed=0):
  """Fills every parameter, also those that begin at 0. For parity tests."""
  generator = torch.Generator().manual_seed(seed)
  for name, parameter in network.named_parameters():
    fan_in = math.prod(parameter.shape[1:]) or 1
    noise = torch.randn(parameter.shape, generator=generator)
    gain = 1. if 'norm' in name and name.endswith('weight') else 0.
    parameter.data = gain + noise / (3 * max(fan_in, 9)) ** .5
