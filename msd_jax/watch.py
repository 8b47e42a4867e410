"""What to look at while students learn: brightness, predictions, cost.

DMD2 (appendix C) saw brightness oscillate where the fake score lags behind the
generator; predictions of both scores side by side show what DM follows.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core_jax import hosts
from core_jax import metrics as metrics_lib
from msd_jax import diffusion
from msd_jax import figures
from msd_jax import turns

_PER_STUDENT = 4  # Images of a student in a panel.
_MOST_STUDENTS = 8
PANEL_LEVELS = (300, 600)  # Of 1000, ascending: little noise, and much.


def brightness_alarm(scalars: Mapping[str, float], limit: float) -> str:
  """A warning where a student's images are brighter or darker than real ones.

  Args:
    scalars: of a log line.
    limit: of the drift, in deviations of the real images' means; 0: never.
  """
  drift = scalars.get('brightness_drift', 0.)
  if not limit or drift <= limit:
    return ''
  return (f'brightness has drifted {drift:.2f} deviations from the real '
          "images': more fake-score updates (ratio) or a lower lr may help")


def worst_drift(workdir: Any, stage: str) -> tuple[float, int]:
  """The largest drift of a stage's log, and its step; (0, 0) without one."""
  rows = [(row['brightness_drift'], row['step'])
          for row in metrics_lib.read(workdir)
          if row['stage'] == stage and row.get('brightness_drift') is not None]
  return max(rows, default=(0., 0))


def make_panels(
    networks: turns.Networks, settings: turns.Settings,
    shape: tuple[int, ...],
) -> Callable[[Any, Any], dict[str, jax.Array]]:
  """(state, frozen) -> title -> images [K n, H, W, C], n of each student.

  Of the same noise at every call: G(z), and under noise of two levels what the
  teacher (real) and the fake score make of it.
  """
  levels = diffusion.karras_sigmas(
      settings.num_levels, settings.sigma_min, settings.sigma_max)[::-1]

  def one(inputs, teacher):
    student, (classes, size), index = inputs
    key = jax.random.fold_in(jax.random.key(0), index)
    z, noise = jax.random.normal(key, (2, _PER_STUDENT, *shape))
    labels = classes[jnp.arange(_PER_STUDENT) % size]
    x = turns.generated(
        networks.generator, student.generator, z, labels, settings.sigma_max)

    def predicted(level):
      sigma = jnp.broadcast_to(level, labels.shape)
      noisy = x + level * noise
      return (networks.teacher(teacher, noisy, sigma, labels),
              networks.fake(student.fake, noisy, sigma, labels))

    # A loop, so that the networks are compiled once.
    real, fake = jax.lax.map(predicted, levels[jnp.array(PANEL_LEVELS)])
    found = {'G(z)': x}
    for i, level in enumerate(PANEL_LEVELS):
      found[f'real, level {level}'] = real[i]
      found[f'fake, level {level}'] = fake[i]
    return found

  @jax.jit
  def panels(state, frozen):
    num = min(_MOST_STUDENTS, len(frozen['sizes']))
    parts = (frozen['classes'], frozen['sizes'])
    inputs = jax.tree.map(
        lambda x: x[:num], (state.students, parts, jnp.arange(len(parts[1]))))
    found = jax.lax.map(
        lambda inputs: one(inputs, frozen['teacher']), inputs)
    return {title: x.reshape(-1, *shape) for title, x in found.items()}

  return panels


def panel_path(workdir: Any, stage: str) -> pathlib.Path:
  """Where the newest panels of a stage are."""
  return pathlib.Path(workdir) / 'figures' / f'panels_{stage}.png'


def draw_panels(
    panels: Callable[[Any, Any], dict[str, jax.Array]], stage: str,
    state: Any, frozen: Any, workdir: str,
) -> None:
  """Draws the panels of the state; see `loop.Stage.observe`."""
  images = hosts.fetch(panels(state, frozen))
  if hosts.is_first():
    labels = np.arange(len(images['G(z)'])) // _PER_STUDENT
    figures.image_grid(
        str(panel_path(workdir, stage)), images, labels=labels,
        class_names=[f'student {k}' for k in range(labels.max() + 1)],
        title='What students make, and what both scores see in it')


def ledger(
    workdir: Any, stages: Sequence[Any], num_students: Mapping[str, int]
) -> list[dict[str, Any]]:
  """What each stage took for each of its students, from the log.

  Work that was lost with a process, or after its last log line, is not in it.

  Args:
    workdir: of the run.
    stages: `loop.Stage`s, in order.
    num_students: K of stages of students; other stages have one network.

  Returns:
    Rows with 'stage', 'networks', and for one network 'tflop' (matrix products
    and convolutions) and 'device_seconds' (of all devices together).
  """
  rows = metrics_lib.read(workdir)
  found = []
  for stage in stages:
    own = [row for row in rows if row['stage'] == stage.name]
    total = lambda name, own=own: sum(row.get(name) or 0. for row in own)
    num = num_students.get(stage.name, 1)
    # The log has the FLOPs of one shard, which holds a share of the students.
    shards = stage.mesh.shape['student'] if num > 1 else 1
    found.append({
        'stage': stage.name, 'networks': num,
        'tflop': total('gflop') * shards / num / 1e3,
        'device_seconds': total('seconds') * stage.mesh.size / num})
  return found
