"""Data sets in three parts, and text: what is read and what is refused."""

import gzip

import ml_collections
import numpy as np
import pytest

from core_jax import text
from stn_jax import data


def config(**fields):
  return ml_collections.ConfigDict(dict(
      dataset='digits', valid_examples=300, train_examples=0, seed=0,
      data_path='', window_tokens=4) | fields)


def rows(part):
  return [row.tobytes() for row in part['image']]


def test_the_digits_are_split_into_three_parts_that_share_nothing():
  dataset = data.load(config())
  sizes = {name: len(part['label']) for name, part in dataset.parts.items()}
  assert sum(sizes.values()) == 1797 and sizes['valid'] == 300
  seen = [row for part in dataset.parts.values() for row in rows(part)]
  assert len(set(seen)) == 1797
  counts = np.bincount(dataset.parts['test']['label'])
  assert len(counts) == 10 and np.ptp(counts) <= 2
  image = dataset.parts['train']['image']
  assert image.dtype == np.float32 and (image.min(), image.max()) == (0, 1)


def test_fewer_training_examples_leave_the_other_parts_as_they_are():
  whole, few = data.load(config()), data.load(config(train_examples=50))
  assert len(few.parts['train']['label']) == 50
  assert set(rows(few.parts['train'])) < set(rows(whole.parts['train']))
  assert rows(few.parts['valid']) == rows(whole.parts['valid'])


def test_the_parts_have_streams_of_their_own_and_a_whole_with_weights():
  dataset = data.load(config())
  train, valid = (dataset.batches(part, 32) for part in ('train', 'valid'))
  assert train(0)['image'].shape == (32, 8, 8, 1)
  assert not np.array_equal(train(0)['label'], valid(0)['label'])
  whole = dataset.whole('valid', 128)
  assert [len(batch['label']) for batch in whole] == [128, 128, 128]
  assert sum(batch['weight'].sum() for batch in whole) == 300
  kept = np.concatenate([b['label'][b['weight'] > 0] for b in whole])
  np.testing.assert_array_equal(kept, dataset.parts['valid']['label'])


@pytest.mark.parametrize(('fields', 'message'), [
    ({'dataset': 'mnist'}, "config.dataset='mnist' is unknown; there are "),
    ({'valid_examples': 0}, 'the valid set is empty: .* valid_examples'),
    ({'valid_examples': 5000}, 'valid_examples=5000, but there are 14'),
    ({'valid_examples': -1}, 'valid_examples=-1'),
    ({'train_examples': -1300}, 'train_examples=-1300, but 11.. are left'),
    ({'train_examples': 1200}, 'train_examples=1200, but 11.. are left'),
    ({'dataset': 'fashion', 'data_path': '/nowhere'}, "no folder '/nowhere'"),
    ({'dataset': 'cifar10', 'data_path': '/nowhere'},
     '/nowhere/data_batch_1.bin: cannot be read.*cifar-10-batches-bin')])
def test_a_data_set_that_says_nothing_is_refused(fields, message):
  with pytest.raises(data.DataError, match=message):
    data.load(config(**fields))


def test_a_validation_set_that_is_the_training_set_is_refused():
  image = np.arange(12, dtype=np.float32).reshape(6, 2)
  parts = {'train': {'image': image}, 'valid': {'image': image[::-1]},
           'test': {'image': image + 100}}
  with pytest.raises(data.DataError, match='6 of 6 validation examples are'):
    data.check_parts(parts)
  data.check_parts(parts | {'valid': {'image': image + 50}})


def write_idx(path, values, lie=0):
  head = bytes([0, 0, 8, values.ndim]) + np.array(
      [values.shape[0] + lie, *values.shape[1:]], '>u4').tobytes()
  path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def write_fashion(folder, lie=0, side=28, labels=lambda num: num % 10):
  for prefix, num, offset in (('train', 30, 0), ('t10k', 10, 50)):
    pixels = np.zeros((num, side, side), np.uint8)
    pixels[:, 3, 5] = np.arange(num) + offset
    write_idx(folder / f'{prefix}-images-idx3-ubyte.gz', pixels, lie)
    write_idx(folder / f'{prefix}-labels-idx1-ubyte.gz',
              labels(np.arange(num)))


def test_fashion_is_read_from_idx_files(tmp_path):
  write_fashion(tmp_path)
  parts = data.load(config(
      dataset='fashion', data_path=str(tmp_path), valid_examples=10)).parts
  assert [len(parts[p]['label']) for p in text.SPLITS] == [20, 10, 10]
  for part in parts.values():
    pixel = np.round(part['image'][:, 3, 5, 0] * 255)
    np.testing.assert_array_equal(pixel % 10, part['label'])


