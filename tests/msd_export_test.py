"""Students as files: the same bits back, and only those that are asked for."""

import json
import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from core_jax import checkpoint
import msd_jax
from msd_jax import export
from msd_jax import networks
from msd_jax import partition
from msd_jax import published
from msd_jax import routing

KEY = jax.random.key(1)
NETWORKS = {
    'mlp': dict(kind='mlp', width=8, depth=1),
    'adm': dict(kind='adm', model_channels=32, channel_mult=(1, 1),
                num_blocks=1, attention_resolutions=(), dropout=0.1)}


def make_bundle(kind='mlp', shape=(4, 4, 1), router=None):
  """Three students of six classes, whose weights are 0 nowhere."""
  module = networks.build(NETWORKS[kind], shape, 6)
  one = jax.eval_shape(
      lambda key: networks.init_params(module, key, shape), KEY)
  random = np.random.default_rng(0)
  generators = jax.tree.map(
      lambda x: random.normal(0, .3, (3, *x.shape)).astype(np.float32), one)
  return routing.bundle(
      generators, module,
      partition.shuffled(6, 3, 0) if router is None else router,
      sigma_max=20., sigma_data=0.5, sigma_min=0.002, ema_decay=0.9)


@pytest.fixture
def bundle():
  return make_bundle()


@pytest.fixture
def folder(bundle, tmp_path):
  """All three students of the bundle, exported."""
  path = save(bundle, tmp_path / 'bundle')
  export.export(path, str(tmp_path / 'students'))
  return tmp_path / 'students'


def save(bundle, path):
  with ocp.StandardCheckpointer() as writer:
    writer.save(path, bundle)
  return str(path)


@pytest.mark.parametrize('last_stage, step, refused', [
    (False, 4, True), (True, 2, False), (True, 4, False)])
def test_a_run_must_have_come_to_its_students(
    last_stage, step, refused, bundle, tmp_path, caplog):
  reached = {'stage': 'single_equal_batch', 'step': step, 'num_steps': 4,
             'last_stage': last_stage}
  with checkpoint.manager(str(tmp_path), keep=1, milestones=()) as mgr:
    checkpoint.save(
        mgr, 9, state={'step': jnp.int32(step)}, params=bundle,
        config=ml_collections.ConfigDict(), reached=reached)
  if refused:
    with pytest.raises(ValueError, match="at step 4 of 4 of 'single_equal_ba"):
      export.read_students(str(tmp_path))
    return
  found = export.read_students(str(tmp_path))
  chex.assert_trees_all_equal(found['generator'], bundle['generator'])
  assert ('stand at step 2 of 4' in caplog.text) == (step < 4)


def name(k):
  return f'student-{k}-of-3.safetensors'


@pytest.mark.parametrize('kind', NETWORKS)
def test_a_student_comes_back_bit_for_bit_with_what_it_needs(kind, tmp_path):
  bundle = make_bundle(kind)
  path = str(tmp_path / name(1))
  export.write_student(bundle, 1, path)
  found = export.read_student(path)
  chex.assert_trees_all_equal(
      found['generator'],
      jax.tree.map(lambda x: x[1:2], bundle['generator']))
  chex.assert_trees_all_equal(found['network'], bundle['network'])
  for number in ('sigma_max', 'sigma_data', 'sigma_min', 'ema_decay'):
    assert found[number] == bundle[number]
  np.testing.assert_array_equal(
      found['router'], np.where(bundle['router'] == 1, 0, -1))
  header = export.read_header(path)
  assert header.student == 1
  np.testing.assert_array_equal(
      header.classes, np.flatnonzero(bundle['router'] == 1))


def test_a_unets_file_is_one_of_published_weights(tmp_path):
  """Tensors have EDM's names: what reads those reads a student."""
  bundle = make_bundle('adm')
  path = str(tmp_path / name(0))
  export.write_student(bundle, 0, path)
  module, params = published.read_network(path)
  assert module == networks.build({**NETWORKS['adm'], 'dropout': 0.},
                                  (4, 4, 1), 6)
  chex.assert_trees_all_equal(
      params, jax.tree.map(lambda x: x[0], bundle['generator']))


def test_one_student_generates_its_classes_and_no_others(bundle, folder):
  own = np.flatnonzero(bundle['router'] == 2)
  student = export.read_student(str(folder / name(2)))
  alone = routing.bundle(
      jax.tree.map(lambda x: x[2:], bundle['generator']),
      networks.from_description(bundle['network']), student['router'],
      sigma_max=20., sigma_data=0.5, sigma_min=0.002)
  np.testing.assert_array_equal(  # in the same bits
      msd_jax.generate(student, own, KEY), msd_jax.generate(alone, own, KEY))
  other = np.flatnonzero(bundle['router'] != 2)[:1]
  with pytest.raises(ValueError, match=rf'labels\[2\] = {other[0]} is a class'):
    msd_jax.generate(student, np.concatenate([own, other]), KEY)


