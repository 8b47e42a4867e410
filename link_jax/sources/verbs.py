"""What acts entail and cause, from WordNet's verbs, as past participles."""

from collections.abc import Iterator
import re

import lemminflect

from link_jax.sources import record
from link_jax.sources.wordnet import CAUSES
from link_jax.sources.wordnet import ENTAILS
from link_jax.sources.wordnet import HYPERNYM
from link_jax.sources.wordnet import WordNet

_OBJECTS = ((2, ''), (9, ' somebody'), (8, ' something'))
"""Frame -> the object that makes a whole of its verb: 'Somebody ----s',
'Somebody ----s somebody', 'Somebody ----s something'."""
_WITH_OBJECT = frozenset((8, 9, 10, 11))
_PARTICLES = frozenset(
    'up down in out off on over away back through to at about ahead along '
    'around behind by for into with together fast asleep'.split())
_VAGUE = frozenset((
    'act', 'be', 'necked', 'treat', 'construct', 'lie', 'supply', 'give',
    'have', 'change', 'move', 'happen', 'do', 'get', 'go', 'make',
    'change state', 'travel', 'breathe', 'interact', 'behave', 'turn',
    'discolour', 'rise', 'stay', 'conjoin', 'increase', 'decrease',
    'change magnitude', 'change shape', 'change integrity', 'convert'))
UNSURE = frozenset((
    'brewed', 'queued up', 'split up', 'bought', 'breathed', 'mastered',
    'left behind', 'crouched', 'seduced', 'shopped', 'knit', 'sewn',
    'matured', 'telephoned', 'bid', 'hunched', 'caught up', 'crusted',
    'sublimed', 'wined and dined', 'looked', 'sobered up', 'stood',
    'peaked', 'bustled', 'zigzagged', 'pulled through', 'kept up',
    'taken the field', 'watched', 'looked on', 'fled', 'tripped', 'fought',
    'menstruated', 'scatted', 'doted', 'doubted', 'estimated', 'exerted',
    'abdicated', 'dusted', 'encored', 'destructed', 'reneged', 'proof read',
    'buttoned', 'postponed', 'scarred', 'amputated', 'unzipped', 'effected',
    'limbered', 'alcoholized', 'chilled', 'leveraged', 'secreted',
    'tamponed', 'whiteouted', 'generaled', 'remaindered', 'lowballed',
    'applauded', 'financed', 'reaped', 'curried', 'rippled', 'pearled',
    'worsted', 'privileged', 'bravoed', 'dissatisfied', 'smooched',
    'footed', 'punished', 'weaned', 'challenged', 'licensed', 'arraigned',
    'sentenced', 'contemned', 'discontented', 'popped', 'approached',
    'hit the books', 'scored', 'sat', 'listened'))
"""Acts of which an entailment that WordNet gives is not sure, or in a sense
that the word alone does not tell."""
_CAUSED = {
    'killed': 'died', 'taught': 'learned', 'seated': 'sat', 'lifted': 'risen',
    'lowered': 'descended', 'silenced': 'hushed', 'fed': 'eaten',
    'shown': 'seen', 'pensioned off': 'retired', 'elated': 'rejoiced',
    'angered': 'seen red', 'reminded': 'remembered', 'dropped': 'fallen',
    'tipped over': 'overturned', 'drowned': 'died', 'woken': 'awoken'}


def participle(verb: str) -> str | None:
  """'throw up' -> 'thrown up'; None where the verb is not the first word."""
  first, _, rest = verb.partition(' ')
  if '-' in verb or (rest and rest not in _PARTICLES):
    return None
  found = lemminflect.getInflection(first, tag='VBN', inflect_oov=False)
  return f'{found[0]} {rest}'.strip() if found else None


def _name(net, offset):
  """The first verb, if it means this first of all."""
  word = net.synsets[offset].words[0]
  if not net.is_first(word, offset) or word in _VAGUE:
    return None
  return participle(word)


def _with_object(net, offset, act, other, whole):
  """Both with the same object, or None where they do not take the same."""
  shared = net.synsets[offset].frames & net.synsets[other].frames
  for frame, thing in _OBJECTS:
    if frame in shared and not (thing and ' ' in act + whole):
      return act + thing, whole + thing
  return None


def rows(net: WordNet) -> Iterator[record.Row]:
  for offset in net.synsets:
    source = f'wordnet-verb:{offset}'
    act = _name(net, offset)
    if act and act not in UNSURE and net.num_senses(
        net.synsets[offset].words[0]) <= 4:
      for name, symbol in (('entails', ENTAILS), ('manner_of', HYPERNYM)):
        for other in net.synsets[offset].follow(symbol):
          whole = _name(net, other)
          both = whole and whole != act and _with_object(
              net, offset, act, other, whole)
          if both:
            yield from _both_ways(name, both, source)
    yield from _causes(net, offset, source)


def _both_ways(name, both, source):
  """As it is affirmed, and as it is denied: 'somebody', 'anybody'."""
  denied = [re.sub(r' some(?=body|thing)', ' any', verb) for verb in both]
  for table, (act, whole) in ((name, both), (f'{name}_denied', denied)):
    yield record.pair(table, act, whole, source)
    yield record.member(f'{table}_act', act, source)
    yield record.member(f'{table}_whole', whole, source)


def _causes(net, offset, source):
  synset = net.synsets[offset]
  done = {participle(word) for word in synset.words}
  for other in synset.follow(CAUSES):
    effects = {participle(word) for word in net.synsets[other].words}
    for act, effect in sorted(_CAUSED.items()):
      if act in done and effect in effects and synset.frames & _WITH_OBJECT:
        yield record.pair('causes', act, effect, source)
        yield record.member('causes_act', act, source)
        yield record.member('causes_effect', effect, source)
