"""What a run shows: figures of every sampler, pictures, the report."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from core_jax import allocator
from core_jax import folder
from core_jax import keys
from core_jax import loop
from core_jax import report as report_lib
from msd_jax import diffusion
from msd_jax import evaluate
from msd_jax import figures as figures_lib
from msd_jax import reference as reference_lib
from msd_jax import routing
from msd_jax import setup
from msd_jax import toy2d
from msd_jax import watch
from msd_jax.formats import source as source_lib

_SHOWN = 4  # Images of a class, where nothing is measured.
_TITLES = {
    'single_equal_batch': '1 student, equal batch',
    'single_equal_compute': '1 student, equal compute',
}


def titles(run: setup.Setup) -> dict[str, str]:
  """Name of each sampler -> the same for people."""
  routers = run.routers
  found = {'teacher': 'Teacher'}
  for stage in setup.student_stages(run.config, routers):
    num = int(routers[stage.students].max()) + 1
    title = _TITLES.get(
        stage.students, f'{num} student{"" if num == 1 else "s"}')
    last = stage.name == stage.students
    found[stage.name] = title if last else f'{title}, after {stage.kind}'
  return found


def samplers(
    run: setup.Setup, params: dict[str, Any]
) -> dict[str, Callable[[np.ndarray, jax.Array], jax.Array]]:
  """Name -> (labels int32 [n], key) -> samples [n, ...]."""
  settings = diffusion.Sampler(
      num_steps=run.config.teacher.sampler_steps,
      sigma_min=run.config.sigma_min, sigma_max=run.config.sigma_max)
  denoised = setup.denoiser(run, run.teacher)

  @jax.jit
  def sample_teacher(teacher, labels, key):
    noise_key, key = jax.random.split(key)
    noise = jax.random.normal(
        noise_key, (labels.shape[0], *run.dataset.shape))
    return diffusion.sample(
        lambda x, sigma: denoised(teacher, x, sigma, labels), noise, key,
        settings)

  found = {'teacher': functools.partial(sample_teacher, params['teacher'])}
  for stage in setup.student_stages(run.config, run.routers):
    found[stage.name] = functools.partial(
        routing.generate, params[stage.name])
  return found


def report(
    run: setup.Setup,
    params: dict[str, Any],
    path: pathlib.Path,
    *,
    todo: Sequence[loop.Stage],
    started: float,
) -> dict[str, Any]:
  """Measures, draws and writes; returns what `summary.json` holds.

  Args:
    run: the run.
    params: results of all stages by name.
    path: the run's folder.
    todo: the stages that it went through.
    started: by the monotonic clock.
  """
  key = keys.stream(run.config.seed, 'evaluation')
  show = _points if len(run.dataset.shape) == 1 else _images
  figures, sections = show(run, params, path, key)
  sections += (_against_reference(run, path) + _watched(path, todo)
               + _ledger(run, path, todo))
  summary = report_lib.write_summary(
      path, figures, seed=run.config.seed,
      steps=sum(stage.num_steps for stage in todo),
      wall_seconds=time.monotonic() - started)
  page = report_lib.write_report(
      path, title=f'Multi-student distillation: {run.config.dataset}',
      lead=_lead(run), sections=sections, config=run.config,
      command=folder.resume_command(path))
  print(_closing(figures, page), flush=True)
  return summary


def _lead(run):
  return (
      f'A diffusion teacher ({2 * run.config.teacher.sampler_steps - 1} '
      f'evaluations a sample) and {run.config.num_students} students of one '
      'evaluation, each for its part of the classes.')


def _closing(figures, page):
  shown = '\n'.join(
      f'  {name:<32} {value:.4g}' for name, value in figures.items()
      if '_partition' not in name)
  return f'{shown}\nreport: {page}\nsummary: {page.with_name("summary.json")}'


def _against_reference(run, path):
  """The run's losses over those that the package has for its config."""
  config = json.loads(run.config.to_json_best_effort())
  reference = reference_lib.find(config)
  mine = reference_lib.courses(path)
  lines = reference and reference_lib.departures(reference, mine)
  if not lines:
    return []
  picture = path / 'figures' / 'reference.png'
  figures_lib.bands(picture, {
      f'{stage}: {name.replace("_", " ")}': (band, mine[stage].get(name, {}))
      for stage in lines
      for name, band in reference['stages'][stage].items()})
  return [
      report_lib.Heading('Against the reference'),
      *(report_lib.Text(f'{stage}: {line}.') for stage, line in lines.items()),
      report_lib.Figure(
          picture, 'Losses by step of the stage, over the least and largest of '
          f'seeds {", ".join(map(str, reference["seeds"]))}; a curve leaves '
          f'them beyond {reference_lib.MARGIN:.0%} of their mean')]


def _watched(path, todo):
  """What was watched: brightness, and the predictions of both scores."""
  sections = []
  for stage in todo:
    drift, step = watch.worst_drift(path, stage.name)
    panel = watch.panel_path(path, stage.name)
    if not step:
      continue
    sections.append(report_lib.Text(
        f'{stage.name}: the brightness of a student was at most {drift:.2f} '
        f"deviations from its real images' (step {step})."))
    if panel.exists():
      sections.append(report_lib.Figure(
          panel, f'{stage.name}: generated images, and the denoised ones of '
          'teacher (real) and fake score under noise'))
  return [report_lib.Heading('Watched'), *sections] if sections else []


