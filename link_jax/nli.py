"""A critic of natural language inference: does a definition entail a claim?

The model is a user's: a folder of BERT or RoBERTa, trained on such pairs, as
transformers saves it. Such critics are known to accept too much; see what
`python -m link_jax.calibrate --critic=nli:FOLDER` says before trusting one.
"""

from collections.abc import Callable
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np
import tokenizers

from core_jax import mesh as mesh_lib
from link_jax import critic as critic_lib
from link_jax import encoder
from link_jax import facts as facts_lib
from link_jax import weights
from link_jax import weights_files

BATCH, SHORTEST = 32, 16  # pairs of a batch, on each device; tokens of a row
MOST_SENSES = 3  # of a word whose definitions are read
MUST_BE = {'hidden_act': ('gelu',), 'position_embedding_type': ('absolute',)}

# A leaf of the params -> the published tensors that make it, side by side.
_NAMES = {
    ('embedding',): 'embeddings.word_embeddings',
    ('positions',): 'embeddings.position_embeddings',
    ('segments',): 'embeddings.token_type_embeddings'}
_LAYER = {
    'out': 'attention.output.dense',
    'attention_norm': 'attention.output.LayerNorm',
    'up': 'intermediate.dense', 'down': 'output.dense',
    'mlp_norm': 'output.LayerNorm'}
_HEADS = {
    'bert': {'pool': 'pooler.dense', 'classify': 'classifier'},
    'roberta': {'pool': 'classifier.dense', 'classify': 'classifier.out_proj'}}
_HEADS['xlm-roberta'] = _HEADS['roberta']
PREFIXES = ('bert.', 'roberta.')


class Classifier(NamedTuple):
  """A model of pairs of texts, on the host."""
  name: str
  fingerprint: str  # sha256 of its files
  config: encoder.Config
  params: Any  # as in encoder.py; numpy, float32
  tokenizer: tokenizers.Tokenizer
  entailment: int  # the label's number


def load(folder: str | pathlib.Path) -> Classifier:
  """A classifier from its folder.

  Raises:
    ValueError: it cannot be read, is of another family, has no label
      'entailment', or lacks tensors; the message names file and field.
  """
  folder = pathlib.Path(folder).absolute()
  saved = weights_files.read_json(folder / 'config.json')
  kind = saved.get('model_type')
  if kind not in _HEADS:
    raise ValueError(f'{folder}/config.json: model_type={kind!r}; '
                     f'{", ".join(map(repr, _HEADS))} are known')
  entailment = _entailment(saved, folder)
  config = _config(saved, kind, folder)
  files = weights_files.files_of(folder)
  tensors = {_bare(name): get for name, get in
             weights_files.open_tensors(files).items()}
  tokenizer = weights_files.read_tokenizer(folder / 'tokenizer.json')
  weights_files.check_vocabulary(tokenizer, config, folder)
  # Of a long pair the premise is cut, and not what is asked about it.
  tokenizer.enable_truncation(config.context, strategy='only_first')
  params = weights.assemble(
      _table(kind), encoder.shapes(config), tensors, folder, transposed=True)
  return Classifier(
      folder.name, weights.fingerprint(
          (folder / 'config.json', folder / 'tokenizer.json', *files)),
      config, params, tokenizer, entailment)


def _entailment(saved, folder):
  """The number of the label 'entailment', in whatever case."""
  labels = saved.get('id2label') or {}
  for number, label in labels.items():
    if str(label).lower() == 'entailment':
      return int(number)
  raise ValueError(
      f"{folder}/config.json: id2label has no 'entailment' but "
      f'{sorted(map(str, labels.values()))}; name the labels there as the '
      'model was trained')


def _config(saved, kind, folder):
  get = weights_files.getter(saved, folder, MUST_BE)
  return encoder.Config(
      vocabulary=get('vocab_size'), num_layers=get('num_hidden_layers'),
      width=get('hidden_size'), num_heads=get('num_attention_heads'),
      mlp_width=get('intermediate_size'),
      positions=get('max_position_embeddings'),
      segments=get('type_vocab_size'), num_labels=len(get('id2label')),
      norm_eps=get('layer_norm_eps'),
      # RoBERTa's table has a row for padding, and the texts' begin after it.
      first_position=0 if kind == 'bert' else get('pad_token_id') + 1)


def _bare(name):
  """Older files call a norm's scale and bias gamma and beta."""
  for prefix in PREFIXES:
    name = name.removeprefix(prefix)
  return name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace(
      'LayerNorm.beta', 'LayerNorm.bias')


