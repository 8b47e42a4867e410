"""A run's page needs no other file, and its summary is flat strict JSON."""

import html.parser
import json
import re

import jax
import jax.numpy as jnp
import matplotlib
import ml_collections
import numpy as np
from PIL import Image
import pytest

from core_jax import curves
from core_jax import metrics
from core_jax import report


class Page(html.parser.HTMLParser):
  """Collects the sources that a page loads, and its text."""

  def __init__(self, path):
    super().__init__()
    self.sources, self.tags, self.text = [], [], []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.sources += [v for k, v in attrs if k in ('src', 'href', 'srcset')]

  def handle_data(self, data):
    self.text.append(data)


def log_metrics(workdir, num_steps=12):
  with metrics.MetricsWriter(workdir) as writer:
    for step in range(1, num_steps + 1):
      writer.write(step, 'warm up', {
          'loss/0': 1 / step, 'loss/1': 2 / step,
          'bad': float('nan') if step == 3 else 1.0}, seconds=float(step))
    writer.write(num_steps, 'evaluate', {'distance': 0.5})


def write_report(workdir, sections=(), config=None):
  return report.write_report(
      workdir, title='A <title>', lead='What is to be seen.',
      sections=sections, config={} if config is None else config,
      command='python -m package.main --workdir="runs/x"')


def test_environment_is_flat():
  facts = report.environment()
  assert facts['device_count'] == jax.device_count()
  assert facts['jax_version'] == jax.__version__
  assert all(isinstance(x, (str, int)) for x in facts.values())


def test_summary_is_flat_strict_json(tmp_path):
  summary = report.write_summary(
      tmp_path, {'distance': jnp.float32(0.5), 'count': np.int64(3),
                 'bad': float('inf'), 'parts': {'a': 1.0}},
      seed=7, steps=100, wall_seconds=1.5)
  read = json.loads((tmp_path / 'summary.json').read_text())
  assert read == summary
  assert not any(isinstance(x, (dict, list)) for x in read.values())
  assert summary | {
      'distance': 0.5, 'count': 3, 'bad': None, 'parts_a': 1.0, 'seed': 7,
      'steps': 100, 'wall_seconds': 1.5} == summary


def test_summary_names_what_it_refuses(tmp_path):
  run = {'seed': 0, 'steps': 1, 'wall_seconds': 0.0}
  with pytest.raises(ValueError, match='seed'):
    report.write_summary(tmp_path, {'seed': 1.0}, **run)
  with pytest.raises(TypeError, match='curve'):
    report.write_summary(tmp_path, {'curve': np.zeros(3)}, **run)
  assert not (tmp_path / 'summary.json').exists()


def test_a_blank_figure_has_its_pixels_and_its_folder(tmp_path):
  curves.save(curves.blank(300, 200), tmp_path / 'new' / 'a.png')
  with Image.open(tmp_path / 'new' / 'a.png') as image:
    assert image.size == (300, 200)
    assert image.getpixel((5, 5))[:3] == (255, 255, 255)


def test_curves_of_each_stage_that_has_a_course(tmp_path):
  log_metrics(tmp_path)
  before = dict(matplotlib.rcParams)
  path, = curves.plot_curves(tmp_path)
  assert path == tmp_path / 'figures' / 'curves_warm_up.png'
  with Image.open(path) as image:
    assert min(image.size) > 200
  assert dict(matplotlib.rcParams) == before


def test_metrics_with_an_index_share_a_panel():
  rows = [{'step': step, 'stage': 'train', 'loss/0': 1.0, 'loss/1': None,
           'val/loss': 2.0} for step in (1, 2)]
  panels = curves._panels(rows)
  assert {name: list(panel) for name, panel in panels.items()} == {
      'loss': ['0', '1'], 'val/loss': ['loss']}
  np.testing.assert_array_equal(panels['loss']['1'],
                                ([1.0, 2.0], [np.nan, np.nan]))


