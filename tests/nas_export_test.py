"""A found cell outlives the search: as a file of Flax, and as JSON."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nas_jax import child as child_lib
from nas_jax import export
from nas_jax import space as space_lib

VOCAB, WIDTH = 11, 4
FORMS = {
    'enas': (space_lib.enas(12), dict(max_norm=1.5)),
    'enas_pytorch': (space_lib.enas(4), dict(
        state='last', norm='batch', max_norm=1.5)),
    'enas_lm': (space_lib.Space(4, space_lib.enas_lm().activations, 'tanh'),
                dict(sharing='edge_act', output='all', max_norm=0.0)),
    'darts': (space_lib.Space(4, space_lib.darts().activations, 'tanh'), dict(
        sharing='node', output='all', norm='rms', input_bias=False)),
}


def make(form):
  space, settings = FORMS[form]
  child = child_lib.Child(space, VOCAB, WIDTH, init_scale=0.8, **settings)
  params = child_lib.init_params(child, jax.random.key(0))
  params = jax.tree.map(lambda p: p + 0.1, params)
  tokens = jax.random.randint(jax.random.key(1), (5, 3), 0, VOCAB)
  return child, params, tokens


def load(path):
  spec = importlib.util.spec_from_file_location('found', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('form', FORMS)
def test_the_written_module_computes_what_the_search_did(form, tmp_path):
  child, params, tokens = make(form)
  cells = space_lib.sample(child.space, jax.random.key(2), 2)
  h = 0.5 * jax.random.normal(jax.random.key(3), (3, WIDTH))
  ours = jax.jit(lambda cell: child_lib.logits(child, params, cell, tokens, h))
  for cell in space_lib.unstack(cells):
    export.write_module(tmp_path / 'found.py', child, cell)
    model = load(tmp_path / 'found.py').LanguageModel()
    variables = export.to_flax_params(child, params, cell)
    with jax.numpy_rank_promotion('allow'):
      theirs = jax.jit(model.apply)(variables, tokens, h)
      fresh = jax.eval_shape(model.init, jax.random.key(0), tokens)
    # A batch norm over 3 columns divides by small numbers.
    tolerance = 2e-5 if child.norm == 'batch' else 2e-6
    for a, b in zip(ours(cell), theirs, strict=True):
      np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    # The mapped weights are all that the module has.
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, fresh)


def test_the_written_module_needs_nothing_of_the_search(tmp_path):
  child, _, _ = make('enas')
  export.write_module(tmp_path / 'found.py', child, space_lib.published())
  code = ('import sys, found\n'
          'ours = [m for m in sys.modules if m.startswith(("nas_", "core_"))]\n'
          'assert not ours, ours\n')
  subprocess.run([sys.executable, '-I', '-c',
                  f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}'],
                 check=True)


def test_the_text_names_what_the_cell_does():
  child, _, _ = make('enas')
  text = export.module_text(child, space_lib.published())
  for line in ('s0 = highway(nn.tanh, z, h)', 's3 = node(3, nn.relu, s1)',
               's11 = node(11, nn.relu, s8)',
               'y = shorten(sum([s2, s5, s6, s9, s10, s11]) / 6)'):
    assert line in text
  assert 'identity' not in text
  assert '\n\n\n\n' not in text
  assert max(map(len, text.splitlines())) <= 80


def test_the_cell_is_written_as_json_too(tmp_path):
  child, _, _ = make('darts')
  cell = space_lib.from_names(
      child.space, (0, 0, 1, 0), ('tanh', 'relu', 'identity', 'sigmoid'))
  export.write_module(tmp_path / 'found.py', child, cell)
  found = json.loads((tmp_path / 'found.json').read_text())
  assert found == {'prev': [0, 0, 1, 0],
                   'act': ['tanh', 'relu', 'identity', 'sigmoid']}
  back = space_lib.from_json(child.space, found)
  np.testing.assert_array_equal(back.act, cell.act)


def test_a_cell_of_another_space_is_refused(tmp_path):
  child, _, _ = make('darts')
  with pytest.raises(space_lib.SpaceError, match='have 4'):
    export.write_module(tmp_path / 'found.py', child, space_lib.published())
  assert not list(tmp_path.iterdir())
