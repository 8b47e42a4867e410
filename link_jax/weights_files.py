"""What is in a folder of a published model, or in a GGUF file.

A folder has `config.json`, `tokenizer.json` and `*.safetensors`, as
`transformers` saves them; a GGUF file has all of it inside. Both are read as
data: nothing in them runs. Tensors keep, or get, their published names.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any
from typing import NamedTuple

import gguf
import numpy as np
import safetensors
import tokenizers

from link_jax import lm

# GGUF's names of a Llama's tensors -> the published ones.
GGUF_LLAMA = {
    'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm',
    'output': 'lm_head'}
GGUF_LLAMA_LAYER = {
    'attn_norm': 'input_layernorm', 'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj', 'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj'}
# Settings that change the arithmetic -> the values that `lm` computes.
GPT2_MUST_BE = {
    'activation_function': ('gelu_new', 'gelu_pytorch_tanh'),
    'scale_attn_weights': (True,),
    'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,)}
LLAMA_MUST_BE = {
    'hidden_act': ('silu',), 'attention_bias': (False,), 'mlp_bias': (False,),
    'rope_scaling': (None,)}


class Checkpoint(NamedTuple):
  """What a format gives, with the published names of tensors."""

  config: lm.Config
  tensors: Mapping[str, Callable[[], np.ndarray]]  # each read when called
  tied: bool  # the embedding is the output embedding, too
  tokenizer: tokenizers.Tokenizer
  stop_tokens: tuple[int, ...]
  files: tuple[pathlib.Path, ...]


def read(path: pathlib.Path) -> Checkpoint:
  """What is in a folder or in a GGUF file."""
  return read_folder(path) if path.is_dir() else read_gguf(path)


# A folder.


def read_folder(folder: pathlib.Path) -> Checkpoint:
  """GPT-2 or Llama, as transformers saves them."""
  config = read_json(folder / 'config.json')
  kind = config.get('model_type')
  if kind not in ('gpt2', 'llama'):
    raise ValueError(
        f"{folder}/config.json: model_type={kind!r}; 'gpt2' and 'llama' are "
        'known')
  files = files_of(folder)
  stop = config.get('eos_token_id')
  model = (_gpt2_config if kind == 'gpt2' else _llama_config)(config, folder)
  tokenizer = read_tokenizer(folder / 'tokenizer.json')
  check_vocabulary(tokenizer, model, folder)
  return Checkpoint(
      config=model,
      tensors=open_tensors(files),
      # transformers leaves both out where they have the family's default.
      tied=config.get('tie_word_embeddings', kind == 'gpt2'),
      tokenizer=tokenizer,
      stop_tokens=tuple(stop if isinstance(stop, list) else
                        [] if stop is None else [stop]),
      files=(folder / 'config.json', folder / 'tokenizer.json', *files))


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """Where a folder's tensors are."""
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    raise ValueError(
        f'{folder} has no *.safetensors; weights in other formats may run '
        'code and are not read: save the model with safe_serialization=True')
  return files


def read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise ValueError(f'{path} cannot be read: {e}') from e


def open_tensors(
    files: Sequence[pathlib.Path]) -> dict[str, Callable[[], np.ndarray]]:
  """Name -> a function that reads the tensor."""
  tensors = {}
  for file in files:
    try:
      opened = safetensors.safe_open(file, framework='numpy')
    except Exception as e:
      raise ValueError(f'{file} is not a safetensors file: {e}') from e
    for name in opened.keys():  # It is no mapping.
      tensors[name] = lambda opened=opened, name=name: opened.get_tensor(name)
  return tensors


def read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  """A tokenizer.json; it neither pads nor truncates."""
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as e:  # The library raises plain Exceptions.
    raise ValueError(f'{path} cannot be read: {e}') from e
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return tokenizer


def check_vocabulary(
    tokenizer: tokenizers.Tokenizer, config: Any, path: pathlib.Path) -> None:
  size = tokenizer.get_vocab_size()
  if size > config.vocabulary:
    raise ValueError(
        f'{path}: the tokenizer has {size} words, the embedding '
        f'{config.vocabulary}: they are of different models')


def _gpt2_config(config, path):
  get = getter(config, path, GPT2_MUST_BE)
  return lm.Config(
      vocabulary=get('vocab_size'), num_layers=get('n_layer'),
      width=get('n_embd'), num_heads=get('n_head'),
      num_kv_heads=get('n_head'), head_width=get('n_embd') // get('n_head'),
      mlp_width=config.get('n_inner') or 4 * get('n_embd'),
      context=get('n_positions'), norm_eps=get('layer_norm_epsilon'),
      rope_base=None, gated=False)


