"""Kinds and classes: hyponymy of WordNet's nouns, area by area."""

from collections.abc import Iterator
import re

from link_jax.sources import record
from link_jax.sources.wordnet import WordNet

AREAS = {
    'animal': ('animal', 1, 25),
    'plant': ('plant', 2, 25),
    'beverage': ('beverage', 1, 4),
    'drug': ('drug', 1, 4),
    'instrument': ('musical instrument', 1, 4),
    'artifact': ('instrumentality', 3, 10),
    'garment': ('clothing', 1, 4),
    'disease': ('disease', 1, 5),
    'sport': ('sport', 1, 4),
    'dance': ('dancing', 1, 4),
    'food': ('food', 1, 5),
    'food2': ('food', 2, 5),
}
"""Area -> word and sense of its root, and how many kinds make a class."""
_TOO_WIDE = frozenset((
    'hawk', 'cattle', 'air bag', 'no-hit game', 'pantyhose', 'lingerie',
    'underpants', 'chordate', 'vertebrate', 'craniate', 'invertebrate',
    'placental', 'eutherian', 'aquatic vertebrate', 'vascular plant',
    'tracheophyte', 'device', 'mechanism', 'instrumentality', 'implement',
    'equipment', 'container', 'conveyance', 'system', 'medium', 'means',
    'foodstuff', 'nutriment', 'course', 'unit', 'young', 'offspring',
    'male', 'female', 'hybrid', 'domestic animal', 'pest', 'work animal',
    'larva', 'varmint', 'critter', 'creepy-crawly', 'stunt', 'survivor',
    'range animal', 'weed', 'herb', 'vine', 'perennial', 'annual',
    'biennial', 'aquatic', 'cultivar', 'wilding', 'acrogen', 'hygrophyte',
    'gametophyte', 'sporophyte', 'escape', 'antineoplastic drug',
    'roll of tobacco', 'rassling', 'dose', 'curative',
    'controlled substance', 'tea leaf', 'plant life', 'getup', 'accessory',
    'carnivorous bat', 'young mammal', 'food fish', 'drinking water',
    'milk', 'organ stop', 'organ pipe', 'reed stop', 'flue stop',
    'diapason', 'stop', 'reed pipe', 'rolling stock', 'gear', 'van',
    'fleet', 'armada', 'navy', 'flagship', 'bedstead', 'hardware',
    'military uniform', 'communicable disease', 'metatherian',
    'cultivated plant', 'house plant', 'garden plant', 'ornamental',
    'poisonous plant', 'crop', 'endemic'))
