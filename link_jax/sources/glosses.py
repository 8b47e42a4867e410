"""Facts that WordNet tells in its glosses.

The patterns are narrow on purpose: a gloss that hedges ('usually', 'or',
'such as') gives nothing, for a statement made of it would not be sure.
"""

from collections.abc import Iterator
import re

from link_jax.sources import record
from link_jax.sources.taxonomy import name_in_area
from link_jax.sources.wordnet import WordNet

_HEDGES = re.compile(
    r"\b(or|usually|often|sometimes|may|might|can|could|similar|like|"
    r'resembling|resembles|without|instead|such as|as|especially|not|no|'
    r'rather|e\.g|reduced|traditionally|originally|formerly|possibly|typically|various|any|'
    r'served|eaten|flavou?r|substitute|imitation|in the shape|shaped|each|'
    r'colou?r(ed)?|'
    r'family|genus|plant|tree|fruits? of|used|from|of the|for)\b')
_DISH_VERBS = re.compile(
    r'\b(made (?:of|with)|made primarily of|filled with|containing|consisting '
    r'of|stuffed with|topped with|cooked with|mixture of|prepared with|'
    r'garnished with|mixed with|covered with|of|with|and)\b')
_PLURALS = (('ies', 'y'), ('oes', 'o'), ('ves', 'f'), ('shes', 'sh'),
            ('ches', 'ch'), ('s', ''))


def singulars(word: str) -> Iterator[str]:
  """'cherries' -> 'cherries', 'cherry', 'cherrie'."""
  yield word
  for ending, other in _PLURALS:
    if word.endswith(ending) and len(word) > len(ending) + 2:
      yield word.removesuffix(ending) + other


def _phrases(text: str, longest: int = 3) -> Iterator[str]:
  words = re.findall(r"[a-z][a-z'-]*", text.lower())
  for length in range(longest, 0, -1):
    for i in range(len(words) - length + 1):
      yield ' '.join(words[i:i + length])


def _lexicon(net: WordNet, roots, words_of=None):
  """Word -> (name, offset) for what is under the roots."""
  found = {}
  for root in roots:
    for offset in [root, *net.below(root)]:
      if (name := name_in_area(net, offset)):
        for word in net.synsets[offset].words:
          if net.is_first(word, offset):
            found.setdefault(word.lower(), (name, offset))
  return found


def ingredients(net: WordNet) -> Iterator[record.Row]:
  """`ingredient_of`: an ingredient and a dish whose gloss names it."""
  foods = _lexicon(net, (net.find('food', 1), net.find('food', 2)))
  # Too general to be an ingredient, or a word that means more than its food.
  for word in ('food', 'dish', 'side', 'course', 'meal', 'meat', 'cut', 'roll',
               'filling', 'paste', 'mix', 'stock', 'round', 'stuffing', 'cake',
               'bread', 'pastry', 'dough', 'sauce', 'soup', 'stew', 'salad',
               'candy', 'dessert', 'sandwich', 'cookie', 'pudding', 'drink',
               'produce', 'greens', 'batter', 'spread', 'dressing', 'topping',
               'relish', 'garnish', 'beverage', 'ration', 'diet', 'feed',
               'mixture', 'flavorer', 'flavoring', 'ingredient', 'condiment',
               'pan', 'orange', 'lime', 'date', 'chop', 'joint', 'game',
               'water', 'ice', 'snack', 'fare', 'vegetable', 'fruit',
               'sweet', 'concoction', 'pie', 'crust', 'confection', 'mince',
               'vitamin e', 'flavorer', 'puree', 'sour', 'bitter', 'crisp',
               'chips', 'chip', 'soubise', 'bleu', 'citrus', 'corn'):
    foods.pop(word, None)
  dishes = dict.fromkeys(
      o for word, sense in (
          ('dish', 2), ('baked goods', 1), ('sweet', 3), ('dessert', 1),
          ('sauce', 1), ('beverage', 1), ('soup', 1), ('condiment', 1))
      for o in net.below(net.find(word, sense)))
  drinks = set(net.below(net.find('beverage')))
  for offset in dishes:
    dish = name_in_area(net, offset)
    gloss = re.sub(r'\([^)]*\)', ' ', net.synsets[offset].definition)
    clause = gloss.split(';')[0].replace('/', ' ')
    if dish is None or _HEDGES.search(clause):
      continue
    start = _DISH_VERBS.search(clause)
    if not start:
      continue
    text, seen = clause[start.start():], set()
    for phrase in _phrases(text):
      if any(re.search(rf'\b{re.escape(phrase)}\b', other) for other in seen):
        continue  # a part of a longer name that was taken
      for word in singulars(phrase):
        if word in foods and foods[word][1] not in (
            offset, *net.above(offset)):
          seen.add(phrase)
          name, at = foods[word]
          yield record.pair('ingredient_of', name, dish, f'wordnet:{offset}')
          yield record.member('mixed_drink' if offset in drinks else 'dish',
                              dish, f'wordnet:{offset}')
          yield record.member('ingredient', name, f'wordnet:{at}')
          break