def _table(kind):
  """Leaf -> names, {} for the layer."""
  table = {leaf: (f'{name}.weight',) for leaf, name in _NAMES.items()}
  parts = {('embedding_norm',): ('embeddings.LayerNorm',)}
  parts |= {(ours,): (theirs,) for ours, theirs in _HEADS[kind].items()}
  parts |= {('layers', ours): (f'encoder.layer.{{}}.{theirs}',)
            for ours, theirs in _LAYER.items()}
  parts['layers', 'qkv'] = tuple(
      f'encoder.layer.{{}}.attention.self.{name}'
      for name in ('query', 'key', 'value'))
  for leaf, names in parts.items():
    scale = 'scale' if leaf[-1].endswith('norm') else 'kernel'
    table[(*leaf, scale)] = tuple(f'{name}.weight' for name in names)
    table[(*leaf, 'bias')] = tuple(f'{name}.bias' for name in names)
  return table


def make_step(config: encoder.Config) -> Callable[..., Any]:
  """step((), (tokens, segments, present), params) -> ((), p [B, N])."""

  def step(state, batch, params):
    return state, jax.nn.softmax(encoder.logits(params, config, *batch))

  return step


class Entailment:
  """P(entailment) of pairs of texts, on a mesh."""

  def __init__(self, model: Classifier, mesh: Mesh | None = None):
    self.name, self.fingerprint = model.name, model.fingerprint
    self._model = model
    self._mesh = mesh_lib.make_mesh() if mesh is None else mesh
    self._params = mesh_lib.put(model.params, self._mesh, P())
    self._step = mesh_lib.compile_step(make_step(model.config), self._mesh, ())

  def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """(premise, hypothesis) pairs -> [pairs], in [0, 1]."""
    found = np.zeros(len(pairs))
    encodings = self._model.tokenizer.encode_batch(list(pairs))
    order = sorted(range(len(pairs)), key=lambda i: len(encodings[i].ids))
    size = BATCH * self._mesh.shape['data']
    for start in range(0, len(order), size):
      chosen = order[start:start + size]
      batch = self._batch([encodings[i] for i in chosen], size)
      _, p = self._step(
          (), mesh_lib.put(batch, self._mesh, P('data')), self._params)
      found[chosen] = np.asarray(p)[:len(chosen), self._model.entailment]
    return found

  def _batch(self, encodings, size):
    """(tokens, segments, present), [size, T] each, T a power of two."""
    config, longest = self._model.config, max(len(e.ids) for e in encodings)
    length = min(max(SHORTEST, 1 << (longest - 1).bit_length()),
                 config.context)
    tokens, segments = np.zeros((2, size, length), np.int32)
    present = np.zeros((size, length), bool)
    present[:, 0] = True  # A row of padding attends to something.
    for row, e in enumerate(encodings):
      tokens[row, :len(e.ids)], present[row, :len(e.ids)] = e.ids, True
      if config.segments > 1:
        segments[row, :len(e.ids)] = e.type_ids
    return tokens, segments, present


def definitions(claim: critic_lib.Claim) -> str:
  """What WordNet says of a claim's values; '' where it says nothing."""
  words = (claim.x,) if claim.predicate is None else (claim.x, claim.y)
  found = [
      f'{word}: {"; or ".join(facts_lib.definitions()[word][:MOST_SENSES])}.'
      for word in words if word in facts_lib.definitions()]
  return ' '.join(found)


class NliCritic:
  """Says how likely a premise entails the claim; without one it abstains.

  Args:
    entailment: of (premise, hypothesis) pairs, e.g. an Entailment.
    name, fingerprint: of what is behind it.
    premise_of: a claim -> the text that is to entail it.
  """

  def __init__(
      self, entailment: Callable[[Sequence[tuple[str, str]]], Any], name: str,
      fingerprint: str,
      premise_of: Callable[[critic_lib.Claim], str] = definitions):
    self.name, self.fingerprint = f'nli {name}', fingerprint
    self._entailment, self._premise_of = entailment, premise_of

  def judge(self, claims: Sequence[critic_lib.Claim]
            ) -> list[critic_lib.Verdict]:
    verdicts = [critic_lib.Verdict(None)] * len(claims)
    premises = [self._premise_of(claim) for claim in claims]
    asked = [i for i, premise in enumerate(premises) if premise]
    if asked:
      ps = self._entailment(
          [(premises[i], f'{claims[i].text}.') for i in asked])
      for i, p in zip(asked, ps, strict=True):
        verdicts[i] = critic_lib.Verdict(float(p), (premises[i],))
    return verdicts


def load_critic(folder: str | pathlib.Path, mesh: Mesh | None = None
                ) -> NliCritic:
  """The critic of a model in a folder, given definitions of WordNet."""
  model = load(folder)
  return NliCritic(Entailment(model, mesh), model.name, model.fingerprint)