def _ledger(run, path, todo):
  """The table of cost per network."""
  routers = run.routers
  num = {stage.name: int(routers[stage.students].max()) + 1 for stage in
         setup.student_stages(run.config, routers)}
  rows = [list(row.values()) for row in watch.ledger(path, todo, num)]
  if not rows:
    return []
  return [report_lib.Heading('Cost'), report_lib.Table(
      ['stage', 'networks', 'TFLOP for one', 'device seconds for one'], rows,
      'Matrix products and convolutions (3x3 ones as such, also where a CPU '
      "runs Winograd's fewer products); time of all devices together, with the "
      "drawing of panels, without the step's compilation.")]


def _images(run, params, path, key):
  """Figures and sections of a run on images."""
  if not run.config.classifier:
    return _unmeasured(run, params, path, key)
  module = setup.make_classifier(run)
  classify = functools.partial(
      evaluate.predict, module.apply, params['classifier'])
  routers = run.routers
  figures, samples = evaluate.evaluate_images(
      samplers(run, params), run.dataset, classify, key,
      num_sets=run.config.evaluation.num_sets,
      partitions={'students': routers['students']})
  named = {'real': 'Real', **titles(run)}
  test = run.dataset.test
  labels = source_lib.labels_of(test)[evaluate.rows(test)]
  grid = _grid(run, path, labels, {
      named[name]: images for name, images in samples.items()})
  columns = {'Fréchet distance': 'frechet', 'spread of sets': 'frechet_spread',
             'all sets together': 'frechet_pooled', 'label found': 'accuracy'}
  if run.config.evaluation.num_sets == 1:
    del columns['spread of sets'], columns['all sets together']
  rows = [[named[name], *(figures.get(f'{name}_{figure}')
                          for figure in columns.values())]
          for name in samples]
  rows[0][:2] = 'Real, not seen in training', figures['floor_frechet']
  tables = [report_lib.Table(
      ['', *columns], rows,
      'Fréchet distance on the features of a classifier trained on the same '
      f'images (not FID), to the real training images, in sets of '
      f'{len(run.dataset.test)}; the first row is the floor. Less is better.')]
  tables += _partition_table(run, figures, routers)
  return figures, [
      report_lib.Heading('Samples'),
      report_lib.Figure(grid, 'Real images, teacher and students'),
      report_lib.Heading('Distances'), *tables]


def _grid(run, path, labels, columns):
  """Draws images [N, H, W, C] of these labels by title; the PNG's path."""
  grid = path / 'figures' / 'samples.png'
  figures_lib.image_grid(
      grid, columns, labels=labels, class_names=run.dataset.class_names,
      title='One row a class; students make an image in one evaluation')
  return grid


def _unmeasured(run, params, path, key):
  """Samples alone, where no classifier's features measure them."""
  classes = np.arange(min(12, run.dataset.num_classes), dtype=np.int32)
  named, columns = titles(run), {}
  for name, sampler in samplers(run, params).items():
    # One image a class at a time: large networks take gigabytes for many.
    images = [np.asarray(sampler(classes, jax.random.fold_in(key, i)))
              for i in range(_SHOWN)]
    columns[named[name]] = np.clip(np.concatenate(images), -1, 1)
    allocator.release_freed_memory()
  grid = _grid(run, path, np.tile(classes, _SHOWN), columns)
  return {}, [
      report_lib.Heading('Samples'),
      report_lib.Figure(grid, 'Teacher and students'),
      report_lib.Text(
          'Without a classifier nothing is measured here: '
          '`python -m msd_jax.measure` takes the FID.')]


def _partition_table(run, figures, routers):
  """The students one by one, where there are several."""
  router, names = routers['students'], run.dataset.class_names
  rows = []
  for k in range(router.max() + 1):
    prefix = f'students_partition{k}'
    if f'{prefix}_frechet' in figures:
      classes = ', '.join(names[y] for y in np.flatnonzero(router == k))
      rows.append([classes] + [
          figures.get(f'{prefix}_{x}frechet')
          for x in ('floor_', 'teacher_', '')])
  if len(rows) < 2:
    return []
  return [report_lib.Table(
      ['classes of a student', 'real (floor)', 'teacher', 'student'], rows,
      'The same distance on the classes of each student alone; not to be '
      'compared with the distance on all classes.')]


def _points(run, params, path, key):
  """Figures and sections of a run in the plane."""
  found = samplers(run, params)
  num_samples = run.config.evaluation.num_samples
  figures = evaluate.evaluate_points(
      found, run.dataset.num_classes, key, num_samples=num_samples)
  labels = np.arange(4096, dtype=np.int32) % run.dataset.num_classes
  named = titles(run)
  real = run.dataset.test.arrays
  panels = {'Real': (real['image'][:4096], real['label'][:4096])} | {
      named[name]: (np.asarray(sampler(labels, key)), labels)
      for name, sampler in found.items()}
  plot = path / 'figures' / 'samples.png'
  figures_lib.points(plot, panels, extent=toy2d.LIMIT)
  rows = [['Teacher, another sample', figures['floor_l1']]] + [
      [named[name], figures[f'{name}_l1']]
      for name in found if name != 'teacher']
  return figures, [
      report_lib.Heading('Samples'),
      report_lib.Figure(
          plot, 'Data, teacher and students; colours are classes'),
      report_lib.Heading('Distances'),
      report_lib.Table(
          ['', 'l1'], rows,
          'Total l1 distance of 128 x 128 histograms over [-1.5, 1.5]^2 to '
          f'{num_samples:,} samples of the teacher, 0 to 2; the first row is '
          'the floor.')]