def test_log_scale_over_two_decades():
  assert curves._spans_decades(np.array([1.0, np.nan, 101.0]))
  assert not curves._spans_decades(np.array([1.0, 99.0]))
  assert not curves._spans_decades(np.array([0.0, 1e6]))
  assert not curves._spans_decades(np.array([np.nan]))


def test_running_mean_leaves_out_what_is_missing():
  # Neighbours of three: (1 + 2)/2, (1 + 2)/2, (2 + 6)/2, 6.
  values = np.array([1.0, 2.0, np.nan, 6.0])
  np.testing.assert_allclose(curves._running_mean(values, 3),
                             [1.5, 1.5, 4.0, 6.0])


def test_report_needs_no_other_file(tmp_path):
  log_metrics(tmp_path)
  Image.new('L', (8, 8)).save(tmp_path / 'samples.png')
  report.write_summary(tmp_path, {}, seed=41, steps=12, wall_seconds=287.4)
  path = write_report(tmp_path, [
      report.Heading('Samples'), report.Text('A paragraph.'),
      report.Figure(tmp_path / 'samples.png', 'Some samples')])
  page = Page(path)
  assert path == tmp_path / 'report.html'
  assert len(page.sources) == 2  # the samples and one picture of curves
  assert all(x.startswith('data:image/png;base64,') for x in page.sources)
  assert not re.search(r'https?://|@import|url\(', path.read_text())
  assert not {'script', 'link', 'iframe'} & set(page.tags)
  text = ' '.join(page.text)
  for expected in ('A paragraph.', 'Some samples', '41', '4 min 47 s',
                   f'jax {jax.__version__}', '--workdir="runs/x"'):
    assert expected in text


def test_report_escapes_what_it_is_given(tmp_path):
  config = ml_collections.ConfigDict(
      {'seed': 3, 'name': '<script>alert(1)</script> & "more"',
       'nested': {'rate': 0.5}})
  nasty = '<img src=x>'
  path = write_report(tmp_path, [
      report.Text(nasty), report.Table([nasty], [[nasty]], nasty)], config)
  page = Page(path)
  assert not {'script', 'img'} & set(page.tags)
  text = ' '.join(page.text)
  assert '<script>alert(1)</script> & \\"more\\"' in text
  assert nasty in text and 'A <title>' in text and '"rate": 0.5' in text


def test_report_shows_no_undefined_part_without_metrics(tmp_path):
  text = write_report(tmp_path, config={'seed': 3}).read_text()
  assert '<h2>Curves</h2>' not in text and '<h2>Run</h2>' in text


def test_tables_align_numbers_right(tmp_path):
  table = report.Table(
      ['model', 'calls', 'distance', 'spread'],
      [['teacher', 35, 0.28123, '0.28 ± 0.02'], ['floor', None, 1e-6, None]],
      'Distances')
  text = write_report(tmp_path, [table]).read_text()
  assert '<th scope="col">model</th>' in text
  assert '<td>teacher</td>' in text
  for cell in ('35', '0.281', '0.28 ± 0.02', '–', '1.00e-06'):
    assert f'<td class="number">{cell}</td>' in text


def test_ragged_table_is_refused(tmp_path):
  with pytest.raises(ValueError, match="'Distances': 2 columns.*row of 1"):
    write_report(tmp_path, [report.Table(['a', 'b'], [[1]], 'Distances')])


@pytest.mark.parametrize('value,text', [
    (0.0, '0'), (0.28123, '0.281'), (0.3, '0.300'), (-12.345, '-12.3'),
    (123.4, '123'), (999.9, '1,000'), (12345.6, '12,300'),
    (2.5e7, '2.50e+07'), (4800, '4800'), (295899267, '295,899,267'),
    (float('nan'), 'nan')])
def test_numbers_have_three_significant_digits(value, text):
  assert report.format_number(value) == text
