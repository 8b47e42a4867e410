"""Elements: years of discovery, phase transitions, densities (mendeleev)."""

from collections.abc import Iterator

import mendeleev
import mendeleev.db

from link_jax.sources import record

_SERIES = {
    'Noble gases': 'noble gas', 'Halogens': 'halogen',
    'Alkali metals': 'alkali metal',
    'Alkaline earth metals': 'alkaline earth metal',
    'Metalloids': 'metalloid', 'Transition metals': 'transition metal',
    'Lanthanides': 'lanthanide', 'Actinides': 'actinide',
    'Nonmetals': 'reactive nonmetal',
    'Poor metals': 'post-transition metal'}
_DISPUTED = frozenset((
    'Zinc', 'Cadmium', 'Mercury', 'Germanium', 'Polonium', 'Astatine',
    'Lanthanum', 'Lutetium', 'Actinium', 'Lawrencium'))
"""Of whose series text books differ."""
ROOM_KELVIN = 298.15


def rows() -> Iterator[record.Row]:
  for element in mendeleev.get_all_elements():
    name, source = element.name.lower(), f'mendeleev:{element.atomic_number}'
    yield record.member('element', name, source)
    yield record.number('protons', name, element.atomic_number, source)
    year = element.discovery_year
    # Of the youngest and of some old ones the table's year is not the one
    # that is commonly given.
    if year and element.atomic_number <= 103:
      yield record.number('discovered', name, year, source)
      yield record.pair('discovered_in', name, str(year), source)
      yield record.member('dated_element', name, source)
      yield record.number('year', str(year), year, 'calendar')
      yield record.member('discovery_year', str(year), source)
    series = _SERIES.get(element.series)
    if series and element.atomic_number <= 103 and (
        element.name not in _DISPUTED):
      yield record.pair('series_of', name, series, source)
      yield record.member('series', series, source)
      yield record.member('sorted_element', name, source)
    yield from _phases(element, name, source)


def _phases(element, name, source):
  transitions = element.phase_transitions
  # Allotropes, or sublimation: there is no one point to speak of.
  if len(transitions) != 1 or transitions[0].allotrope or (
      element.atomic_number > 94):
    return
  melting, boiling = transitions[0].melting_point, transitions[0].boiling_point
  if melting:
    yield record.number('melts', name, melting, source)
    yield record.member('melting_element', name, source)
  if boiling:
    yield record.number('boils', name, boiling, source)
    yield record.member('boiling_element', name, source)
  if melting and melting > ROOM_KELVIN + 10 and element.density:
    yield record.number('density', name, element.density, source)
    yield record.member('solid_element', name, source)
