"""Files of every data format, written small by the tests, and broken ones."""

import io
import json
import os
import pickle
import sys
import zipfile

from absl import logging
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest

from core_jax import data as core_data
from msd_jax import data
from msd_jax import diffusion
from msd_jax import make_pairs
from msd_jax import mlp
from msd_jax import networks
from msd_jax import prepare
from msd_jax.formats import dmd2_lmdb
from msd_jax.formats import edm_zip
from msd_jax.formats import pairs
from msd_jax.formats import records
from msd_jax.formats import source

NUM, CLASSES, SIZE = 12, 5, 8


def images(num=NUM, size=SIZE):
  """uint8 [N, S, S, 3]; class 4, the last, has two images of twelve."""
  return np.random.default_rng(0).integers(
      0, 256, (num, size, size, 3), np.uint8)


LABELS = np.array([3, 0, 1, 2, 4, 0, 1, 2, 3, 4, 0, 1])


def load(dataset, path):
  return data.load(ml_collections.ConfigDict(
      {'dataset': dataset, 'data_path': str(path), 'seed': 0}))


def write_zip(path, labels=LABELS, index=True):
  """As EDM's dataset_tool writes: 00000/img00000000.png, dataset.json."""
  names = [f'00000/img{i:08d}.png' for i in range(NUM)]
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    for name, image in zip(names, images(), strict=True):
      buffer = io.BytesIO()
      PIL.Image.fromarray(image).save(buffer, 'PNG', compress_level=0)
      archive.writestr(name, buffer.getvalue())
    if index:
      listed = None if labels is None else list(
          zip(names, np.asarray(labels).tolist(), strict=True))
      archive.writestr('dataset.json', json.dumps({'labels': listed}))


def write_lmdb(path, num=NUM, labels=LABELS):
  lmdb = pytest.importorskip('lmdb')
  env = lmdb.open(str(path), map_size=1 << 24)
  with env.begin(write=True) as writer:
    writer.put(b'images_shape', f'{NUM} 3 {SIZE} {SIZE}'.encode())
    writer.put(b'labels_shape', f'{NUM}'.encode())
    for i, image in enumerate(images()[:num]):
      chw = image.transpose(2, 0, 1).tobytes()
      writer.put(f'images_{i}_data'.encode(), chw)
      writer.put(f'labels_{i}_data'.encode(), labels[i].tobytes())
  env.close()


def write_records(path):
  pytest.importorskip('array_record')
  records.write(str(path), zip(images(), LABELS, strict=True), shard=5)


@pytest.mark.parametrize('dataset, write', [
    ('edm_zip', write_zip), ('dmd2_lmdb', write_lmdb),
    ('array_record', write_records)])
def test_a_format_gives_back_what_was_written(dataset, write, tmp_path):
  path = tmp_path / 'train.data'
  write(path)
  found = load(dataset, path)
  assert found.num_classes == CLASSES and found.shape == (SIZE, SIZE, 3)
  assert found.train is found.test
  batch = core_data.take(found.train, [4, 0, 11])
  assert batch['image'].dtype == np.uint8
  np.testing.assert_array_equal(batch['image'], images()[[4, 0, 11]])
  np.testing.assert_array_equal(batch['label'], LABELS[[4, 0, 11]])


