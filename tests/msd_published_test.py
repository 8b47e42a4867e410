"""Published weights: read as data, converted bit for bit, refused by name."""

import collections
import io
import os
import pickle
import sys
import zipfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import msd_jax
from msd_jax import conv
from msd_jax import convert
from msd_jax import networks
from msd_jax import published
from msd_jax import torch_files
from msd_jax import unet

torch = pytest.importorskip('torch')

from benchmarks import torch_msd  # noqa: E402
from tests import persistent_pickle  # noqa: E402
from tests import torch_song  # noqa: E402

SONG = dict(resolution=8, channels=3, num_classes=5, model_channels=16,
            channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,),
            augment_dim=9)
NCSN = dict(SONG, residual_encoder=True, resample_filter=(1, 3, 3, 1),
            fourier=True, channel_mult_noise=2)
ADM = dict(resolution=8, channels=3, num_classes=5, model_channels=32,
           channel_mult=(1, 2), num_blocks=1, attention_resolutions=(4,))


@pytest.fixture
def without_torch(monkeypatch):
  """A function after whose call `import torch` fails."""
  return lambda: monkeypatch.setitem(sys.modules, 'torch', None)


class Precond(torch.nn.Module):
  """The module around a network that EDM pickles."""

  def __init__(self, model):
    super().__init__()
    self.model, self.sigma_data = model, .5
    self.scale, self.mean = np.sqrt(.5), np.arange(3.)


def assert_same_tensors(actual, expected):
  assert set(actual) == set(expected)
  for name, tensor in expected.items():
    value = tensor.numpy()
    assert actual[name].dtype == value.dtype, name
    np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize('settings, kind', [(SONG, 'ddpmpp'), (NCSN, 'ncsnpp')])
def test_edms_pickle_to_orbax_and_back_bit_for_bit(
    settings, kind, tmp_path, monkeypatch, without_torch):
  network = torch_song.Song(**settings)
  expected = Precond(network).state_dict()
  path = str(tmp_path / 'edm.pkl')
  persistent_pickle.write(path, dict(
      ema=Precond(network), loss_fn=None, augment_pipe=None,
      dataset_kwargs=persistent_pickle.EasyDict(resolution=8)), monkeypatch)
  without_torch()
  convert.convert(path, str(tmp_path / 'folder'))
  convert.convert(str(tmp_path / 'folder'), str(tmp_path / 'a.safetensors'))
  assert_same_tensors(
      published.read_tensors(str(tmp_path / 'a.safetensors')), expected)
  tree = ocp.StandardCheckpointer().restore(tmp_path / 'folder')
  module = networks.from_description(tree['network'])
  assert module == networks.NETWORKS[kind](**settings, dropout=0.)
  np.testing.assert_array_equal(
      tree['params']['enc']['8x8_block0']['conv0']['kernel'][1, 2],
      expected['model.enc.8x8_block0.conv0.weight'][:, :, 1, 2].numpy().T)
  # Into a file and back, the file alone suffices.
  convert.convert(str(tmp_path / 'a.safetensors'), str(tmp_path / 'again'))
  again = ocp.StandardCheckpointer().restore(tmp_path / 'again')
  jax.tree.map(np.testing.assert_array_equal, again, tree)


def dmd2_head():
  return torch.nn.Sequential(
      torch.nn.Conv2d(64, 64, 4, 2, 1), torch.nn.GroupNorm(32, 64),
      torch.nn.SiLU(), torch.nn.Conv2d(64, 64, 4, 4),
      torch.nn.GroupNorm(32, 64), torch.nn.SiLU(), torch.nn.Conv2d(64, 1, 1))


def prefixed(prefix, module):
  return {prefix + name: value for name, value in module.state_dict().items()}


@pytest.mark.parametrize('zipped', [True, False])
def test_dmd2s_guidance_file_to_orbax_and_back_bit_for_bit(
    zipped, tmp_path, without_torch):
  tensors = collections.OrderedDict(
      prefixed('real_unet.model.', torch_msd.ADM(**ADM))
      | prefixed('fake_unet.model.', torch_msd.ADM(**ADM))
      | prefixed('cls_pred_branch.', dmd2_head())
      | {'karras_sigmas': torch.linspace(80., .002, 1000)})
  path = str(tmp_path / 'pytorch_model_1.bin')
  torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
  without_torch()
  convert.convert(path, str(tmp_path / 'folder'))
  tree = ocp.StandardCheckpointer().restore(tmp_path / 'folder')
  assert tree['head']['conv0']['kernel'].shape == (4, 4, 64, 64)
  assert tree['head']['norm1'].keys() == {'scale', 'bias'}
  convert.convert(str(tmp_path / 'folder'), str(tmp_path / 'a.safetensors'))
  back = published.read_tensors(str(tmp_path / 'a.safetensors'))
  # The peer keeps no filters; EDM's networks do.
  filters = {name for name in back if name.endswith('.resample_filter')}
  assert len(filters) == 8 and all((back[n] == .25).all() for n in filters)
  assert_same_tensors(
      {n: a for n, a in back.items() if n not in filters}, tensors)


