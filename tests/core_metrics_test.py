"""Lines survive a kill, progress is one line, what is not finite is named."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from core_jax import hosts
from core_jax import metrics


def strict(line):
  def refuse(name):
    raise ValueError(f'{name} is not strict JSON')
  return json.loads(line, parse_constant=refuse)


def write_steps(workdir, steps, resume_step=0):
  with metrics.MetricsWriter(workdir, resume_step) as writer:
    for step in steps:
      writer.write(step, 'train', {'loss': 1 / step})


def events(workdir):
  """TensorBoard's records: length, its checksum, event, its checksum."""
  from tensorboardX.proto import event_pb2
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      size, = struct.unpack('<Q', data[:8])
      yield event_pb2.Event.FromString(data[12:12 + size])
      data = data[16 + size:]


def test_lines_are_strict_json(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(np.int64(3), 'train',
                 {'loss': jnp.float32(0.5), 'bad': float('nan'),
                  'worse': -jnp.inf, 'count': 2}, seconds=1.5)
    line, = (tmp_path / 'metrics.jsonl').read_text().splitlines()  # flushed
  expected = {'step': 3, 'stage': 'train', 'seconds': 1.5, 'loss': 0.5,
              'bad': None, 'worse': None, 'count': 2.0}
  assert strict(line) == expected
  assert metrics.read(tmp_path) == [expected]


def test_reserved_names_are_refused(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match='stage'):
      writer.write(1, 'train', {'stage': 1.0})


@pytest.mark.parametrize('tail', [b'', b'{"step": 6, "st', b'{"step": 6\0\xff'])
def test_resume_drops_later_and_half_lines(tmp_path, tail):
  write_steps(tmp_path, range(1, 6))
  with (tmp_path / 'metrics.jsonl').open('ab') as f:
    f.write(tail)
  write_steps(tmp_path, range(4, 7), resume_step=3)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [strict(line)['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert [row['loss'] for row in metrics.read(tmp_path)] == [
      1 / step for step in range(1, 7)]
  assert not list(tmp_path.glob('*.partial'))


def test_damage_inside_the_file_is_an_error(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"st\n{"step": 2}\n')
  with pytest.raises(ValueError, match='line 2'):
    metrics.read(tmp_path)


def test_no_file_reads_as_no_lines(tmp_path):
  assert metrics.read(tmp_path) == []


def test_only_process_zero_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(hosts, 'is_first', lambda: False)
  with metrics.MetricsWriter(tmp_path / 'run') as writer:
    writer.write(1, 'train', {'loss': 1.0})
  assert not (tmp_path / 'run').exists()


def test_tensorboard_events(tmp_path):
  pytest.importorskip('tensorboardX')
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(4, 'train', {'loss': 0.25})
  values = {value.tag: (event.step, value) for event in events(tmp_path)
            for value in event.summary.value}
  assert values['train/loss'][0] == 4
  assert values['train/loss'][1].simple_value == 0.25


def test_tensorboard_purges_what_is_run_again(tmp_path):
  pytest.importorskip('tensorboardX')
  write_steps(tmp_path, range(1, 6))
  write_steps(tmp_path, range(4, 6), resume_step=3)
  starts = [event.step for event in events(tmp_path)
            if event.HasField('session_log')]
  assert starts[-1] == 4  # TensorBoard drops earlier events from there on


def test_tensorboard_is_optional(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, 'tensorboardX', None)
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, 'train', {'loss': 1.0})
  assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']


def test_check_finite_names_metric_stage_and_step():
  metrics.check_finite({'loss': 1.0}, 7, 'train')
  with pytest.raises(FloatingPointError) as error:
    metrics.check_finite({'loss': jnp.nan, 'fine': 1.0, 'norm': np.inf}, 7,
                         'train')
  assert str(error.value) == 'train, step 7: loss is nan, norm is inf'


def test_progress_line():
  # 1000 steps in 20 s: 50 a second, and the 8800 left take 176 s = 2:56.
  line = metrics.progress_line(
      'train', 1200, 10000, since=200, seconds=20.0,
      scalars={'norm': jnp.float32(2.0), 'loss': 0.123456})
  assert line == ('train  1200/10000  12%  50.00 steps/s  ETA 02:56'
                  '  norm 2  loss 0.1235')


def test_progress_line_is_short_ascii_and_defined_at_the_start():
  names = {f'metric_of_a_long_name_{i}': 1.0 for i in range(9)}
  line = metrics.progress_line('étape', 5, 5, since=5, seconds=0.0,
                               scalars=names)
  assert line.isascii() and len(line) <= 110 and '\r' not in line
  slow = metrics.progress_line('train', 1, 9, since=0, seconds=4.0, scalars={})
  assert '4.00s/step' in slow
