"""The child network of architecture search in plain eager PyTorch.

A cell is lists of integers and names, and its graph is built anew for each.
Weights come as a dict of our names and shapes. The first architecture search
in PyTorch holds two linear layers per edge instead: `linears`.
"""

import numpy as np
import torch
from torch.nn import functional as F

ACTIVATIONS = {
    'tanh': torch.tanh,
    'relu': torch.relu,
    'identity': lambda u: u,
    'sigmoid': torch.sigmoid,
}


def parameters(arrays, linears=False):
  """Numpy arrays by our names -> leaves of torch, those of edges apart.

  One tensor for all edges would get a gradient of its size at every use.
  """
  leaf = lambda x: torch.tensor(x).requires_grad_()
  width = arrays['w0'].shape[0] // 2
  params = {k: leaf(arrays[k]) for k in ('embedding', 'bias')}
  if not linears:
    return params | {'w0': leaf(arrays['w0']), 'b0': leaf(arrays['b0']),
                     'w': [leaf(w) for w in arrays['w']]}
  halves = lambda w: [leaf(half.T.copy()) for half in np.split(w, 2, axis=1)]
  return params | {
      'inputs': halves(arrays['w0'][:width]),
      'recurrent': halves(arrays['w0'][width:]),
      'biases': [leaf(b) for b in np.split(arrays['b0'], 2)],
      'edges': [halves(w) for w in arrays['w']]}


def leaves(params):
  """All tensors of nested lists."""
  if isinstance(params, torch.Tensor):
    return [params]
  values = params.values() if isinstance(params, dict) else params
  return [leaf for value in values for leaf in leaves(value)]


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


def update(optimizer, params, prev, names, tokens, h, max_norm, linears):
  """One update of the weights that the cell uses."""
  optimizer.zero_grad(set_to_none=True)
  nll, h = negative_log_likelihood(
      params, prev, names, tokens, h, linears=linears)
  nll.mean().backward()
  torch.nn.utils.clip_grad_norm_(leaves(params), max_norm)
  optimizer.step()
  return h.detach()


class Controller(torch.nn.Module):
  """ENAS' policy: an LSTM cell, a linear head for each decision."""

  def __init__(self, num_options, num_acts, hidden_size):
    super().__init__()
    self.num_options, self.num_acts = num_options, num_acts
    self.embedding = torch.nn.Embedding(
        num_acts + max(num_options), hidden_size)
    self.lstm = torch.nn.LSTMCell(hidden_size, hidden_size)
    self.heads = torch.nn.ModuleList(
        torch.nn.Linear(hidden_size, k) for k in num_options)

  def forward(self):
    """Tokens of a drawn cell, its log-probability and its entropy, nats."""
    x = torch.zeros(1, self.lstm.hidden_size)
    state, tokens, log_prob, entropy = (x, x), [], 0.0, 0.0
    for t, head in enumerate(self.heads):
      state = self.lstm(x, state)
      logits = 2.5 * torch.tanh(head(state[0]) / 5.0)
      policy = torch.distributions.Categorical(logits=logits)
      token = policy.sample()
      log_prob = log_prob + policy.log_prob(token)
      entropy = entropy + policy.entropy()
      x = self.embedding(token + self.num_acts * (t % 2))
      tokens.append(int(token))
    return tokens, log_prob, entropy


def reinforce(
    controller, optimizer, params, names, tokens, h, linears, baseline
):
  """One update of the controller by one cell; the new baseline."""
  found, log_prob, entropy = controller()
  prev = [0, *found[1::2]]
  acts = [names[a] for a in found[::2]]
  with torch.no_grad():
    nll, _ = negative_log_likelihood(
        params, prev, acts, tokens, h, linears=linears)
    reward = 80.0 / nll.mean().exp().item()
  optimizer.zero_grad(set_to_none=True)
  loss = -log_prob * (reward - baseline) - 1e-4 * entropy
  loss.sum().backward()
  optimizer.step()
  return 0.95 * baseline + 0.05 * reward