def test_a_damaged_idx_file_is_named(tmp_path):
  write_fashion(tmp_path, lie=1)
  fields = config(dataset='fashion', data_path=str(tmp_path))
  with pytest.raises(data.DataError, match='train-images.*its header says'):
    data.load(fields)
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  path.write_bytes(gzip.compress(b'something else'))
  with pytest.raises(data.DataError, match='train-images.*not an IDX file'):
    data.load(fields)
  path.write_bytes(b'\x1f\x8b cut short')
  with pytest.raises(data.DataError, match='train-images.*damaged gzip'):
    data.load(fields)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'side': 56}, r'\(train\): images are \(56, 56, 1\), not \(28, 28, 1\)'),
    ({'labels': lambda num: num[:-1]}, r'\(train\): 30 images, but 29 labels'),
    ({'labels': lambda num: num % 10 + 67 * (num == 3)},
     r'\(train\): label 70 at index 3 is out of range; 10 classes')])
def test_images_and_labels_that_do_not_fit_are_named(
    fields, message, tmp_path):
  write_fashion(tmp_path, **fields)
  with pytest.raises(data.DataError, match=message):
    data.load(config(dataset='fashion', data_path=str(tmp_path)))


def test_a_part_smaller_than_a_batch_is_named():
  with pytest.raises(
      data.DataError, match='the valid set has 8 examples, .* batch_size=16'):
    data.load(config(valid_examples=8)).batches('valid', 16)


def test_cifar10_is_read_from_its_binary_batches(tmp_path, monkeypatch):
  """A row: the label, then the planes red, green, blue, each row by row."""
  names = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
  monkeypatch.setattr(data, '_CIFAR_IMAGES', 300)
  index = np.arange(300)
  for i, name in enumerate(names):
    block = np.zeros((300, 3073), np.uint8)
    block[:, 0] = (index + i) % 10
    block[:, 1 + 1024 + 32 * 2 + 3] = 40 * (i + 1)  # Green, row 2, column 3.
    block[:, 1], block[:, 2] = index % 256, index // 256
    (tmp_path / f'{name}.bin').write_bytes(block.tobytes())
  fields = config(dataset='cifar10', data_path=str(tmp_path))
  parts = data.load(fields).parts
  green = lambda part: set(np.round(
      255 * parts[part]['image'][:, 2, 3, 1]).astype(int))
  assert {part: green(part) for part in parts} == {
      'train': {40, 80, 120, 160}, 'valid': {200}, 'test': {240}}
  assert parts['valid']['image'].shape == (300, 32, 32, 3)
  np.testing.assert_array_equal(parts['valid']['label'], (index + 4) % 10)
  (tmp_path / 'data_batch_2.bin').write_bytes(bytes(3073 * 3))
  with pytest.raises(data.DataError, match='batch_2.bin has 3 images; 300'):
    data.load(fields)


def test_the_regression_is_the_one_whose_optima_are_known():
  parts = data.regression(seed=3).parts
  assert parts['train']['x'].shape == (30, 20)
  assert parts['valid']['x'].shape == (500, 20)
  np.testing.assert_array_equal(
      parts['train']['x'], data.regression(seed=0).parts['train']['x'])


def sentences(num):
  return (['the', 'cat', 'sat', text.EOS] * num)[:num]


def test_windows_of_a_stream_follow_each_other():
  words = [f'w{i}' for i in range(40)]
  dataset = data.language(
      {'train': words, 'valid': words[30:5:-1], 'test': words[:9]}, 4)
  ids = dataset.parts['train']['tokens']
  batch = dataset.batches('train', 2)
  np.testing.assert_array_equal(batch(0)['tokens'][1], ids[20:24])
  for step in range(3):
    np.testing.assert_array_equal(
        batch(step)['targets'][:, -1], batch(step + 1)['tokens'][:, 0])
    np.testing.assert_array_equal(
        batch(step)['tokens'][:, 1:], batch(step)['targets'][:, :-1])
  # 19 transitions a row: 4 whole windows, then from the start again.
  np.testing.assert_array_equal(batch(4)['tokens'], batch(0)['tokens'])
  assert dataset.num_classes == 40


def test_a_part_as_a_whole_counts_every_transition_once():
  words = [f'w{i}' for i in range(40)]
  dataset = data.language(
      {'train': words, 'valid': words[::-1], 'test': words[2:]}, 4)
  ids = dataset.parts['test']['tokens']
  whole = dataset.whole('test', 1)
  pairs = [(int(t), int(n)) for w in whole for t, n, k in zip(
      w['tokens'][0], w['targets'][0], w['weight'][0], strict=True) if k]
  assert pairs == list(zip(ids[:-1], ids[1:], strict=True))
  assert {w['tokens'].shape for w in whole} == {(1, 4)}


