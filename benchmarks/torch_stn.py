"""Self-tuning networks in plain PyTorch, written from the papers' equations.

Layers with a best response, per example and fused: the layer, applied once
more with the response weights, its output scaled. Two models, STN's AlexNet
and its LSTM, as functions of (params, h), so that Delta-STN's linearisation
can be taken by either of torch's ways.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def uniform(*shape, fan_in):
  bound = 1 / math.sqrt(fan_in)
  return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class Response(nn.Module):
  """Weights of one layer: `W`, `b`, their response, and the bottleneck."""

  def __init__(self, shape, num_hypers, bottleneck_std):
    super().__init__()
    fan_in, features = math.prod(shape[1:]), shape[0]
    self.weight = uniform(*shape, fan_in=fan_in)
    self.bias = uniform(features, fan_in=fan_in)
    self.weight_r = uniform(*shape, fan_in=fan_in)
    self.bias_r = uniform(features, fan_in=fan_in)
    self.bottleneck = nn.Parameter(
        bottleneck_std * torch.randn(2 * features, num_hypers))

  def general(self):
    return [self.weight, self.bias]

  def response(self):
    return [self.weight_r, self.bias_r, self.bottleneck]

  def forward(self, apply, h):
    """apply: weight -> output [B, F, ...] without bias; h [B, n] or None."""
    y = apply(self.weight)
    tail = (1,) * (y.ndim - 2)
    y = y + self.bias.view(1, -1, *tail)
    if h is None:
      return y
    gate, bias_gate = (h @ self.bottleneck.T).chunk(2, dim=1)
    y = y + gate.view(*gate.shape, *tail) * apply(self.weight_r)
    return y + (bias_gate * self.bias_r).view(*gate.shape, *tail)


def dropout(x, rate, shape):
  """Rates [B]; `shape` of the mask after the batch axis."""
  if rate is None:
    return x
  keep = (1 - rate).view(-1, *(1,) * (x.ndim - 1))
  mask = torch.rand(x.shape[0], *shape) < keep
  return x * (mask / keep)


class AlexNet(nn.Module):
  """STN's network for CIFAR-10; 7 dropout rates."""

  num_hypers = 7

  def __init__(self, bottleneck_std):
    super().__init__()
    channels = (3, 64, 192, 384, 256, 256)
    make = lambda *shape: Response(shape, self.num_hypers, bottleneck_std)
    self.convs = nn.ModuleList(
        make(b, a, 3, 3) for a, b in zip(channels, channels[1:], strict=False))
    self.denses = nn.ModuleList(
        (make(4096, 1024), make(4096, 4096), make(10, 4096)))

  def forward(self, images, h, rates):
    """images [B, 3, 32, 32], h [B, 7] or None, rates [B, 7] or None."""
    rate = lambda i: None if rates is None else rates[:, i]
    x = images
    for i, layer in enumerate(self.convs):
      inputs, stride = x, 2 if i == 0 else 1
      x = F.relu(layer(
          lambda w, x=inputs, s=stride: F.conv2d(x, w, stride=s, padding=1),
          h))
      if i in (0, 1, 4):
        x = F.max_pool2d(x, 2)
      x = dropout(x, rate(i), (x.shape[1], 1, 1))
    x = x.flatten(1)
    for i, layer in enumerate(self.denses):
      if i < 2:
        x = dropout(x, rate(5 + i), x.shape[1:])
      inputs = x
      x = layer(lambda w, x=inputs: F.linear(x, w), h)
      if i < 2:
        x = F.relu(x)
    return x

  def loss(self, outputs, targets):
    return F.cross_entropy(outputs, targets)