"""Classes that say little, or whose members are only mostly members."""
GROUPS = {
    'allergen': (
        'dairy product', 'shellfish', 'seafood', 'citrus', 'berry', 'bean',
        'solanaceous vegetable', 'edible fruit', 'cheese', 'nut'),
    'shunned_food': (
        'cheese', 'dairy product', 'meat', 'pork', 'shellfish', 'seafood',
        'vegetable', 'solanaceous vegetable', 'cruciferous vegetable',
        'edible fruit', 'citrus', 'berry', 'bread', 'sausage', 'flour',
        'sugar', 'syrup', 'root vegetable', 'bean', 'dried fruit',
        'saltwater fish', 'condiment', 'sauce', 'herring'),
    'shunned_drink': (
        'alcohol', 'liquor', 'wine', 'brandy', 'whiskey', 'liqueur', 'beer',
        'fruit juice', 'citrus', 'sugar', 'syrup', 'dairy product', 'coffee',
        'fortified wine', 'edible fruit'),
    'drug_group': (
        'penicillin', 'cephalosporin', 'antibiotic', 'sulfa drug', 'opiate',
        'barbiturate', 'salicylate', 'nonsteroidal anti-inflammatory',
        'local anesthetic', 'antihistamine', 'benzodiazepine', 'tricyclic',
        'antiviral', 'beta blocker', 'ACE inhibitor', 'antidepressant',
        'sedative', 'antihypertensive', 'analgesic', 'diuretic drug',
        'anticonvulsant', 'antimalarial', 'tranquilizer', 'vasodilator',
        'monoamine oxidase inhibitor', 'antiprotozoal', 'amphetamine'),
    'owned_class': (
        'weapon', 'vehicle', 'boat', 'knife', 'hand tool', 'telescope', 'chair',
        'bed', 'lamp', 'clock', 'timepiece', 'firearm', 'gun', 'sword', 'truck',
        'camera', 'drinking glass', 'bottle', 'bell', 'wagon', 'ship',
        'aircraft', 'airplane', 'sailing vessel', 'measuring instrument',
        'kitchen utensil', 'optical instrument', 'power tool', 'basket',
        'wheeled vehicle', 'microscope', 'thermometer', 'warship', 'pistol',
        'horse-drawn vehicle', 'motor vehicle', 'cart', 'lens'),
    'garment_group': (
        'coat', 'dress', 'hat', 'headdress', 'jacket', 'shirt', 'cap', 'suit',
        'uniform', 'footwear', 'sweater', 'scarf', 'hosiery', 'underwear',
        'robe', 'neckwear', 'nightwear', 'protective garment', 'vestment',
        'trouser', 'gown', 'overgarment', 'undergarment'),
    'feared_class': (
        'dog', 'snake', 'spider', 'bird', 'insect', 'fish', 'bat', 'beetle',
        'rodent', 'lizard', 'horse', 'shark', 'reptile', 'arachnid', 'frog',
        'butterfly', 'moth', 'terrier', 'hound', 'seabird', 'bird of prey',
        'mollusk', 'crustacean', 'worm', 'duck', 'cetacean'),
}
"""Classes that a person shuns or lacks, chosen so that a sentence on them
reads as one."""
DISJOINT_ANIMALS = (
    'mammal', 'bird', 'reptile', 'amphibian', 'fish', 'insect', 'arachnid',
    'crustacean', 'mollusk')


_RANK = re.compile(
    '(genus|family|order|class|subclass|suborder|subfamily|phylum|kingdom|'
    'superorder|division|infraclass|superclass|subphylum|section) ')


def name_in_area(net: WordNet, offset: str) -> str | None:
  """A value's name, or None where another sense would be understood."""
  name = net.name(offset)
  if name is None or len(name) < 3 or name in _TOO_WIDE:
    return None
  if any(_RANK.match(word) for word in net.synsets[offset].words):
    return None
  latin = re.fullmatch('[A-Z][a-z]+ [a-z]+', name) and (
      name != net.synsets[offset].words[0])
  return None if latin else name


def _is_plural(name):
  """'trousers', which take no article."""
  return name.endswith('s') and not name.endswith(('ss', 'us', 'is'))


def kinds(net: WordNet, area: str, root: str, least: int
          ) -> Iterator[record.Row]:
  """Rows of `kind_of`, and the sets `<area>` and `<area>_class`."""
  inside = [root, *net.below(root)]
  if area == 'drug':  # WordNet counts drinks among drugs of abuse.
    other = {*net.below(net.find('alcohol', 1)), net.find('alcohol', 1)}
    inside = [o for o in inside if o not in other]
  names = {o: n for o in inside if (n := name_in_area(net, o))
           and not (area in ('garment', 'artifact') and _is_plural(n))}
  classes = {o: n for o, n in names.items() if len(net.below(o)) >= least}
  used = set()
  for offset, name in names.items():
    source = f'wordnet:{offset}'
    parents = [c for c in net.above(offset) if c in classes]
    if not parents:
      continue
    yield record.member(area, name, source)
    for parent in parents:
      if names[parent].lower() != name.lower():
        used.add(parent)
        yield record.pair('kind_of', name, names[parent], source)
  for offset in used:
    yield record.member(f'{area}_class', names[offset], f'wordnet:{offset}')


def rows(net: WordNet) -> Iterator[record.Row]:
  for area, (word, sense, least) in AREAS.items():
    yield from kinds(net, area, net.find(word, sense), least)
  for group, names in GROUPS.items():
    for name in names:
      yield record.member(group, name, f'wordnet:{net.find(name)}')
  for name in DISJOINT_ANIMALS:
    yield record.member('animal_order', name, f'wordnet:{net.find(name)}')
