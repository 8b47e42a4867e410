"""How well a critic tells facts from falsehoods, on labelled claims.

  python -m link_jax.calibrate --critic=yes-no:smollm2 --num_claims=64

Half of the claims are pairs of a table of the embedded facts, half the same
pairs with their right sides changed round so that the table denies them. Look
at this before trusting a critic that is no lookup.
"""

from collections.abc import Sequence

from absl import flags
import ml_collections
import numpy as np

from core_jax import program
from link_jax import critic as critic_lib
from link_jax import facts as facts_lib
from link_jax import measure
from link_jax import rules
from link_jax import tools


def labelled(
    facts: facts_lib.Facts, table: str, template: str, num_claims: int,
    seed: int) -> tuple[list[critic_lib.Claim], list[bool]]:
  """Claims and whether they are true, half and half.

  Args:
    facts: where the pairs stand.
    table: of the pairs.
    template: English with slots [X] and [Y].
    num_claims: in all.
    seed: of the draw.
  """
  if table not in facts.tables:
    raise ValueError(f'--table={table}: there are {sorted(facts.tables)}')
  pairs = sorted(facts.tables[table].source)
  rng = np.random.default_rng(seed)
  chosen = [pairs[i] for i in rng.permutation(len(pairs))[:num_claims // 2]]
  predicate = rules.Predicate(
      table, ('X', 'Y'), template, 'constraint', f'table:{table}')
  claims, labels = [], []
  ys = [y for _, y in chosen]
  for i, (x, y) in enumerate(chosen):
    wrong = next((other for other in ys[i + 1:] + ys[:i]
                  if (x, other) not in facts.tables[table].source), None)
    for value, label in ((y, True), (wrong, False)):
      if value is not None:
        claims.append(critic_lib.fact_claim(predicate, {'X': x, 'Y': value}))
        labels.append(label)
  return claims, labels


def report(critic: critic_lib.Critic, claims: Sequence[critic_lib.Claim],
           labels: Sequence[bool]) -> dict[str, float]:
  """AUC, Brier score and abstentions, and what LINK's thresholds let pass."""
  ps = [verdict.p for verdict in critic.judge(claims)]
  found = measure.critic_auc(labels, ps)
  for threshold in (85, 65):
    for name, wanted in (('true', True), ('false', False)):
      of = [p for p, label in zip(ps, labels, strict=True) if label == wanted]
      accepted = sum(p is not None and critic_lib.passes(p, threshold)
                     for p in of)
      found[f'accepted_{name}_at_{threshold}'] = accepted / max(len(of), 1)
  return found


def main():
  claims, labels = labelled(
      facts_lib.embedded(), _TABLE.value, _TEMPLATE.value, _NUM_CLAIMS.value,
      _SEED.value)
  critic = tools.critic_of(ml_collections.ConfigDict(
      {'critic': {'kinds': tuple(_CRITIC.value)}}))
  for name, value in report(critic, claims, labels).items():
    print(f'{name:<24} {value:.3f}')


if __name__ == '__main__':
  _CRITIC = flags.DEFINE_list('critic', ['facts'], 'Kinds, see critic.kinds.')
  _TABLE = flags.DEFINE_string('table', 'kind_of', 'Of the embedded facts.')
  _TEMPLATE = flags.DEFINE_string(
      'template', '[X] is one type of [Y]', 'The claim, with its slots.')
  _NUM_CLAIMS = flags.DEFINE_integer(
      'num_claims', 64, 'Claims in all.', lower_bound=2)
  _SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')
  program.run(main)