class LSTM(nn.Module):
  """STN's language model: 2 layers, variational dropouts, a tied decoder."""

  num_hypers = 3  # dropout of input, between layers, of output

  def __init__(self, vocabulary_size, width, bottleneck_std):
    super().__init__()
    self.width = width
    self.embed = nn.Parameter(
        torch.empty(vocabulary_size, width).uniform_(-.1, .1))
    self.embed_r = nn.Parameter(
        torch.empty(vocabulary_size, width).uniform_(-.1, .1))
    self.embed_bottleneck = nn.Parameter(
        bottleneck_std * torch.randn(width, self.num_hypers))
    self.decoder_bias = nn.Parameter(torch.zeros(vocabulary_size))
    make = lambda: Response(
        (4 * width, width), self.num_hypers, bottleneck_std)
    self.inputs = nn.ModuleList(make() for _ in range(2))
    self.recurrents = nn.ModuleList(make() for _ in range(2))

  def forward(self, tokens, h, rates):
    """tokens [T, B], h [B, 3] or None, rates [B, 3] or None -> logits."""
    x = F.embedding(tokens, self.embed)
    if h is not None:
      x = x + (h @ self.embed_bottleneck.T)[None] * F.embedding(
          tokens, self.embed_r)
    for i in range(2):
      x = self._drop(x, rates, i)
      x = self._layer(x, h, self.inputs[i], self.recurrents[i])
    x = self._drop(x, rates, 2)
    return F.linear(x, self.embed, self.decoder_bias)

  def _drop(self, x, rates, i):
    if rates is None:
      return x
    keep = (1 - rates[:, i])[:, None]
    mask = (torch.rand(x.shape[1:]) < keep) / keep
    return x * mask[None]

  def _layer(self, x, h, inputs, recurrent):
    z = self._sequence(x, h, inputs)
    c = state = x.new_zeros(x.shape[1], self.width)
    outputs = []
    if h is not None:
      gate, bias_gate = (h @ recurrent.bottleneck.T).chunk(2, dim=1)
      bias = recurrent.bias + bias_gate * recurrent.bias_r
    for t in range(x.shape[0]):
      y = F.linear(state, recurrent.weight)
      if h is None:
        y = y + recurrent.bias
      else:
        y = y + bias + gate * F.linear(state, recurrent.weight_r)
      f, i, o, g = (z[t] + y).chunk(4, dim=1)
      c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
      state = torch.sigmoid(o) * torch.tanh(c)
      outputs.append(state)
    return torch.stack(outputs)

  def _sequence(self, x, h, layer):
    """All time steps at once."""
    y = F.linear(x, layer.weight, layer.bias)
    if h is None:
      return y
    gate, bias_gate = (h @ layer.bottleneck.T).chunk(2, dim=1)
    return y + gate[None] * F.linear(x, layer.weight_r) + (
        bias_gate * layer.bias_r)[None]

  def loss(self, outputs, targets):
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def plain_update(model, optimizer, x, targets, lam):
  """One update of the model without a response."""
  rates = torch.sigmoid(lam).expand(_batch_size(model, x), -1)
  optimizer.zero_grad(set_to_none=True)
  model.loss(model(x, None, rates), targets).backward()
  optimizer.step()


def stn_update(model, optimizer, x, targets, lam, sigma):
  """One update of weights and response at perturbed hyperparameters."""
  h = lam + sigma * torch.randn(_batch_size(model, x), model.num_hypers)
  optimizer.zero_grad(set_to_none=True)
  model.loss(model(x, h, torch.sigmoid(h)), targets).backward()
  optimizer.step()


def validation_update(model, optimizer, x, targets, hyper):
  """One update of lam and rho; the weights need no gradient."""
  lam, rho = hyper
  for p in model.parameters():
    p.requires_grad_(False)
  optimizer.zero_grad(set_to_none=True)
  sigma = F.softplus(rho)
  h = lam + sigma * torch.randn(_batch_size(model, x), model.num_hypers)
  entropy = torch.log(sigma * math.sqrt(2 * math.pi * math.e)).sum()
  (model.loss(model(x, h, None), targets) - 1e-3 * entropy).backward()
  optimizer.step()
  for p in model.parameters():
    p.requires_grad_(True)


def delta_stn_update(
    model, general_optimizer, response_optimizer, x, targets, lam, sigma,
    forward_mode):
  """The weights at lam, then the response of the linearised network.

  Args:
    forward_mode: takes the tangent by forward-mode differentiation; if not,
      by differentiating the pullback, as the papers' code has it.
  """
  plain_update(model, general_optimizer, x, targets, lam)
  general = [p for group in general_optimizer.param_groups
             for p in group['params']]
  for p in general:  # The response alone is updated from here.
    p.requires_grad_(False)
  size = _batch_size(model, x)
  eps = sigma * torch.randn(size, model.num_hypers)
  rates = torch.sigmoid(lam + eps)
  response_optimizer.zero_grad(set_to_none=True)
  seed = torch.random.get_rng_state()

  def at(h):
    torch.random.set_rng_state(seed)
    return model(x, h, rates)

  zero = torch.zeros(size, model.num_hypers)
  if forward_mode:
    outputs, tangents = torch.func.jvp(at, (zero,), (eps,))
  else:
    outputs, tangents = torch.autograd.functional.jvp(
        at, zero, eps, create_graph=True)
  model.loss(outputs + tangents, targets).backward()
  response_optimizer.step()
  for p in general:
    p.requires_grad_(True)


def _batch_size(model, x):
  return x.shape[1] if isinstance(model, LSTM) else x.shape[0]
