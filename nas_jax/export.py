"""A found cell as a Flax module that stands alone, and as JSON.

The file that is written is code as a person would write it: a linen cell for
`nn.RNN`, its nodes in order, and the language model around it. It needs JAX
and Flax, and nothing of the search.
"""

import json
import pathlib
import textwrap
from typing import Any

from flax import traverse_util
import numpy as np

from nas_jax import child as child_lib
from nas_jax import space as space_lib

Child, Cell = child_lib.Child, space_lib.Cell

_MODULE = '''\
"""A recurrent cell found by architecture search, and a language model of it.

{wiring}

`LanguageModel().apply(variables, tokens)` takes tokens [T, B] to the logits of
the next ones [T, B, {vocab_size}] and the state after them [B, {hidden_size}].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def init(key, shape, dtype=jnp.float32):
  return jax.random.uniform(key, shape, dtype, -{init_scale}, {init_scale})


def highway(f, z, s):
  """z [B, 2H]: a candidate, and a gate between it and s [B, H]."""
  u, g = jnp.split(z, 2, axis=-1)
  return s + nn.sigmoid(g) * (f(u) - s)
{functions}

class Cell(nn.RNNCellBase):
  """State h [B, H] and input x [B, E] -> the next state and the output."""

  features: int = {hidden_size}

  @nn.compact
  def __call__(self, h, x):
    def dense(name, x, use_bias=False):
      return nn.Dense(
          2 * self.features, use_bias, kernel_init=init, bias_init=init,
          name=name)(x)

    def node(j, f, s):
      return highway(f, dense(f'node{{j}}', s), s)

{nodes}
    return {state}, y

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    return jnp.zeros((*input_shape[:-1], self.features))

  @property
  def num_feature_axes(self):
    return 1


class LanguageModel(nn.Module):
  """The softmax shares the embedding's weights."""

  vocab_size: int = {vocab_size}
  features: int = {hidden_size}

  @nn.compact
  def __call__(self, tokens, h=None):
    embed = nn.Embed(
        self.vocab_size, self.features, embedding_init=init, name='embed')
    if h is None:
      h = jnp.zeros((tokens.shape[1], self.features))
    rnn = nn.RNN(
        Cell(self.features, name='cell'), time_major=True, return_carry=True)
    h, y = rnn(embed(tokens), initial_carry=h)
{norm}    bias = self.param('bias', nn.initializers.zeros, (self.vocab_size,))
    return embed.attend(y) + bias, h
'''

_IDENTITY = '''

def identity(u):
  return u
'''

_SHORTEN = '''

def shorten(x):
  """Rows of x [B, H] longer than {max_norm}, to that length."""
  norm = jnp.sqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-12))
  return x * jnp.minimum(1.0, {max_norm} / norm)
'''

_NORMS = {
    'none': '',
    'rms': '''\
    y = nn.RMSNorm(epsilon={epsilon}, name='norm')(y)
''',
    'batch': '''\
    # By the statistics of the step's own columns.
    y = (y - y.mean(1, keepdims=True)) / jnp.sqrt(
        y.var(1, keepdims=True) + {epsilon})
    y = y * self.param('norm_scale', nn.initializers.ones, (self.features,))
    y = y + self.param('norm_offset', nn.initializers.zeros, (self.features,))
'''}

_FUNCTIONS = {'tanh': 'nn.tanh', 'relu': 'nn.relu', 'sigmoid': 'nn.sigmoid',
              'identity': 'identity'}


def module_text(child: Child, cell: Cell) -> str:
  """Python code of the cell [N] with the child's settings.

  Raises:
    space.SpaceError: the child's space has no such cell.
  """
  cell = space_lib.check_cell(child.space, cell)
  names = space_lib.to_json(child.space, cell)['act']
  shorten = _SHORTEN.format(max_norm=child.max_norm) if child.max_norm else ''
  clipped = lambda text: f'shorten({text})' if shorten else text
  identity = _IDENTITY if 'identity' in names else ''
  return _MODULE.format(
      wiring=wiring_text(cell, names),
      functions=identity + shorten,
      nodes=textwrap.indent(_node_lines(child, cell, names, clipped), ' ' * 4),
      state='y' if child.state == 'mean' else clipped(f's{len(names) - 1}'),
      norm=_NORMS[child.norm].format(epsilon=child_lib.NORM_EPSILON),
      init_scale=child.init_scale, vocab_size=child.vocab_size,
      hidden_size=child.hidden_size)


def wiring_text(cell: Cell, names: list[str]) -> str:
  """The cell as a tree, a node a line under its parent."""
  lines = []

  def draw(node, depth):
    lines.append(f'{"  " * depth}{node} {names[node]}')
    for reader in range(1, len(names)):
      if cell.prev[reader] == node:
        draw(reader, depth + 1)

  draw(0, 1)
  return '\n'.join(['  x[t], h[t-1]', *lines])


def _node_lines(child, cell, names, clipped):
  """The body of the cell: a line for each node, then the mean."""
  bias = ', use_bias=True' if child.input_bias else ''
  f = [_FUNCTIONS[name] for name in names]
  lines = [f"z = dense('input', x{bias}) + dense('recurrent', h)",
           f's0 = highway({f[0]}, z, h)']
  lines += [f's{j} = node({j}, {f[j]}, s{cell.prev[j]})'
            for j in range(1, len(names))]
  averaged = [
      f's{j}' for j in np.flatnonzero(child_lib.averaged(child, cell))]
  mean = averaged[0]
  if len(averaged) > 1:
    mean = f'sum([{", ".join(averaged)}]) / {len(averaged)}'
  wrapped = textwrap.fill(
      f'y = {clipped(mean)}', 76, subsequent_indent=' ' * 4)
  return '\n'.join([*lines, wrapped])


def write_module(path: str | pathlib.Path, child: Child, cell: Cell) -> None:
  """Writes the cell [N] as a Python file, and as JSON beside it.

  Raises:
    space.SpaceError: the child's space has no such cell.
  """
  path = pathlib.Path(path)
  path.write_text(module_text(child, cell))
  found = space_lib.to_json(child.space, cell)
  path.with_suffix('.json').write_text(json.dumps(found) + '\n')


def write_variables(
    path: str | pathlib.Path, child: Child, params: child_lib.Params,
    cell: Cell,
) -> None:
  """Writes the module's variables as .npz, by 'params/cell/node1/kernel'.

  `flax.traverse_util.unflatten_dict(dict(numpy.load(path)), sep='/')` gives
  them back.
  """
  np.savez(path, **traverse_util.flatten_dict(
      to_flax_params(child, params, cell), sep='/'))


def to_flax_params(
    child: Child, params: child_lib.Params, cell: Cell
) -> dict[str, Any]:
  """Shared weights, or those of the cell alone -> variables of the module."""
  cell = space_lib.check_cell(child.space, cell)
  alone = {name: np.asarray(p) for name, p in child_lib.single_params(
      child, params, cell).items()}
  width = child.hidden_size
  nodes = {'input': {'kernel': alone['w0'][:width]},
           'recurrent': {'kernel': alone['w0'][width:]}}
  if child.input_bias:
    nodes['input']['bias'] = alone['b0']
  nodes |= {f'node{j}': {'kernel': w} for j, w in enumerate(alone['w'], 1)}
  found = {'embed': {'embedding': alone['embedding']}, 'cell': nodes,
           'bias': alone['bias']}
  if child.norm == 'rms':
    found['norm'] = {'scale': alone['norm_scale']}
  if child.norm == 'batch':
    found |= {k: alone[k] for k in ('norm_scale', 'norm_offset')}
  return {'params': found}
