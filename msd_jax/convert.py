"""Published weights to orbax and back: python -m msd_jax.convert --help.

From EDM's .pkl, DMD2's pytorch_model.bin or a .safetensors file, nothing in
which is run, to a folder that `orbax.checkpoint.StandardCheckpointer` restores:
'network', what the module is; 'params', or of DMD2's guidance file 'real',
'fake' and 'head'. From such a folder to .safetensors, bit for bit. The
weights' licences stay as they are: those of EDM and DMD2 are not commercial.
"""

import argparse
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from msd_jax import networks
from msd_jax import published
from msd_jax import routing
from msd_jax import torch_files

SIGMA_DATA = 0.5  # Of every network of EDM and DMD2.
SIGMA_MAX = 80.
_SAFETENSORS = '.safetensors'


def to_folder(source: str, folder: str, *, one_step: bool = False) -> str:
  """A file of published weights -> an orbax folder; says what it was.

  Args:
    source: see `published.read_tensors`.
    folder: must not exist.
    one_step: the network is a generator of one step: the folder holds what
      `msd_jax.generate` takes, one student for every class.
  """
  tensors = published.read_tensors(source)
  parts = published.split_guidance(tensors)
  if parts:
    module = published.infer_network(parts.get('fake') or parts['real'])
    tree = {
        name: published.head_to_params(part) if name == 'head'
        else published.to_params(part, module) for name, part in parts.items()}
    if published.LEVELS in tensors:
      tree[published.LEVELS] = tensors[published.LEVELS]
  else:
    module = published.infer_network(tensors)
    tree = {'params': published.to_params(tensors, module)}
  num = sum(leaf.size for leaf in jax.tree.leaves(tree))
  if one_step:
    if parts or not module.num_classes:
      raise published.MismatchError(
          f'{source}: --one_step is for a generator with classes')
    tree = routing.bundle(
        jax.tree.map(lambda leaf: leaf[None], tree['params']), module,
        np.zeros(module.num_classes, np.int32), sigma_max=SIGMA_MAX,
        sigma_data=SIGMA_DATA)
  else:
    tree |= {'network': networks.describe(module),
             'sigma_data': np.float32(SIGMA_DATA)}
  with ocp.StandardCheckpointer() as writer:
    writer.save(os.path.abspath(folder), tree)
  return f'{module}\n{num:,} parameters in {folder}'


def from_folder(folder: str) -> tuple[Any, dict[str, Any]]:
  """(module, parts) of such a folder, by name.

  'params' of a denoiser, 'generator' of one step, or the parts of a guidance
  file.

  Raises:
    torch_files.FileError: another folder, or several students.
  """
  try:
    with ocp.StandardCheckpointer() as reader:
      tree = reader.restore(os.path.abspath(folder))
  except (FileNotFoundError, KeyError, ValueError):
    tree = {}
  if 'network' not in tree:
    raise torch_files.FileError(
        f'{folder}: neither the folder of a run nor written by msd_jax.convert')
  module = networks.from_description(tree['network'])
  if 'generator' in tree:
    students = jax.tree.leaves(tree['generator'])[0].shape[0]
    if students > 1:
      raise torch_files.FileError(
          f'{folder}: {students} students, but a file holds one network; '
          'msd_jax.export writes a file for each')
    return module, {'generator': jax.tree.map(
        lambda leaf: leaf[0], tree['generator'])}
  return module, {name: tree[name] for name in
                  ('params', 'real', 'fake', 'head', published.LEVELS)
                  if name in tree}


def to_file(folder: str, path: str) -> str:
  """An orbax folder -> .safetensors, with the names that the source had."""
  module, parts = from_folder(folder)
  tensors = {}
  for name, part in parts.items():
    if name == 'head':
      tensors |= published.head_to_tensors(part)
    elif name == published.LEVELS:
      tensors[name] = part
    else:
      prefix = published.GUIDANCE.get(name, '') + published.PREFIX
      tensors |= published.to_tensors(part, module, prefix)
  published.write_safetensors(tensors, path)
  return f'{len(tensors)} tensors in {path}'


def convert(source: str, target: str, *, one_step: bool = False) -> str:
  """Converts either way; returns a line for people.

  Raises:
    torch_files.FileError: the source can't be read, or the target exists.
    published.MismatchError: the source is of an unknown architecture.
  """
  if one_step and (os.path.isdir(source) or target.endswith(_SAFETENSORS)):
    raise torch_files.FileError(
        '--one_step is for a file that becomes a folder')
  if os.path.exists(target):
    raise torch_files.FileError(f'{target}: exists already')
  if not os.path.exists(source):
    raise torch_files.FileError(f'{source}: no such file or folder')
  if not os.path.isdir(source):
    if not target.endswith(_SAFETENSORS):
      return to_folder(source, target, one_step=one_step)
    tensors = published.read_tensors(source)
    published.write_safetensors(tensors, target)
    return f'{len(tensors)} tensors in {target}'
  if not target.endswith(_SAFETENSORS):
    raise torch_files.FileError(f'{target}: a folder becomes *.safetensors')
  return to_file(source, target)


def main() -> None:
  parser = argparse.ArgumentParser(
      prog='python -m msd_jax.convert', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      'source', metavar='SRC',
      help='.pkl, .bin, .pt, .pth, .safetensors, or a folder of this command')
  parser.add_argument(
      'target', metavar='DST', help='a new folder, or a new .safetensors file')
  parser.add_argument(
      '--one_step', action='store_true',
      help='SRC is a one-step generator: DST is what msd_jax.generate takes')
  args = parser.parse_args()
  try:
    print(convert(args.source, args.target, one_step=args.one_step))
  except (OSError, ValueError) as error:
    raise SystemExit(f'{parser.prog}: {error}') from error


if __name__ == '__main__':
  main()
