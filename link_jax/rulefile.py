"""The file of rules: what is published as rules.json, read and checked.

A JSON object, rule's name to rule, and a rule is an object of

  premise_map, conclusion_map  'name(X, Y)' -> English with slots [X], [Y]
  variables                    X -> [X, datatype, is_generic, nodetype]
  domain                       a text

and, of ours, if a knowledge source is to decide the rule,

  bindings                     'name(X, Y)' -> a relation (see relations.py)
  types                        X -> a set of the source
"""

import functools
import json
import pathlib
import re
from typing import Any

from link_jax import graphs
from link_jax import rules

_PREDICATE = re.compile(r'\s*([^()\s][^()]*?)\s*\(([^()]*)\)\s*')
_FIELDS = {'premise_map', 'conclusion_map', 'variables'}
_OPTIONAL = {'domain', 'bindings', 'types'}


def load(path: str | pathlib.Path) -> dict[str, rules.Rule]:
  """Rules of a file, by name, in its order.

  Raises:
    rules.RuleError: names the rule, the field and what would be right.
  """
  path = pathlib.Path(path)
  try:
    text = path.read_text(encoding='utf-8')
  except OSError as e:
    raise rules.RuleError(f'rules file {path}: {e}') from e
  try:
    entries = json.loads(text, object_pairs_hook=_unique)
  except ValueError as e:
    raise rules.RuleError(f'{path}: not a JSON object of rules: {e}') from e
  if not isinstance(entries, dict) or not entries:
    raise rules.RuleError(f'{path}: not a JSON object of rules, name to rule')
  return {name: parse(name, entry) for name, entry in entries.items()}


def _unique(pairs):
  """A JSON object; a name that is there twice would be lost silently."""
  names = [name for name, _ in pairs]
  if twice := sorted({n for n in names if names.count(n) > 1}):
    raise ValueError(f'{twice[0]!r} is there twice in one object')
  return dict(pairs)


def parse(name: str, entry: Any) -> rules.Rule:
  """One rule from its JSON object, checked."""
  fail = functools.partial(_fail, name)
  if not isinstance(entry, dict):
    fail('', 'is no object')
  if missing := sorted(_FIELDS - entry.keys()):
    fail(missing[0], 'is missing')
  if unknown := sorted(entry.keys() - _FIELDS - _OPTIONAL):
    fail(unknown[0], f'is not known; there are {sorted(_FIELDS | _OPTIONAL)}')
  for field in (_FIELDS | {'bindings', 'types'}) & entry.keys():
    if not isinstance(entry[field], dict):
      fail(field, 'is no object')
  for field in {'bindings', 'types'} & entry.keys():
    for key, value in entry[field].items():
      if not isinstance(value, str):
        fail(field, f'{key} has {value!r}, not a text')
  if len(entry['conclusion_map']) != 1:
    fail('conclusion_map', f'has {len(entry["conclusion_map"])} conclusions; '
         'a rule has one')
  declared = _declared(fail, entry['variables'])
  read = functools.partial(
      _read_predicate, fail, declared, entry.get('bindings', {}))
  conclusion, = (read('conclusion_map', *item, 'conclusion')
                 for item in entry['conclusion_map'].items())
  premises = tuple(read('premise_map', *item, '')
                   for item in entry['premise_map'].items())
  known = {p.symbol for p in (*premises, conclusion)}
  bound = {_normal(symbol) for symbol in entry.get('bindings', {})}
  if stray := sorted(bound - known):
    fail('bindings', f'{stray[0]} is no predicate of the rule')
  if stray := sorted(entry.get('types', {}).keys() - declared.keys()):
    fail('types', f'{stray[0]} is no variable of the rule')
  rule = rules.Rule(
      name, str(entry.get('domain', '')),
      _with_roles(declared, premises, conclusion, entry.get('types', {})),
      premises, conclusion)
  graphs.check(rule)
  return rule


def _fail(rule, field, message):
  where = f', {field}' if field else ''
  raise rules.RuleError(f'rule {rule!r}{where}: {message}')


def _declared(fail, variables):
  """Name -> (datatype, generic, nodetype), checked."""
  found = {}
  for key, value in variables.items():
    if not (isinstance(value, list) and len(value) == 4):
      fail('variables', f'{key} is {value!r}, not [name, datatype, is_generic, '
           'nodetype]')
    name, datatype, generic, nodetype = value
    if not (isinstance(key, str) and re.fullmatch('[A-Z]', key)):
      fail('variables', f'{key!r} is no single capital letter')
    if name != key:
      fail('variables', f'{key} calls itself {name!r}')
    if not isinstance(datatype, str) or not datatype:
      fail('variables', f'{key} has the datatype {datatype!r}, not a text')
    if not isinstance(generic, bool):
      fail('variables', f'{key} has is_generic {generic!r}, not true or false')
    if nodetype not in (None, 'factual'):
      fail('variables', f"{key} has the nodetype {nodetype!r}, not null or "
           "'factual'")
    found[key] = datatype, generic, nodetype
  return found


def _normal(symbol):
  """'p(A,B)' -> 'p(A, B)'; what is no predicate stays."""
  match = _PREDICATE.fullmatch(symbol)
  if not match:
    return symbol
  arguments = ', '.join(a.strip() for a in match[2].split(','))
  return f'{match[1]}({arguments})'


def _read_predicate(fail, declared, bindings, field, symbol, template, kind):
  match = _PREDICATE.fullmatch(symbol)
  if not match:
    fail(field, f'{symbol!r} does not read name(X, Y)')
  arguments = tuple(a.strip() for a in match[2].split(','))
  if len(arguments) != 2:
    fail(field, f'{symbol} has {len(arguments)} argument'
         f'{"s" * (len(arguments) != 1)}; a predicate has two')
  for argument in arguments:
    if argument not in declared:
      fail(field, f'{symbol}: {argument!r} is not among the variables '
           f'{sorted(declared)}')
  if not isinstance(template, str):
    fail(field, f'{symbol}: its template is {template!r}, not a text')
  slots = {slot for _, slot in rules.SLOT.findall(template)}
  for slot in sorted(slots ^ set(arguments)):
    fail(field, f'{symbol}: the template {template!r} ' + (
        f'has a slot [{slot}] that is no argument' if slot in slots
        else f'has no slot [{slot}]'))
  if not kind:
    kind = ('information' if any(declared[a][1] for a in arguments)
            else 'constraint')
  by_symbol = {_normal(s): b for s, b in bindings.items()}
  return rules.Predicate(match[1], arguments, template, kind,
                   by_symbol.get(f'{match[1]}({", ".join(arguments)})', ''))


def _with_roles(declared, premises, conclusion, types):
  beside = {argument for p in premises if p.kind == 'information'
            for argument in p.arguments} | set(conclusion.arguments)
  return tuple(
      rules.Variable(name, datatype,
               'generic' if generic else
               'information' if name in beside else nodetype or 'constraint',
               types.get(name, ''))
      for name, (datatype, generic, nodetype) in declared.items())