def test_dmd2s_generator_generates(tmp_path, monkeypatch):
  # Compiles sooner; the other convolution has tests of its own.
  monkeypatch.setattr(conv, '_conv3x3', conv._ordinary)
  network = torch_msd.ADM(**ADM)
  torch_msd.randomize(network)
  path = str(tmp_path / 'pytorch_model.bin')
  torch.save(prefixed('model.', network), path)
  convert.convert(path, str(tmp_path / 'folder'), one_step=True)
  params = ocp.StandardCheckpointer().restore(tmp_path / 'folder')
  images = msd_jax.generate(params, [0, 4], jax.random.key(0))
  assert images.shape == (2, 8, 8, 3) and np.isfinite(images).all()
  convert.convert(str(tmp_path / 'folder'), str(tmp_path / 'a.safetensors'))
  back = published.read_tensors(str(tmp_path / 'a.safetensors'))
  assert_same_tensors(
      {n: a for n, a in back.items() if not n.endswith('.resample_filter')},
      prefixed('model.', network))


def test_views_and_every_number_of_bits_are_read(tmp_path):
  base = torch.arange(24.).reshape(4, 6)
  tensors = {
      'transposed': base.T, 'every other': base[::2, 1::3],
      'scalar': base[1, 2], 'half': base.half(),
      'bfloat16': base.bfloat16(), 'long': base.long(),
      'flags': base > 3, 'empty': base[:0], 'double': base.double()}
  for name, zipped in (('a.pt', True), ('b.pt', False)):
    torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
    found = torch_files.state_dict(torch_files.read(str(tmp_path / name)))
    for key, tensor in tensors.items():
      np.testing.assert_array_equal(
          found[key].astype(np.float32), tensor.float().numpy(), err_msg=key)
    assert found['bfloat16'].dtype == jax.numpy.bfloat16


# Files with code.


class Evil:

  def __init__(self, function, *args):
    self.reduced = function, args

  def __reduce__(self):
    return self.reduced


def pickled(value):
  return pickle.dumps(value, protocol=2)


def zipped(data):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('archive/data.pkl', data)
    archive.writestr('archive/version', '3')
  return buffer.getvalue()


@pytest.mark.parametrize('wrap', [
    pickled, lambda evil: zipped(pickled({'ema': evil})),
    lambda evil: pickled(Evil(torch.storage._load_from_bytes, pickled(evil))),
    lambda evil: pickled(collections.OrderedDict(a=[{'b': evil}]))])
def test_a_pickle_with_code_is_refused_and_nothing_runs(wrap, tmp_path):
  marker = tmp_path / 'ran'
  path = tmp_path / 'evil.pkl'
  for function, args in (
      (os.mkdir, (str(marker),)), (eval, (f'open({str(marker)!r}, "w")',)),
      (getattr, (dict, 'fromkeys')), (torch.load, ('x',)), (open, ('x', 'w'))):
    path.write_bytes(wrap(Evil(function, *args)))
    with pytest.raises(torch_files.UnsafeFileError, match='nothing of it was'):
      published.read_tensors(str(path))
  assert not marker.exists()


@pytest.mark.parametrize('program, message', [
    # The machine's own ways to change what it was given.
    (b'cbuiltins\nset\n(dX\x01\x00\x00\x00aK\x01sb.', 'damaged'),
    (b'ctorch._utils\n_rebuild_tensor_v2\n}b.', 'sets the state'),
    (b'cdnnlib.util\nEasyDict\n}b.', 'damaged'),
    (b'ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.', 'else than a'),
    (b'X\x01\x00\x00\x00aQ.', 'storage|damaged')])
def test_a_pickle_cannot_change_the_reader(program, message, tmp_path):
  path = tmp_path / 'evil.pkl'
  path.write_bytes(b'\x80\x02' + program)
  with pytest.raises(torch_files.FileError, match=message):
    torch_files.read(str(path))


# Files that do not fit.