def test_text_that_says_nothing_is_refused():
  words, other = sentences(40), ['cat', 'the'] * 3
  for copied in (words, words[3:24]):
    with pytest.raises(data.DataError, match='stretches of the validation'):
      data.language({'train': words, 'valid': copied, 'test': words}, 4)
  with pytest.raises(data.DataError, match='the valid text is empty'):
    data.language({'train': words, 'valid': [], 'test': words}, 4)
  dataset = data.language(
      {'train': words, 'valid': other, 'test': words}, 4)
  with pytest.raises(data.DataError, match='valid: 6 tokens in batch_size=3 '):
    dataset.batches('valid', 3)


def test_ids_go_by_frequency_and_unknown_words_are_named():
  ids, words = text.encode({'train': ['b', 'a', 'b', 'c'], 'valid': ['a']})
  assert words == ['b', 'a', 'c']
  np.testing.assert_array_equal(ids['train'], [0, 1, 0, 2])
  with pytest.raises(text.TextError, match="valid has 1 words .* 'z'"):
    text.encode({'train': ['a'], 'valid': ['z']})


def test_a_vocabulary_keeps_the_most_frequent_of_train():
  """Of three types <unk> is one; equally frequent words: the first stays."""
  texts = {'train': ['a', 'b', 'c', 'a', text.EOS, text.EOS, text.EOS],
           'valid': ['b', 'c', 'd', text.EOS]}
  limited = text.limit_vocabulary(texts, 4)
  assert limited['train'] == ['a', 'b', text.UNK, 'a', *[text.EOS] * 3]
  assert limited['valid'] == ['b', text.UNK, text.UNK, text.EOS]
  assert len(set(limited['train'])) == 4


def test_treebank_files_are_read_a_sentence_a_line(tmp_path, monkeypatch):
  for split in text.SPLITS:
    (tmp_path / f'ptb.{split}.txt').write_text(' the <unk> sat \n N cats \n')
  with pytest.raises(
      text.TextError, match='train has 7 tokens, <eos> .*; 929,589 were'):
    text.read_ptb(str(tmp_path))
  monkeypatch.setattr(text, 'PTB_COUNTS', dict.fromkeys(text.SPLITS, 7))
  assert text.read_ptb(str(tmp_path))['test'] == [
      'the', '<unk>', 'sat', '<eos>', 'N', 'cats', '<eos>']
  (tmp_path / 'ptb.valid.txt').unlink()
  with pytest.raises(text.TextError, match='ptb.valid.txt cannot be read'):
    text.read_ptb(str(tmp_path))


def write_brown(folder, num=500):
  """Documents of one sentence: their number's word, and what all share."""
  for i in range(num):
    name = f'c{"abcdefghijklmnopqr"[i // 50]}{i % 50:02}'
    (folder / name).write_text(
        f'\n\tThe/at  Doc{i % 14}/nn cost/vbd 1,200.50/cd and/or/cc 3rd/od '
        './.\n\n ``/`` !/.\n', encoding='latin-1')


def test_brown_is_read_in_treebank_form(tmp_path, monkeypatch):
  write_brown(tmp_path)
  monkeypatch.setattr(text, 'BROWN_COUNTS', {
      'train': 429 * 7, 'valid': 36 * 7, 'test': 35 * 7})
  texts = text.read_brown(str(tmp_path))
  assert texts['train'][:7] == [
      'the', 'doc0', 'cost', 'N', 'and/or', 'N', '<eos>']
  # The seventh of every fourteen, whose word train does not know.
  assert texts['valid'][:2] == ['the', '<unk>']
  words = {t for t in texts['train'] if t.startswith('doc')}
  assert words == {f'doc{i}' for i in range(14) if i not in (6, 13)}
  monkeypatch.setattr(text, '_BROWN_VOCABULARY', 6)
  limited = text.read_brown(str(tmp_path))['train']
  assert set(limited) == {'the', 'cost', 'N', 'and/or', '<eos>', '<unk>'}


def test_an_incomplete_brown_is_refused(tmp_path):
  write_brown(tmp_path, num=3)
  with pytest.raises(text.TextError, match='holds 3 of the 500 documents'):
    text.read_brown(str(tmp_path))
  write_brown(tmp_path)
  with pytest.raises(text.TextError, match='918,026 were expected'):
    text.read_brown(str(tmp_path))
