"""Meta-rules: one rule in general terms, many with a datatype made narrower.

  python -m link_jax.meta --rule='fears(Person P, Animal B) :-
      fears_all(Person P, Class A) & is_one_type_of(Animal B, Class A)' \\
      --variable=B --categories=bird,insect,snake \\
      --bindings='{"is_one_type_of(B, A)": "table:kind_of"}' --out=rules.json

LINK has GPT-4 name ten sub-categories of a datatype; here they are given, or
are the classes of the embedded taxonomy under one (--below=mammal). Templates
are the naive ones, '[B] fears all [A]', to be put into good English by hand.
"""

import json
import pathlib
import re
from typing import Any

from absl import flags

from core_jax import folder
from core_jax import program
from link_jax import facts as facts_lib
from link_jax import rulefile
from link_jax import rules

KIND_OF = 'kind_of:'
Entry = dict[str, Any]


def parse(text: str) -> Entry:
  """A meta-rule's JSON object.

  Args:
    text: 'conclusion(Datatype V, Datatype V) :- p(Datatype V, Datatype V) &
      q(...)'; the last word of an argument is the variable. What the
      conclusion has first is the generic subject.

  Raises:
    RuleError: it does not read so.
  """
  head, arrow, body = text.partition(':-')
  if not arrow:
    raise rules.RuleError(f"meta-rule {text!r}: there is no ':-'")
  variables = {}
  conclusion = dict([_predicate(head, variables)])
  premises = dict(_predicate(part, variables) for part in body.split('&'))
  first = next(iter(variables))
  return {
      'premise_map': premises, 'conclusion_map': conclusion,
      'variables': {name: [name, datatype, name == first, None]
                    for name, datatype in variables.items()}}


def _predicate(text, variables):
  """('p(X, Y)', its naive template); its variables go to the others."""
  match = re.fullmatch(r'\s*(\w+)\s*\(([^()]*)\)\s*', text)
  arguments = [a.split() for a in match[2].split(',')] if match else []
  if len(arguments) != 2 or not all(len(a) >= 2 for a in arguments):
    raise rules.RuleError(
        f'meta-rule: {text.strip()!r} does not read name(Datatype X, '
        'Datatype Y)')
  for *datatype, name in arguments:
    before = variables.setdefault(name, ' '.join(datatype))
    if before != ' '.join(datatype):
      raise rules.RuleError(
          f'meta-rule: {name} is both {before!r} and {" ".join(datatype)!r}')
  x, y = (a[-1] for a in arguments)
  return f'{match[1]}({x}, {y})', f'[{x}] {match[1].replace("_", " ")} [{y}]'


def expand(name: str, entry: Entry, variable: str, categories: list[str]
           ) -> dict[str, Entry]:
  """A rule for each category, in which the variable is of that category.

  Where the embedded taxonomy has the category as a class, the variable's set
  becomes its members.
  """
  if variable not in entry['variables']:
    raise rules.RuleError(f'rule {name!r}: {variable} is no variable of it')
  classes = facts_lib.embedded().tables['kind_of'].left
  found = {}
  for category in categories:
    narrow = json.loads(json.dumps(entry))
    narrow['variables'][variable][1] = category.capitalize()
    if category in classes:
      narrow.setdefault('types', {})[variable] = KIND_OF + category
    key = f'{name}_{re.sub(r"[^a-z0-9]+", "_", category.lower())}'
    rulefile.parse(key, narrow)  # raises where it cannot be searched
    found[key] = narrow
  return found


def classes_below(name: str) -> list[str]:
  """Classes of the embedded taxonomy that are kinds of one."""
  kinds = facts_lib.embedded().tables['kind_of']
  if name not in kinds.left:
    raise rules.RuleError(f'--below={name}: no class of the embedded taxonomy')
  return [kind for kind in kinds.left[name] if kind in kinds.left]


def main():
  entry = parse(_RULE.value)
  try:
    entry['bindings'] = json.loads(_BINDINGS.value)
  except ValueError as e:
    raise ValueError(f'--bindings={_BINDINGS.value}: not JSON: {e}') from e
  entry['domain'] = _DOMAIN.value
  categories = _CATEGORIES.value + (
      classes_below(_BELOW.value) if _BELOW.value else [])
  name = next(iter(entry['conclusion_map'])).split('(')[0]
  found = expand(name, entry, _VARIABLE.value, categories)
  folder.write_text(pathlib.Path(_OUT.value),
                    json.dumps(found, indent=1, ensure_ascii=False) + '\n')
  print(f'{len(found)} rules: {_OUT.value}')


if __name__ == '__main__':
  _RULE = flags.DEFINE_string('rule', None, 'The meta-rule.', required=True)
  _VARIABLE = flags.DEFINE_string(
      'variable', None, 'Whose datatype is made narrower.', required=True)
  _CATEGORIES = flags.DEFINE_list('categories', [], 'Sub-categories.')
  _BELOW = flags.DEFINE_string('below', '', 'All classes below this one.')
  _BINDINGS = flags.DEFINE_string('bindings', '{}', 'Of predicates, as JSON.')
  _DOMAIN = flags.DEFINE_string('domain', '', 'Of the rules.')
  _OUT = flags.DEFINE_string('out', None, 'File of rules.', required=True)
  program.run(main)