def test_another_architecture_is_refused_with_the_first_keys_that_differ(
    tmp_path):
  path = str(tmp_path / 'pytorch_model.bin')
  torch.save(prefixed('model.', torch_msd.ADM(**ADM)), path)
  module, _ = published.read_network(path)
  assert module == unet.ADM(**ADM, dropout=0.)
  wanted = {
      r'dec.4x4_block1.conv0.weight is \[64, 96, 3, 3\], not \[64, 128, 3, 3':
          dict(ADM, channel_mult=(2, 2)),
      r'no dec.4x4_block2.affine.bias \[128\]': dict(ADM, num_blocks=2),
      r'dec.4x4_block0.norm2.bias \[64\] is unknown':
          dict(ADM, attention_resolutions=())}
  for message, settings in wanted.items():
    with pytest.raises(published.MismatchError, match=message):
      published.read_network(path, unet.ADM(**settings))
  song = networks.NETWORKS['ddpmpp'](**SONG)
  with pytest.raises(published.MismatchError, match='pytorch_model.bin: .* no'):
    published.read_network(path, song)


def test_a_filter_of_other_taps_is_another_network():
  tensors = {name: value.numpy() for name, value in
             torch_song.Song(**NCSN).state_dict().items()}
  module = published.infer_network(tensors).clone(resample_filter=(1, 1))
  with pytest.raises(published.MismatchError, match='not the filter'):
    published.to_params(tensors, module)


def test_a_view_beyond_its_storage_is_refused():
  storage = torch_files._Storage(np.float32, 4, lambda: bytes(16))
  view = lambda shape, strides, offset=0: torch_files.Tensor(
      storage, offset, shape, strides).array()
  np.testing.assert_array_equal(view((2, 2), (1, 2)), np.zeros((2, 2)))
  for args in (((2, 3), (2, 1)), ((4,), (1,), 1), ((10**9,), (0,)),
               ((2,), (-1,), 3), ((2, 2), (1,))):
    with pytest.raises(torch_files.FileError, match='beyond|strides'):
      view(*args)


def test_changed_bytes_end_in_a_value_or_in_the_one_error(tmp_path):
  generator = np.random.default_rng(0)
  whole = []
  for zipped in (True, False):
    buffer = io.BytesIO()
    torch.save({'a': torch.arange(6.), 'b': torch.ones(3).half()}, buffer,
               _use_new_zipfile_serialization=zipped)
    whole.append(np.frombuffer(buffer.getvalue(), np.uint8))
  path, refused = tmp_path / 'a.pt', 0
  for i in range(600):
    changed = whole[i % 2].copy()
    rows = generator.integers(len(changed), size=1 + i % 3)
    changed[rows] = generator.integers(256, size=len(rows))
    path.write_bytes(changed.tobytes())
    try:
      torch_files.state_dict(torch_files.read(str(path)))
    except torch_files.FileError:
      refused += 1
  assert 200 < refused < 600


def test_damaged_and_foreign_files_are_one_clear_error(tmp_path):
  path = tmp_path / 'model.bin'
  torch.save({'a': torch.zeros(1000)}, path,
             _use_new_zipfile_serialization=False)
  whole = path.read_bytes()
  damaged = {
      whole[:-10]: 'cut short', whole[:50]: 'damaged', b'hello': 'damaged',
      b'': 'damaged', pickled({'a': 1}): 'no tensors', zipped(b'?'): 'damaged'}
  for content, message in damaged.items():
    path.write_bytes(content)
    with pytest.raises(torch_files.FileError, match=f'model.bin: .*{message}'):
      published.read_tensors(str(path))
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('photo.png', 'x')
  path.write_bytes(buffer.getvalue())
  with pytest.raises(torch_files.FileError, match='without data.pkl'):
    published.read_tensors(str(path))
  (tmp_path / 'a.safetensors').write_bytes(b'nothing')
  with pytest.raises(torch_files.FileError, match='not a readable safetens'):
    published.read_tensors(str(tmp_path / 'a.safetensors'))
  with pytest.raises(published.MismatchError, match="of the 1 is 'a'"):
    published.infer_network({'a': np.zeros(1)})


def test_the_command_says_what_it_lacks_and_overwrites_nothing(
    tmp_path, monkeypatch, capsys):

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['convert', *map(str, args)])
    with pytest.raises(SystemExit) as stop:
      convert.main()
    return str(stop.value)

  assert 'no such file' in run(tmp_path / 'none.pkl', tmp_path / 'out')
  assert 'exists already' in run(tmp_path / 'none.pkl', tmp_path)
  (tmp_path / 'a.bin').write_bytes(b'')
  assert '--one_step is for a file' in run(
      tmp_path / 'a.bin', tmp_path / 'a.safetensors', '--one_step')
  assert run('--help') == '0'
  assert 'not commercial' in capsys.readouterr().out