def _llama_config(config, path):
  get = getter(config, path, LLAMA_MUST_BE)
  # Newer files keep the base of the rotation in `rope_parameters`.
  rope = config.get('rope_parameters') or {}
  if rope.get('rope_type', 'default') != 'default':
    raise ValueError(
        f'{path}/config.json: rope_type={rope["rope_type"]!r} is not '
        "supported; it must be 'default'")
  return lm.Config(
      vocabulary=get('vocab_size'), num_layers=get('num_hidden_layers'),
      width=get('hidden_size'), num_heads=get('num_attention_heads'),
      num_kv_heads=config.get(
          'num_key_value_heads', get('num_attention_heads')),
      head_width=config.get('head_dim') or (
          get('hidden_size') // get('num_attention_heads')),
      mlp_width=get('intermediate_size'),
      context=get('max_position_embeddings'), norm_eps=get('rms_norm_eps'),
      rope_base=float(rope.get(
          'rope_theta', config.get('rope_theta', 10000.))),
      gated=True)


def getter(
    config: Mapping[str, Any], path: pathlib.Path,
    must_be: Mapping[str, Sequence[Any]]) -> Callable[[str], Any]:
  """Field -> value; settings that we don't compute are refused."""
  for field, allowed in must_be.items():
    if config.get(field, allowed[0]) not in allowed:
      raise ValueError(
          f'{path}/config.json: {field}={config[field]!r} is not supported; '
          f'it must be {" or ".join(map(repr, allowed))}')

  def get(field):
    if field not in config:
      raise ValueError(f'{path}/config.json has no {field}')
    return config[field]

  return get


# A GGUF file.


def read_gguf(path: pathlib.Path) -> Checkpoint:
  """A Llama with a byte-level BPE tokenizer."""
  try:
    reader = gguf.GGUFReader(path)
  except Exception as e:
    raise ValueError(f'{path} is not a readable GGUF file: {e}') from e

  def get(field, default=None):
    found = reader.get_field(field)
    value = default if found is None else found.contents()
    if value is None:
      raise ValueError(f'{path} has no {field}')
    return value

  kind = get('general.architecture')
  if kind != 'llama':
    raise ValueError(
        f"{path}: general.architecture={kind!r}; 'llama' is known")
  if any(tensor.name.startswith('rope_freqs') for tensor in reader.tensors):
    raise ValueError(
        f'{path}: scaled rotary positions (rope_freqs) are not supported')
  config = _gguf_config(get, path)
  tokenizer = _gguf_tokenizer(get, path)
  check_vocabulary(tokenizer, config, path)
  tensors = {
      name: get_tensor
      for tensor in reader.tensors
      for name, get_tensor in [_gguf_tensor(tensor, config)]}
  return Checkpoint(
      config=config, tensors=tensors, tied='lm_head.weight' not in tensors,
      tokenizer=tokenizer, files=(path,),
      stop_tokens=(get('tokenizer.ggml.eos_token_id'),))


def _gguf_config(get, path):
  field = lambda name, default=None: get(f'llama.{name}', default)
  scaling = field('rope.scaling.type', 'none')
  if scaling != 'none':
    raise ValueError(
        f'{path}: llama.rope.scaling.type={scaling!r} is not supported')
  heads, width = field('attention.head_count'), field('embedding_length')
  return lm.Config(
      vocabulary=len(get('tokenizer.ggml.tokens')),
      num_layers=field('block_count'), width=width, num_heads=heads,
      num_kv_heads=field('attention.head_count_kv', heads),
      head_width=field('attention.key_length', width // heads),
      mlp_width=field('feed_forward_length'), context=field('context_length'),
      norm_eps=field('attention.layer_norm_rms_epsilon'),
      rope_base=float(field('rope.freq_base', 10000.)), gated=True)


def _gguf_tensor(tensor, config):
  """(published name, a function that gives the tensor in float32)."""
  *place, name, kind = tensor.name.split('.')
  heads = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads}.get(name)
  if place:
    published = f'model.layers.{place[-1]}.{GGUF_LLAMA_LAYER.get(name, name)}'
  else:
    published = GGUF_LLAMA.get(name, name)

  def get():
    x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if heads is None:
      return x
    # GGUF has channels i and i + A / 2 of a head as neighbours, 2 i, 2 i + 1.
    pairs = x.reshape(heads, config.head_width // 2, 2, config.width)
    return pairs.swapaxes(1, 2).reshape(x.shape)

  return f'{published}.{kind}', get


def _gguf_tokenizer(get, path):
  """Byte-level BPE from the words and merges in the file."""
  kind, split = get('tokenizer.ggml.model'), get('tokenizer.ggml.pre', 'gpt-2')
  if kind != 'gpt2' or split not in ('smollm', 'gpt-2'):
    raise ValueError(
        f'{path}: a tokenizer of kind {kind!r}, {split!r}; known are '
        "'gpt2' with 'smollm' or 'gpt-2'. Give a folder with tokenizer.json")
  words = get('tokenizer.ggml.tokens')
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
      vocab={word: i for i, word in enumerate(words)},
      merges=[tuple(m.split(' ')) for m in get('tokenizer.ggml.merges')]))
  pre = tokenizers.pre_tokenizers
  split_bytes = pre.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = split_bytes if split == 'gpt-2' else pre.Sequence(
      [pre.Digits(individual_digits=True), split_bytes])
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  control = 3  # of token_type: special tokens
  tokenizer.add_special_tokens([
      tokenizers.AddedToken(word, special=True, normalized=False)
      for word, type_ in zip(words, get('tokenizer.ggml.token_type'),
                             strict=True) if type_ == control])
  if get('tokenizer.ggml.add_bos_token', False):
    bos = get('tokenizer.ggml.bos_token_id')
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f'{words[bos]} $A', special_tokens=[(words[bos], bos)])
  return tokenizer
