"""Distribution matching of DMD and DMD2 for K students at once.

One round is DMD2's cycle in one compiled program: a generator update and
`ratio` fake-score updates, the first of them on the images of the generator
update (turns.py). Students share the teacher and nothing else; they are an
axis [K, ...] of every leaf, updated in place by `mesh.update_students`.
"""

from collections.abc import Callable
import functools
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp

from core_jax import mesh as mesh_lib
from msd_jax import pixels
from msd_jax import turns
from msd_jax.turns import Student


@struct.dataclass
class State:
  """Arrays only; what computes with them is closed over by the round."""

  step: jax.Array  # int32 []: rounds done
  key: jax.Array  # typed PRNG key []; never changes
  students: Any  # [K, ...], of a dataclass such as Student


def make_init(
    networks: turns.Networks,
    num_students: int,
    *,
    key: jax.Array,
    ema: bool,
) -> Callable[[Any], State]:
  """frozen -> State: K students at the start of a stage, whose key this is.

  frozen: 'teacher', params of the teacher, from which the fake score starts;
  'start', params from which the generator starts (the teacher's, or those of
  a smaller network after teacher score matching). Students of an earlier
  stage have 'carried' instead of 'start': 'generator' [K, ...] and, where that
  stage had one, 'fake' [K, ...]. A new fake score of another network than the
  teacher's starts from 'fake'. The discriminator's head is always new.
  """

  def student(key, generator, fake):
    head = None if networks.init_head is None else networks.init_head(key)
    return Student(
        generator=generator,
        generator_opt_state=networks.generator_tx.init(generator),
        fake=fake, head=head,
        fake_opt_state=networks.fake_tx.init((fake, head)),
        ema=generator if ema else None)

  def init(frozen):
    step_key, head_key = jax.random.split(key)
    head_keys = jax.vmap(lambda k: jax.random.fold_in(head_key, k))(
        jnp.arange(num_students))
    carried = frozen.get('carried', {})
    fake = carried.get('fake')
    if fake is None:
      fake = spread(frozen.get('fake', frozen['teacher']), num_students)
    return State(
        step=jnp.int32(0), key=step_key,
        students=jax.vmap(student)(
            head_keys, starting_generators(frozen, num_students), fake))

  return init


def spread(tree: Any, num_students: int) -> Any:
  """The same for every student: [...] -> [K, ...]."""
  return jax.tree.map(
      lambda x: jnp.broadcast_to(x, (num_students, *jnp.shape(x))), tree)


def starting_generators(frozen: Any, num_students: int) -> Any:
  """Params [K, ...] of 'carried' or 'start'; see `make_init`."""
  if 'carried' in frozen:
    return frozen['carried']['generator']
  return spread(frozen['start'], num_students)


def update_student(
    recipe: turns.Recipe,
    student: Student,
    part: turns.Part,
    batch: turns.Batch,
    key: jax.Array,
    frozen: Any,
) -> tuple[Student, dict[str, jax.Array]]:
  """One round of one student on its part, (classes int32 [V], size []).

  Args:
    recipe: of the round.
    student: without the axis K, as `batch` is.
    part: the classes that it draws from.
    batch: 'real' [ratio, B, ...] with a discriminator, 'pairs' [B, ...] with
      regression, each a dict of arrays with 'label'.
    key: of the round and the student.
    frozen: 'teacher' and, with regression, 'distance'.
  """
  classes, size = part
  chex.assert_rank([classes, size], [1, 0])
  settings = recipe.settings
  draw_key, turn_key, rest_key, fake_key = jax.random.split(key, 4)
  draw = lambda key: turns.draw(
      key, part, settings.batch_size, recipe.shape, recipe.mesh)
  first = draw(draw_key)
  student, x, metrics = turns.update_generator(
      recipe, student, first, batch.get('pairs'), turn_key, frozen)

  def draw_generated(key):
    noise, labels = draw(key)
    return turns.generated(
        recipe.networks.generator, student.generator, noise, labels,
        settings.sigma_max), labels

  # The fake score learns first from the images of the generator's turn, made
  # before it (DMD2's loop), then from new ones: [ratio, B, ...].
  ratio = settings.ratio
  new = jax.lax.map(draw_generated, jax.random.split(rest_key, ratio - 1))
  images, labels = jax.tree.map(
      lambda a, b: jnp.concatenate([a[None], b]), (x, first[1]), new)
  guidance = (student.fake, student.head)
  (guidance, opt_state), of_fake = jax.lax.scan(
      functools.partial(turns.update_fake, recipe, frozen['teacher']),
      (guidance, student.fake_opt_state),
      (images, labels, batch.get('real'), jax.random.split(fake_key, ratio)))
  metrics |= {name: values.mean() for name, values in of_fake.items()}
  fake, head = guidance
  return student.replace(
      fake=fake, head=head, fake_opt_state=opt_state), metrics


def make_round(
    networks: turns.Networks,
    settings: turns.Settings,
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics), all students a round further.

  frozen: 'teacher', and the partition: 'classes' int32 [K, V], 'sizes' [K]
  (see partition.members); 'distance' with regression. The batch is empty, or
  has 'real' [B, K, ratio, ...] and 'pairs' [B, K, ...] (see batches.py);
  the rest is drawn from the key.
  """
  recipe = turns.Recipe(networks, settings, shape, mesh)

  def update(student, part, batch, own, key, shared):
    del own
    return update_student(recipe, student, part, batch, key, shared)

  return make_step(update, mesh)


def make_step(
    update: Callable[..., tuple[Any, dict[str, jax.Array]]],
    mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics) from one student's update.

  Args:
    update: (student, part, batch, own, key, shared) -> (student, metrics).
      `own` is the student's row of frozen['own'] (leaves [K, ...]), where
      'brightness' is mean and deviation of its real images' means; `shared`
      has 'teacher' and 'distance'.
    mesh: whose 'student' axis splits the students.
  """

  def one(student, inputs, key, shared):
    index, part, batch, own = inputs
    student, metrics = update(
        student, part, batch, own, jax.random.fold_in(key, index), shared)
    if 'brightness' in own:
      mean, deviation = own['brightness']
      metrics['brightness_drift'] = jnp.abs(
          metrics['brightness'] - mean) / deviation
    return student, metrics

  def step(state, batch, frozen):
    key = jax.random.fold_in(state.key, state.step)
    parts = (frozen['classes'], frozen['sizes'])
    shared = {name: frozen[name] for name in ('teacher', 'distance')
              if name in frozen}
    inputs = (jnp.arange(len(frozen['sizes'])), parts, _by_student(batch),
              frozen.get('own', {}))
    students, metrics = mesh_lib.update_students(one, mesh)(
        state.students, inputs, key, shared)
    # A mean would hide the one student that goes astray.
    over = {'brightness_drift': jnp.max}
    return state.replace(step=state.step + 1, students=students), {
        name: over.get(name, jnp.mean)(x) for name, x in metrics.items()}

  return step


def _by_student(batch):
  """'real' [B, K, ratio, ...] -> [K, ratio, B, ...]; others -> [K, B, ...].

  Images become [-1, 1] here, on the device.
  """
  turned = {
      name: jax.tree.map(
          lambda x, last=2 if name == 'real' else 1: jnp.moveaxis(x, 0, last),
          rows) for name, rows in batch.items()}
  return {name: {**rows, 'image': pixels.to_unit_range(rows['image'])}
          for name, rows in turned.items()}
