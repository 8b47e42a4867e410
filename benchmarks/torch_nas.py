"""The child network of architecture search in plain eager PyTorch.

A cell is lists of integers and names, and its graph is built anew for each.
Weights come as a dict of our names and shapes; the first architecture search
in PyTorch holds a linear layer per edge and gate instead (`split`).
"""

import torch
from torch.nn import functional as F

ACTIVATIONS = {
    'tanh': torch.tanh,
    'relu': torch.relu,
    'identity': lambda u: u,
    'sigmoid': torch.sigmoid,
}


def split(params):
  """Each matrix [H, 2H] as two [H, H], those of linear layers."""
  width = params['w0'].shape[0] // 2
  halves = lambda w: tuple(
      half.T.contiguous() for half in w.split(width, dim=1))
  inputs, recurrent = params['w0'].split(width)
  return params | {
      'inputs': halves(inputs), 'recurrent': halves(recurrent),
      'biases': params['b0'].split(width),
      'edges': [halves(w) for w in params['w']]}


def edge(target, source):
  return target * (target - 1) // 2 + source


def clip_norm(x, max_norm):
  """Rows of x [B, H] longer than max_norm, shortened to it."""
  if not max_norm:
    return x
  norm = x.norm(dim=-1, keepdim=True)
  return torch.where(norm > max_norm, x * (max_norm / norm), x)


def node(f, u, g, parent):
  return parent + torch.sigmoid(g) * (f(u) - parent)


def nodes(params, prev, names, x, h, weight):
  """States of one step, [B, H] each; x [B, 2H] is what the tokens add."""
  width = h.shape[-1]
  z = x + h @ params['w0'][width:]
  states = [node(ACTIVATIONS[names[0]], *z.split(width, dim=-1), h)]
  for j in range(1, len(prev)):
    parent = states[prev[j]]
    z = parent @ weight(j)
    states.append(
        node(ACTIVATIONS[names[j]], *z.split(width, dim=-1), parent))
  return states


def nodes_of_linears(params, prev, names, x, h):
  """The same from two linear layers per edge; x [B, H] the embedding."""
  gates = [
      F.linear(x, w_x, b) + F.linear(h, w_h) for w_x, w_h, b in zip(
          params['inputs'], params['recurrent'], params['biases'],
          strict=True)]
  states = [node(ACTIVATIONS[names[0]], *gates, h)]
  for j in range(1, len(prev)):
    parent = states[prev[j]]
    gates = [F.linear(parent, w) for w in params['edges'][edge(j, prev[j])]]
    states.append(node(ACTIVATIONS[names[j]], *gates, parent))
  return states


def run(
    params, prev, names, tokens, h, sharing='edge', state='mean',
    output='leaves', norm='none', max_norm=25.0, linears=False):
  """tokens [T, B] -> outputs [T, B, H] before the softmax, last state."""
  width, num_nodes = h.shape[-1], len(prev)
  acts = list(ACTIVATIONS)
  weights = {
      'edge': lambda j: params['w'][edge(j, prev[j])],
      'edge_act': lambda j: params['w'][
          acts.index(names[j]), edge(j, prev[j])],
      'node': lambda j: params['w'][j - 1]}
  averaged = [j for j in range(1, num_nodes)
              if output == 'all' or j not in prev[1:]]
  x = F.embedding(tokens, params['embedding'])
  if not linears:
    x = x @ params['w0'][:width] + params.get('b0', 0.0)
  outputs = []
  for x_t in x:
    if linears:
      states = nodes_of_linears(params, prev, names, x_t, h)
    else:
      states = nodes(params, prev, names, x_t, h, weights[sharing])
    y = clip_norm(
        torch.stack([states[j] for j in averaged]).mean(0), max_norm)
    h = y if state == 'mean' else clip_norm(states[-1], max_norm)
    outputs.append(y)
  return normalise(params, torch.stack(outputs), norm), h


def normalise(params, y, norm):
  if norm == 'none':
    return y
  if norm == 'rms':
    rms = (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return params['norm_scale'] * y / rms
  return torch.stack([F.batch_norm(
      y_t, None, None, params['norm_scale'], params['norm_offset'],
      training=True) for y_t in y])


def negative_log_likelihood(params, prev, names, tokens, h, **settings):
  """tokens [T + 1, B] -> [T, B] in nats, last state."""
  y, h = run(params, prev, names, tokens[:-1], h, **settings)
  z = F.linear(y.flatten(0, 1), params['embedding'], params['bias'])
  nll = F.cross_entropy(z, tokens[1:].flatten(), reduction='none')
  return nll.view(tokens[1:].shape), h