def symptoms(net: WordNet) -> Iterator[record.Row]:
  """`symptom_of`: a disease and a symptom its gloss says it is marked by."""
  lexicon = _lexicon(net, [net.find('symptom', 1)])
  for word in ('fever', 'cough', 'vomiting', 'diarrhea', 'jaundice', 'rash',
               'paralysis', 'convulsion', 'fatigue', 'headache', 'nausea',
               'dizziness', 'pain', 'itching', 'delirium', 'insomnia',
               'hallucination', 'chill', 'swelling'):
    lexicon.setdefault(word, (word, net.find(word)))
  for word in ('sign', 'mark', 'symptom', 'effect', 'cut', 'hives', 'spot',
               'asthma', 'water', 'head', 'eruption', 'prodrome', 'heat',
               'scar', 'atrophy', 'floater', 'floaters', 'muscae volitantes',
               'musca volitans', 'spots', 'scarring', 'exanthem'):
    lexicon.pop(word, None)
  ill = dict.fromkeys(
      o for word, sense in (('illness', 1), ('mental disorder', 1))
      for o in net.below(net.find(word, sense)))
  for offset in net.below(net.find('animal disease')):
    ill.pop(offset, None)
  for offset in ill:
    disease = name_in_area(net, offset)
    marked = re.search(
        r'(?:characterized by|marked by|symptoms include|with symptoms of)'
        r'(?! (?:lack|absence|loss|lowered|reduced|low|decreased|no))([^;]*)',
        net.synsets[offset].definition)
    if disease is None or not marked or re.search(
        r'\b(or|without|absence|no|not|followed|lack|sometimes|may|can|loss|'
        r'reduced|fear|inability)\b', marked[1]):
      continue
    seen = set()
    for phrase in _phrases(marked[1], 2):
      for word in singulars(phrase):
        if word in lexicon and lexicon[word][0].lower() not in disease.lower():
          name = lexicon[word][0]
          if name not in seen:
            seen.add(name)
            yield record.pair(
                'symptom_of', disease, name, f'wordnet:{offset}')
            yield record.member('ill', disease, f'wordnet:{offset}')
            yield record.member('symptom', name, f'wordnet:{lexicon[word][1]}')
          break


def treatments(net: WordNet) -> Iterator[record.Row]:
  """`treats`: a drug and a disease its gloss says it is used against."""
  lexicon = _lexicon(
      net, [net.find('ill health', 1), net.find('symptom', 1)])
  for word in ('disease', 'condition', 'disorder', 'illness', 'infection',
               'complaint', 'inflammation', 'syndrome', 'fit', 'cold',
               'claudication', 'lameness', 'gameness'):
    lexicon.pop(word, None)
  for offset in net.below(net.find('drug', 1)):
    drug, gloss = name_in_area(net, offset), net.synsets[offset].definition
    used = re.search(r'(?<!formerly )(?:used to treat|used in treating|used in '
                     r'the treatment of|used to relieve)([^;]*)', gloss)
    if drug is None or ' cocktail' in drug or ' derivative' in drug or (
        not used) or re.search(
        r'formerly|once|\b(or prevent|experimental|side effect|not)\b', gloss):
      continue
    text = re.sub(r'\([^)]*\)', ' ', used[1])
    seen = set()
    for phrase in _phrases(text, 3):
      if any(phrase in other for other in seen):
        continue
      for word in singulars(phrase):
        if word in lexicon:
          seen.add(phrase)
          name, at = lexicon[word]
          yield record.pair('treats', drug, name, f'wordnet:{offset}')
          yield record.member('remedy', drug, f'wordnet:{offset}')
          yield record.member('treated', name, f'wordnet:{at}')
          break


