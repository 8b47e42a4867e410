"""Asks a language model what a run's statements entail, head against tail.

  python -m link_jax.probe --run=runs/link0 --model=smollm2

Thirteen questions a statement (see entailment.py), answered by the likelier of
two answers; of a model behind an endpoint (--model=http:NAME --base_url=URL) by
the word that its reply begins with. Writes `probe_<model>.json` into the run's
folder, and `figures/probe_<model>.png`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import re
from typing import Any
from typing import Protocol

from absl import flags
from matplotlib.figure import Figure
import numpy as np

from core_jax import folder
from core_jax import program
from link_jax import entailment
from link_jax import figures
from link_jax import search

ALL = 'all domains'
Statement = Mapping[str, Any]


class Answerer(Protocol):
  """What can be probed: `lm_score.LanguageModel`, for one."""
  name: str

  def answer_probabilities(
      self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    ...


def read(run: str | pathlib.Path) -> list[dict[str, Any]]:
  """The statements of a run.

  Raises:
    ValueError: there are none.
  """
  path = pathlib.Path(run) / 'statements.jsonl'
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
    return [json.loads(line) for line in lines]
  except (OSError, ValueError) as e:
    raise ValueError(
        f'{path} cannot be read ({e}): give the folder of a finished run of '
        'link_jax.main by --run') from e


def choose(
    statements: Sequence[Statement], per_domain: int, seed: int
) -> list[Statement]:
  """At most so many of each domain and split, drawn without replacement."""
  rng, groups = np.random.default_rng(seed), {}
  for statement in statements:
    key = statement['domain'], statement['split']
    groups.setdefault(key, []).append(statement)
  return [group[i] for _, group in sorted(groups.items())
          for i in sorted(rng.permutation(len(group))[:per_domain])]


def answer(
    model: Answerer, statements: Sequence[Statement]
) -> np.ndarray:
  """Whether each of the 13 answers is right: bool [N, 13]."""
  probes = [p for statement in statements
            for p in entailment.of_statement(dict(statement))]
  right = np.zeros(len(probes), bool)
  for pair in sorted({probe.answers for probe in probes}):
    rows = [i for i, probe in enumerate(probes) if probe.answers == pair]
    p = model.answer_probabilities(
        [f'{probes[i].prompt} Answer:' for i in rows],
        [f' {word}' for word in pair])
    # Who says neither is wrong.
    right[rows] = (np.argmax(p, axis=1) == [probes[i].label for i in rows]) & (
        np.max(p, axis=1) > 0)
  return right.reshape(-1, entailment.NUM_TEMPLATES)


def table(
    statements: Sequence[Statement], right: np.ndarray
) -> dict[str, dict[str, entailment.Accuracy]]:
  """Domain, or all -> split -> accuracies."""
  domains = sorted({statement['domain'] for statement in statements})
  return {
      domain: {
          split: entailment.accuracy(right[[
              statement['split'] == split and domain in (
                  ALL, statement['domain']) for statement in statements]])
          for split in search.SPLITS}
      for domain in (ALL, *domains)}


def markdown(found: Mapping[str, Mapping[str, entailment.Accuracy]]) -> str:
  """A row for each domain and split."""
  numbers = [str(i + 1) for i in range(entailment.NUM_TEMPLATES)]
  lines = [f'| | | n | mean | all 13 | {" | ".join(numbers)} |',
           '|---' * (len(numbers) + 5) + '|']
  for domain, splits in found.items():
    for split, a in splits.items():
      cells = ' | '.join(f'{x:.2f}' for x in a.templates)
      lines.append(f'| {domain} | {split} | {a.num_statements} | {a.mean:.3f} '
                   f'| {a.all_right:.3f} | {cells} |')
  return '\n'.join(lines)


def draw(
    path: pathlib.Path,
    found: Mapping[str, Mapping[str, entailment.Accuracy]], name: str,
) -> None:
  """Accuracy by template, head and tail, over all domains."""
  canvas = Figure((6.4, 3.2), layout='constrained')
  ax, x = canvas.subplots(), np.arange(entailment.NUM_TEMPLATES) + 1
  for shift, color, split in zip(
      (-.2, .2), (figures.HEAD, figures.TAIL), search.SPLITS, strict=True):
    ax.bar(x + shift, found[ALL][split].templates, 0.4, color=color,
           label=split)
  ax.axhline(0.5, color='#888888', linewidth=0.8, linestyle=':')
  ax.set(xlabel='template', ylabel='right answers', ylim=(0, 1), xticks=x)
  ax.set_title(f'{name}, 13 forms of each statement', loc='left', fontsize=9)
  ax.legend(frameon=False, fontsize=8)
  path.parent.mkdir(exist_ok=True)
  canvas.savefig(path, dpi=150)


def probe(
    model: Answerer, run: str, per_domain: int, seed: int
) -> dict[str, dict[str, entailment.Accuracy]]:
  """Asks, writes table and figure into the run's folder, returns the table."""
  statements = choose(read(run), per_domain, seed)
  found = table(statements, answer(model, statements))
  stem = 'probe_' + re.sub(r'[^\w.-]+', '_', model.name)
  as_json = {domain: {split: a._asdict() for split, a in splits.items()}
             for domain, splits in found.items()}
  folder.write_text(
      pathlib.Path(run) / f'{stem}.json', json.dumps(as_json, indent=2) + '\n')
  draw(pathlib.Path(run) / 'figures' / f'{stem}.png', found, model.name)
  return found


def main():
  read(_RUN.value)  # Before the weights are.
  model = _load(_MODEL.value)
  print(f'{_PER_DOMAIN.value} statements of each domain and split, 13 '
        f'questions each, to {model.name}', flush=True)
  print(markdown(probe(
      model, _RUN.value, _PER_DOMAIN.value, _SEED.value)))


def _load(name):
  """Weights, or what answers at --base_url."""
  if not name.startswith('http:'):
    from link_jax import lm_score  # JAX and the weights take seconds.
    return lm_score.load_scorer(name)
  if not _BASE_URL.value:
    raise ValueError(f'--model={name} needs --base_url')
  from link_jax import cache as cache_lib
  from link_jax import client as client_lib
  from link_jax import http_model
  client = client_lib.Client(
      client_lib.Endpoint(_BASE_URL.value, max_refused=_MAX_REFUSED.value),
      client_lib.Limits(max_calls=_MAX_CALLS.value),
      cache_lib.Cache(pathlib.Path(_RUN.value) / 'probe_cache.sqlite'))
  return http_model.HttpAnswers(client, name.removeprefix('http:'))


if __name__ == '__main__':
  _RUN = flags.DEFINE_string('run', None, "The run's folder.", required=True)
  _MODEL = flags.DEFINE_string(
      'model', 'smollm2', "'smollm2', a folder, a .gguf file, or http:NAME.")
  _BASE_URL = flags.DEFINE_string(
      'base_url', '', 'Of an OpenAI-compatible endpoint; its key is read from '
      'OPENAI_API_KEY.')
  _MAX_CALLS = flags.DEFINE_integer(
      'max_calls', 0, 'Of the endpoint, kept answers included; 0: no limit.')
  _MAX_REFUSED = flags.DEFINE_integer(
      'max_refused', 0, 'Questions that the endpoint may refuse; each is a '
      'wrong answer.')
  _PER_DOMAIN = flags.DEFINE_integer(
      'per_domain', 40, 'Statements of each domain and split at most.',
      lower_bound=1)
  _SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')
  program.run(main)
