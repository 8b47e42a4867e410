"""Every config's tiny variant runs, on files as its reader wants them."""

import json

import pytest

from configs import nas_brown
from configs import nas_markov
from configs import nas_ptb
from core_jax import text
from nas_jax import child as child_lib
from nas_jax import experiment
from nas_jax import train

# Lines of four words and <eos>; as many as 500 documents have of one each.
LINES = {'train': 429, 'valid': 36, 'test': 35}
COUNTS = {split: 5 * num for split, num in LINES.items()}


def line(i):
  return ['abcdefgh'[(i * k) % 8] for k in (1, 3, 5, 6)]


def write_treebank(folder):
  for split, num in LINES.items():
    (folder / f'ptb.{split}.txt').write_text(
        ''.join(f' {" ".join(line(i))} \n' for i in range(num)))


def write_brown(folder):
  for i in range(500):
    name = f'c{"abcdefghijklmnopqr"[i // 100]}{i % 100:02d}'
    (folder / name).write_text(
        ' '.join(f'{word}/nn' for word in line(i)) + ' ./.\n')


def changed(new, old):
  """What is not in `old`, of nested dicts with the same keys."""
  return {k: changed(x, old[k]) if isinstance(x, dict) else x
          for k, x in new.items() if x != old[k]}


def tiny_help():
  """':help' with what makes the default ':tiny'."""
  config, tiny, plain = (
      nas_markov.get_config(variant) for variant in ('help', 'tiny', ''))
  config.update(changed(tiny.to_dict(), plain.to_dict()))
  return config


@pytest.mark.parametrize('make, write, words', [
    (lambda: nas_ptb.get_config('tiny'), write_treebank, 9),
    (lambda: nas_brown.get_config('tiny'), write_brown, 9),
    (tiny_help, lambda folder: None, 1_000)], ids=['ptb', 'brown', 'help'])
def test_a_config_runs_tiny_from_end_to_end(
    make, write, words, tmp_path, monkeypatch):
  monkeypatch.setattr(text, 'PTB_COUNTS', COUNTS)
  monkeypatch.setattr(text, 'BROWN_COUNTS', COUNTS)
  write(tmp_path)
  config = make()
  # One method: each has its own tests, and compiles for long.
  config.update(data_path=str(tmp_path), methods=('uniform',))
  summary = train.train_and_evaluate(config.lock(), str(tmp_path / 'run'))
  assert 1 < summary['uniform_test_perplexity'] < 1.2 * words
  assert list(json.loads((tmp_path / 'run/cells.json').read_text())) == [
      'uniform']


def test_the_treebanks_cells_are_those_of_enas_pytorch():
  config = nas_ptb.get_config()
  child = child_lib.Child(
      experiment.make_space(config.space), 10_000, **config.child)
  assert child_lib.count_params(child) == 146_014_000
  for variant in ('', 'tiny'):
    fields = nas_ptb.get_config(variant).child
    assert (fields.state, fields.output, fields.norm) == (
        'last', 'leaves', 'batch')


@pytest.mark.parametrize('make', [
    nas_markov.get_config, lambda: nas_markov.get_config('help'),
    lambda: nas_markov.get_config('small'), nas_brown.get_config,
    nas_ptb.get_config], ids=['markov', 'help', 'small', 'brown', 'ptb'])
def test_a_full_config_passes_the_checks(make):
  config = make()
  experiment.check(config)
  experiment.make_rates(config.rates)
  for method in experiment.METHODS:
    if method.startswith('enas'):
      experiment.make_memory(config, method)


@pytest.mark.parametrize('module', [nas_markov, nas_brown, nas_ptb])
def test_an_unknown_variant_is_refused(module):
  with pytest.raises(ValueError, match="'huge' is not known"):
    module.get_config('huge')