def devices(net: WordNet) -> Iterator[record.Row]:
  """`device_for`: a device and what its gloss says it is for."""
  for offset in net.below(net.find('instrumentality', 3)):
    name = name_in_area(net, offset)
    found = re.fullmatch(
        r'(?:an?|any|the)? ?[a-z -]*\b(?:instrument|device|tool|machine|'
        r'gauge|meter|apparatus|implement|utensil|telescope|microscope|'
        r'thermometer|vehicle|container|vessel|knife|saw|pump|furnace|scale)'
        r'(?: that is)?(?: used)? for ((?:\w+ing)\b[a-z ,-]{4,60})',
        net.synsets[offset].definition.strip())
    if name is None or name[0].isupper() or not found or re.search(
        r'\b(or|which|that|his|her|you|its?|their|this|someone|something|while|'
        r'when|consisting|objects?|substance)\b', found[1]):
      continue
    purpose = found[1].strip()
    yield record.pair('device_for', name, purpose, f'wordnet:{offset}')
    yield record.member('tool', name, f'wordnet:{offset}')
    yield record.member('purpose', purpose, f'wordnet:{offset}')


def specialists(net: WordNet) -> Iterator[record.Row]:
  """`expert_in`: a profession and its field."""
  for offset in net.below(net.find('person', 1)):
    name = name_in_area(net, offset)
    found = re.fullmatch(
        r'(?:an?|someone|the|a person)?[a-z -]*?(?:specialist in|expert on|'
        r'expert in|who studies|specializes in|specializing in|who specializes '
        r'in|skilled in) (?:the study of )?([a-z ,-]{4,60})',
        net.synsets[offset].definition.strip())
    if name is None or name[0].isupper() or not found or re.search(
        r'\b(or|which|that|his|her|who|its?|their|this|someone|branch of|any|'
        r'particular|settles|various|such)\b', found[1]):
      continue
    field = found[1].strip().removeprefix('the study of ')
    yield record.pair('expert_in', name, field, f'wordnet:{offset}')
    yield record.member('expert', name, f'wordnet:{offset}')
    yield record.member('field', field, f'wordnet:{offset}')


def phobias(net: WordNet) -> Iterator[record.Row]:
  """`fear_of`: a phobia and the thing feared, and `fear_of_kind` where that
  is a class of animals."""
  animals = _lexicon(net, [net.find('animal', 1)])
  for offset in net.below(net.find('phobia', 1)):
    name, gloss = name_in_area(net, offset), net.synsets[offset].definition
    found = re.fullmatch(r'a morbid (?:fear|dread) of ([a-z0-9 -]+)', gloss)
    if name is None or not found or re.search(r'\b(or|your)\b', found[1]):
      continue
    thing = found[1]
    yield record.pair('fear_of', name, thing, f'wordnet:{offset}')
    yield record.member('phobia', name, f'wordnet:{offset}')
    yield record.member('feared', thing, f'wordnet:{offset}')
    for word in singulars(thing):
      if word in animals:
        yield record.pair(
            'fear_of_kind', name, animals[word][0], f'wordnet:{offset}')
        yield record.member('feared_kind', animals[word][0],
                            f'wordnet:{animals[word][1]}')


_QUANTITIES = {
    'force': 'a force', 'electric current': 'an electric current',
    'pressure': 'a pressure', 'radioactivity': 'a radioactivity',
    'length': 'a length', 'distance': 'a length', 'area': 'an area',
    'volume': 'a volume', 'capacity': 'a volume', 'weight': 'a mass',
    'mass': 'a mass', 'resistance': 'an electric resistance',
    'power': 'a power', 'energy': 'an energy', 'work': 'an energy',
    'inductance': 'an inductance', 'capacitance': 'a capacitance',
    'conductance': 'an electric conductance', 'charge': 'an electric charge',
    'temperature': 'a temperature', 'luminous flux': 'a luminous flux'}
"""A gloss's quantity -> the one that it is, with its article: no two of the
values are the same quantity."""


def units(net: WordNet) -> Iterator[record.Row]:
  """`unit_of`: a unit and the quantity that its gloss says it measures."""
  for offset in net.below(net.find('unit of measurement', 1)):
    name, gloss = name_in_area(net, offset), net.synsets[offset].definition
    found = re.search(r'\bunit of (?:measurement of |measure of |the )?([a-z ]+'
                      r'?)(?: equal| used| by| in| for|;|,|$| \(| that)', gloss)
    if name is None or not found or ' or ' in gloss.split(' equal')[0] or (
        re.search(r'\bunit\b|\.| per ', name.lower())):
      continue
    quantity = _QUANTITIES.get(found[1].strip())
    if quantity:
      yield record.pair('unit_of', name, quantity, f'wordnet:{offset}')
      yield record.member('unit', name, f'wordnet:{offset}')
      yield record.member('quantity', quantity, f'wordnet:{offset}')


def rows(net: WordNet) -> Iterator[record.Row]:
  for read in (ingredients, symptoms, treatments, devices, specialists,
               phobias, units):
    yield from read(net)