@pytest.mark.parametrize('block_size', [2, 64])
def test_a_folder_generates_what_all_students_together_do(
    block_size, bundle, folder):
  generate = msd_jax.open_students(str(folder), resident=2)
  labels = np.array([5, 0, 3, 3, 1, 4, 2, 0, 5])
  images = generate(labels, KEY, block_size=block_size)
  np.testing.assert_allclose(
      images, msd_jax.generate(bundle, labels, KEY), rtol=1e-5, atol=1e-6)
  assert generate(labels[:0], KEY).shape == (0, 4, 4, 1)


@pytest.mark.parametrize('resident, reads', [
    (1, [0, 2, 0, 1, 2]), (2, [0, 2, 1, 2]), (3, [0, 2, 1])])
def test_only_students_that_are_asked_for_are_read(
    resident, reads, bundle, folder, monkeypatch):
  """Asked for in turn: 0, 0, 2, then 0 and 1, then 2."""
  found, read_student = [], export.read_student

  def counted(path):
    found.append(int(pathlib.Path(path).name[len('student-')]))
    return read_student(path)

  monkeypatch.setattr(export, 'read_student', counted)
  generate = msd_jax.open_students(str(folder), resident=resident)
  a, b, c = (np.flatnonzero(bundle['router'] == k)[0] for k in range(3))
  for labels in ([a], [a], [c], [a, b], [c]):
    generate(np.array(labels), KEY)
  assert found == reads


def test_files_of_students_that_nobody_asks_for_may_be_missing(
    bundle, folder):
  (folder / name(1)).unlink()
  generate = msd_jax.open_students(str(folder))
  labels = np.flatnonzero(bundle['router'] != 1)
  assert np.isfinite(generate(labels, KEY)).all()
  y = np.flatnonzero(bundle['router'] == 1)[0]
  with pytest.raises(
      ValueError, match=rf'labels\[4\] = {y} needs .*{name(1)}, which is not'):
    generate(np.array([*labels, y]), KEY)
  with pytest.raises(ValueError, match=r'labels 0\.\.5'):
    generate(np.array([6]), KEY)


def test_the_command_writes_one_or_all_and_overwrites_none(
    bundle, tmp_path, monkeypatch, capsys):
  source, target = save(bundle, tmp_path / 'bundle'), str(tmp_path / 'out')

  def command(*args):
    monkeypatch.setattr(sys, 'argv', ['export', source, target, *args])
    export.main()
    return capsys.readouterr().out

  assert f'{name(2)}: 2 classes, ' in command('--student=2')
  assert [p.name for p in pathlib.Path(target).iterdir()] == [name(2)]
  with pytest.raises(SystemExit, match=f'{name(2)}: exists already'):
    command()
  with pytest.raises(SystemExit, match='--student=3: .* students 0 to 2'):
    command('--student=3')
  source = save({'network': bundle['network']}, tmp_path / 'none')
  with pytest.raises(SystemExit, match='none: no students in it'):
    command()


def test_folders_that_are_none_or_mixed_are_refused(folder, tmp_path):
  opened = lambda: msd_jax.open_students(str(folder))
  with pytest.raises(ValueError, match='resident=0: at least 1'):
    msd_jax.open_students(str(folder), resident=0)
  with pytest.raises(ValueError, match='no student-.*msd_jax.export` writes'):
    msd_jax.open_students(str(tmp_path))
  others = {
      'of different partitions': make_bundle(
          router=partition.consecutive(6, 3)),
      r'makes images \[4, 4, 1\], .* \[8, 8, 1\]': make_bundle(
          shape=(8, 8, 1))}
  for message, other in others.items():
    export.write_student(other, 2, str(folder / name(2)))
    with pytest.raises(ValueError, match=message):
      opened()
  (folder / name(1)).rename(folder / 'student-1-of-9.safetensors')
  export.write_student(make_bundle(), 1, str(folder / name(1)))
  with pytest.raises(ValueError, match='are both student 1'):
    opened()


def test_files_that_are_damaged_or_no_students_are_refused(bundle, tmp_path):
  path = str(tmp_path / name(0))
  export.write_student(bundle, 0, path)
  whole = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(whole[:-10])
  with pytest.raises(ValueError, match='not a readable safetensors file'):
    export.read_student(path)
  some = {'a': np.zeros(1, np.float32)}
  published.write_safetensors(some, path)
  with pytest.raises(ValueError, match='no student that .*msd_jax.export`'):
    export.read_student(path)
  published.write_safetensors(some, path, {
      'format': 'msd_jax.student', 'student': '0', 'router': json.dumps([0])})
  with pytest.raises(ValueError, match="damaged: KeyError.'network'"):
    export.read_student(path)
