"""The published code's output files: read and measured.

  python -m link_jax.published --folder=DIR --rules_file=rules.json \\
      --scorers=bigram,unigram

A rule's beams are `<rule>_value_cache.csv_head` and `..._longtail`: CSV whose
header names the variables in search order.
"""

from collections.abc import Sequence
import csv
import pathlib

from absl import flags

from core_jax import program
from link_jax import likelihood
from link_jax import measure
from link_jax import ngram
from link_jax import rulefile
from link_jax import rules as rules_lib
from link_jax import search
from link_jax import tools

SUFFIX = '_value_cache.csv_'
Beams = dict[str, list[dict[str, str]]]
"""Split -> bindings of its statements."""


def read_rule(folder: pathlib.Path, rule: rules_lib.Rule) -> Beams:
  """A rule's beams; a split whose file is not there is empty.

  Raises:
    ValueError: a header names what is no variable of the rule, lacks one that
      is no generic, or a row has too few cells; with file and line.
  """
  generic = rules_lib.generic_bindings(rule)
  wanted = {v.name for v in rule.variables}
  found = {}
  for split in search.SPLITS:
    path = folder / f'{rule.name}{SUFFIX}{split}'
    found[split] = []
    if not path.exists():
      continue
    with path.open(newline='', encoding='utf-8') as file:
      reader = csv.DictReader(file)
      header = reader.fieldnames or []
      if stray := [name for name in header if name not in wanted]:
        raise ValueError(f'{path}: the column {stray[0]!r} is no variable of '
                         f'{rule.name}; it has {sorted(wanted)}')
      if lacking := sorted(wanted - generic.keys() - set(header)):
        raise ValueError(f'{path}: there is no column {lacking[0]!r}')
      for row in reader:
        if None in row or None in row.values():
          raise ValueError(f'{path}, line {reader.line_num}: {len(header)} '
                           'cells were expected')
        found[split].append(generic | row)
  return found


def measured(
    folder: pathlib.Path, rules: Sequence[rules_lib.Rule],
    scorer: likelihood.Scorer) -> list[measure.Row]:
  """Mean log-likelihoods of the full conjunctions, as LINK measures them."""
  rows = []
  for rule in rules:
    for split, beams in read_rule(folder, rule).items():
      texts = [likelihood.Text(
          rules_lib.conjunction(rule.predicates, b), 0) for b in beams]
      rows += [
          measure.Row(rule.name, rule.domain, split, likelihood.mean(one),
                      one.tokens, ngram.zipf(' '.join(b.values())))
          for b, one in zip(beams, scorer.score(texts), strict=True)]
  return rows


def main():
  rules = rulefile.load(_RULES.value)
  for name in _SCORERS.value:
    rows = measured(pathlib.Path(_FOLDER.value), list(rules.values()),
                    tools.scorer(name))
    if not rows:
      raise ValueError(f'--folder={_FOLDER.value}: there is no statement in '
                       f'files RULE{SUFFIX}head and ...longtail')
    found = measure.summary(rows, 0, 9999, 0.02)
    print(name, {k: round(v, 4) for k, v in found.items()})


if __name__ == '__main__':
  _FOLDER = flags.DEFINE_string(
      'folder', None, 'Of the files.', required=True)
  _RULES = flags.DEFINE_string(
      'rules_file', None, 'The rules that made them.', required=True)
  _SCORERS = flags.DEFINE_list('scorers', ['bigram'], 'Who measures.')
  program.run(main)