def test_two_files_are_train_and_test(tmp_path):
  write_zip(tmp_path / 'a.zip')
  write_zip(tmp_path / 'b.zip', labels=LABELS // 2)
  found = load('edm_zip', f'{tmp_path}/a.zip,{tmp_path}/b.zip')
  assert found.num_classes == CLASSES
  np.testing.assert_array_equal(source.labels_of(found.test), LABELS // 2)
  with pytest.raises(data.DataError, match='3 classes to train, .* 5 to test'):
    load('edm_zip', f'{tmp_path}/b.zip,{tmp_path}/a.zip')


def test_the_filter_comes_before_the_shuffle_and_keeps_the_labels(tmp_path):
  write_zip(tmp_path / 'a.zip')
  whole = edm_zip.ZipSource(str(tmp_path / 'a.zip'))
  part = source.of_classes(whole, np.array([1, 4]))
  wanted = np.flatnonzero(np.isin(LABELS, [1, 4]))
  assert len(part) == len(wanted) == 5
  batch = core_data.make_batches(part, 5, seed=0)
  epochs = [batch(step) for step in range(2)]
  for epoch in epochs:
    np.testing.assert_array_equal(
        np.sort(epoch['label']), np.sort(LABELS[wanted]))
  assert (epochs[0]['label'] != epochs[1]['label']).any()
  # A student of classes 1 and 4 is conditioned on the numbers 1 and 4 of 5.
  assert whole.num_classes == CLASSES
  arrays = source.in_memory(whole, 1 << 20)
  np.testing.assert_array_equal(
      source.of_classes(arrays, np.array([1, 4]))[0]['image'], part[0]['image'])
  assert source.in_memory(whole, 100) is whole
  with pytest.raises(data.DataError, match=r'no example of the classes \[7\]'):
    source.of_classes(whole, np.array([7]))


# CIFAR-10.


def cifar_batch(num, start):
  generator = np.random.default_rng(start)
  return (generator.integers(0, 256, (num, 3072), np.uint8),
          [(start + i) % 10 for i in range(num)])


def write_cifar_binary(folder):
  for i, name in enumerate([f'data_batch_{i}' for i in range(1, 6)]
                           + ['test_batch']):
    pixels, labels = cifar_batch(4, i)
    rows = np.concatenate([np.uint8(labels)[:, None], pixels], axis=1)
    (folder / f'{name}.bin').write_bytes(rows.tobytes())


def python2_pickle(pixels, labels):
  """Protocol 2 with byte strings, as Python 2 wrote the batches."""
  text = lambda s: b'U' + bytes([len(s)]) + s
  long_text = lambda s: b'T' + len(s).to_bytes(4, 'little') + s
  dtype = (b'cnumpy\ndtype\n(' + text(b'u1') + b'K\x00K\x01tR'
           b'(K\x03' + text(b'|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff'
           b'K\x00tb')
  shape = b'(' + b''.join(b'M' + n.to_bytes(2, 'little')
                          for n in pixels.shape) + b't'
  array = (b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t'
           + text(b'b') + b'tR(K\x01' + shape + dtype + b'\x89'
           + long_text(pixels.tobytes()) + b'tb')
  items = b''.join(b'K' + bytes([label]) for label in labels)
  return (b'\x80\x02}(' + text(b'data') + array + text(b'labels')
          + b'](' + items + b'eu.')


def write_cifar_python(folder, write=python2_pickle):
  for i, name in enumerate([f'data_batch_{i}' for i in range(1, 6)]
                           + ['test_batch']):
    (folder / name).write_bytes(write(*cifar_batch(4, i)))


@pytest.mark.parametrize('write', [
    write_cifar_binary, write_cifar_python,
    lambda folder: write_cifar_python(folder, lambda pixels, labels: (
        pickle.dumps({b'data': pixels, b'labels': labels})))])
def test_cifar10s_batches_are_read(write, tmp_path):
  write(tmp_path)
  found = load('cifar10', tmp_path)
  assert (len(found.train), len(found.test)) == (20, 4)
  assert found.class_names[9] == 'truck' and found.num_classes == 10
  pixels, labels = cifar_batch(4, 2)
  third = {name: a[8:12] for name, a in found.train.arrays.items()}
  np.testing.assert_array_equal(third['label'], labels)
  np.testing.assert_array_equal(
      third['image'][3, 5, 7], pixels[3].reshape(3, 32, 32)[:, 5, 7])


# Preparation.


def test_images_are_cropped_and_resized_into_both_formats(tmp_path):
  for label, name in enumerate(['n02', 'n01']):
    place = tmp_path / 'photos' / name / 'below'
    place.mkdir(parents=True)
    ramp = np.arange(30, dtype=np.uint8)[None, :, None] * 8
    photo = np.broadcast_to(ramp + label, (20, 30, 3)).copy()
    PIL.Image.fromarray(photo).save(place / 'a.png')
    PIL.Image.fromarray(photo[..., 0]).save(place / 'b.bmp')
  for target in ('data.zip', 'folder'):
    line = prepare.prepare(
        str(tmp_path / 'photos'), str(tmp_path / target), resolution=8)
    assert line.startswith('4 images of 2 classes')
  zipped = edm_zip.ZipSource(str(tmp_path / 'data.zip'))
  recorded = records.RecordSource(str(tmp_path / 'folder'))
  np.testing.assert_array_equal(zipped.labels, [0, 0, 1, 1])
  # Columns 5 to 24 of the photo, by Pillow's own filter; n01 comes first.
  expected = PIL.Image.fromarray(photo[:, 5:25]).resize(
      (8, 8), PIL.Image.Resampling.LANCZOS)
  np.testing.assert_array_equal(zipped[0]['image'], np.asarray(expected))
  for i in range(4):
    np.testing.assert_array_equal(zipped[i]['image'], recorded[i]['image'])
  with zipfile.ZipFile(tmp_path / 'data.zip') as archive:
    assert '00000/img00000003.png' in archive.namelist()
  with pytest.raises(data.DataError, match='exists already'):
    prepare.prepare(str(tmp_path / 'photos'), str(tmp_path / 'data.zip'), 8)
  (tmp_path / 'photos' / 'n03').mkdir()
  with pytest.raises(data.DataError, match="no images in the class 'n03'"):
    prepare.prepare(str(tmp_path / 'photos'), str(tmp_path / 'c.zip'), 8)


# TFDS.


def test_tfds_is_a_source_whose_labels_need_no_images(tmp_path, monkeypatch):
  tfds = pytest.importorskip('tensorflow_datasets')

  class ImagenetResized(tfds.core.GeneratorBasedBuilder):
    """Images with a validation split, as ImageNet has."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict({
              'image': tfds.features.Image(shape=(SIZE, SIZE, 3)),
              'label': tfds.features.ClassLabel(num_classes=7)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(NUM),
              'validation': self._generate_examples(3)}

    def _generate_examples(self, num):
      for i in range(num):
        yield i, {'image': edm_zip.encode_png(np.full(
            (SIZE, SIZE, 3), 10 * LABELS[i], np.uint8)), 'label': LABELS[i]}

  builder = ImagenetResized(data_dir=str(tmp_path), file_format='array_record')
  builder.download_and_prepare()
  words = []
  monkeypatch.setattr(
      logging, 'warning', lambda text, *args: words.append(text))
  found = load('tfds', builder.data_dir)
  assert 'not comparable with published ones' in words[0]
  assert (len(found.train), len(found.test)) == (NUM, 3)
  assert found.num_classes == 7  # As declared: the labels end at 4.
  batch = core_data.take(found.train, [0, 7])
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], 10 * batch['label'])
  assert 'tensorflow' not in sys.modules


# Pairs.


@pytest.fixture
def teacher(tmp_path):
  """A converted teacher: a small network with random weights."""
  module = mlp.ResidualMLP((4, 4, 1), CLASSES, width=16, depth=1)
  params = networks.init_params(module, jax.random.key(0), (4, 4, 1))
  params['out']['kernel'] = .1 * jax.random.normal(
      jax.random.key(1), params['out']['kernel'].shape)
  with ocp.StandardCheckpointer() as writer:
    writer.save(tmp_path / 'teacher', {
        'network': networks.describe(module), 'params': params,
        'sigma_data': np.float32(.5)})
  return str(tmp_path / 'teacher'), module, params


def test_pairs_are_what_the_teachers_sampler_makes(teacher, tmp_path):
  path, module, params = teacher
  settings = diffusion.Sampler(num_steps=3)
  make = lambda folder, shards, batch_size=4: make_pairs.make_pairs(
      path, str(tmp_path / folder), num=10, num_shards=3, shards=shards,
      settings=settings, seed=0, batch_size=batch_size)
  make('pairs', range(1))
  with pytest.raises(data.DataError, match='1 of 3 shards; .*00001-of-00003'):
    pairs.PairSource(str(tmp_path / 'pairs'))
  make('pairs', range(3))
  found = pairs.PairSource(str(tmp_path / 'pairs'), params)
  np.testing.assert_array_equal(found.labels, np.arange(10) % CLASSES)
  assert found.shape == (4, 4, 1)

  batch = core_data.take(found, range(10))
  denoised = diffusion.make_denoiser(networks.apply_fn(module), .5)
  expected = jax.jit(lambda noise: diffusion.sample(
      lambda x, sigma: denoised(params, x, sigma, batch['label']), noise,
      jax.random.key(9), settings))(batch['noise'])
  levels = np.clip(expected, -1, 1) * 127.5 + 127.5
  assert np.abs(levels - batch['image']).max() < .51
  assert batch['image'].std() > 10
  # The same pairs whatever the shards and the batch.
  make('others', range(3), batch_size=7)
  again = core_data.take(pairs.PairSource(str(tmp_path / 'others')), range(10))
  np.testing.assert_array_equal(again['noise'], batch['noise'])
  part = source.of_classes(found, np.array([2]))
  np.testing.assert_array_equal(part[1]['noise'], batch['noise'][7])

  params['out']['bias'] = params['out']['bias'] + 1e-3
  with pytest.raises(data.DataError, match='pairs made by another teacher'):
    pairs.PairSource(str(tmp_path / 'pairs'), params)
  settings = diffusion.Sampler(num_steps=4)
  with pytest.raises(data.DataError, match='--num_steps=0: give 1'):
    make_pairs.make_pairs(
        path, str(tmp_path / 'none'), num=1, num_shards=1, shards=range(1),
        settings=diffusion.Sampler(num_steps=0), seed=0, batch_size=1)
  with pytest.raises(data.DataError, match='was made with .*num_steps=3.*num_s'
                     'teps=4.* Give another folder'):
    make('pairs', range(3))
  with pytest.raises(ValueError, match='nor written by msd_jax.conv'):
    make_pairs.read_teacher(str(tmp_path / 'pairs'))
  assert make_pairs.own_sigma_max(path) == 80


# Broken files.


def test_a_bad_zip_is_one_clear_sentence(tmp_path):
  path = tmp_path / 'a.zip'
  cases = [
      (dict(index=False), 'a zip without labels'),
      (dict(labels=None), 'a zip without labels'),
      (dict(labels=LABELS[:-1]), 'no label of .*img00000011.png'),
      (dict(labels=LABELS - 1), 'label -1 at index 1 is out of range'),
      (dict(labels=LABELS * .5), 'must be integers, not float64')]
  for kwargs, message in cases:
    labels = kwargs.get('labels', LABELS)
    if labels is not None and len(labels) < NUM:
      write_zip(path)
      with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
      index = json.loads(members['dataset.json'])
      index['labels'] = index['labels'][:-1]
      members['dataset.json'] = json.dumps(index).encode()
      with zipfile.ZipFile(path, 'w') as archive:
        for name, content in members.items():
          archive.writestr(name, content)
    else:
      write_zip(path, **kwargs)
    with pytest.raises(data.DataError, match=f'a.zip: .*{message}'):
      load('edm_zip', path)
  write_zip(path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(data.DataError, match='not a readable zip file'):
    load('edm_zip', path)
  with pytest.raises(data.DataError, match='needs --config.data_path=TRAIN'):
    load('edm_zip', '')


def test_a_bad_lmdb_is_one_clear_sentence(tmp_path):
  write_lmdb(tmp_path / 'short', num=9)
  with pytest.raises(data.DataError, match='says 12 images, but labels_9_data'):
    load('dmd2_lmdb', tmp_path / 'short')
  write_lmdb(tmp_path / 'cut')
  file = tmp_path / 'cut' / 'data.mdb'
  os.truncate(file, file.stat().st_size // 2)
  with pytest.raises(data.DataError, match='an LMDB cut short: .* bytes of'):
    dmd2_lmdb.LmdbSource(str(tmp_path / 'cut'))
  with pytest.raises(data.DataError, match='no LMDB file .*none/data.mdb|none'):
    load('dmd2_lmdb', tmp_path / 'none')
  lmdb = pytest.importorskip('lmdb')
  lmdb.open(str(tmp_path / 'other')).close()
  with pytest.raises(data.DataError, match='not an LMDB of DMD2: images_shape'):
    load('dmd2_lmdb', tmp_path / 'other')


def test_bad_cifar_batches_are_one_clear_sentence(tmp_path):
  with pytest.raises(data.DataError, match='neither data_batch_1 nor'):
    load('cifar10', tmp_path)
  write_cifar_binary(tmp_path)
  path = tmp_path / 'data_batch_2.bin'
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(data.DataError, match='cut short: 12291 bytes'):
    load('cifar10', tmp_path)
  write_cifar_python(tmp_path)
  path = tmp_path / 'data_batch_3'
  whole = path.read_bytes()
  for content, message in (
      (whole[:-50], 'damaged'), (pickle.dumps({}), 'not a batch of CIFAR-10'),
      (pickle.dumps({b'data': os.system, b'labels': []}), 'nothing of it was')):
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=f'data_batch_3: .*{message}'):
      load('cifar10', tmp_path)


def test_bad_records_are_one_clear_sentence(tmp_path):
  with pytest.raises(data.DataError, match='no array_record files'):
    load('array_record', tmp_path)
  write_records(tmp_path / 'data')
  file = sorted((tmp_path / 'data').iterdir())[0]
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(data.DataError, match='a damaged array_record'):
    load('array_record', tmp_path / 'data')
