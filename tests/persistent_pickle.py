"""Pickles as NVIDIA writes them: every class with its source inside.

`torch_utils.persistence` makes a class whose objects pickle as a call of its
own function on {type, version, module_src, class_name, state}: unpickling runs
module_src. The one written here would end the process.
"""

import pickle
import sys
import types

import torch


def _reconstruct_persistent_obj(meta):
  raise AssertionError('code of the pickle was run')


class EasyDict(dict):
  """dnnlib.util.EasyDict, by name."""


def write(path, value, monkeypatch):
  """Pickles a value; modules in it are persistent, containers torch's own."""
  for name, member in (('torch_utils.persistence', _reconstruct_persistent_obj),
                       ('dnnlib.util', EasyDict)):
    package = name.split('.')[0]
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    module = types.ModuleType(name)
    monkeypatch.setattr(member, '__module__', name)
    setattr(module, member.__name__, member)
    monkeypatch.setitem(sys.modules, name, module)
  with open(path, 'wb') as file:
    _Pickler(file).dump(value)


class _Pickler(pickle.Pickler):

  def reducer_override(self, obj):
    if not isinstance(obj, torch.nn.Module) or isinstance(
        obj, (torch.nn.ModuleDict, torch.nn.MaxPool2d)):
      return NotImplemented
    return _reconstruct_persistent_obj, (EasyDict(
        type='class', version=6, module_src='raise SystemExit("ran")',
        class_name=type(obj).__name__, state=obj.__dict__),)
