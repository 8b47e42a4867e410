"""The distribution-matching stage of DMD2 for K students at once.

One round is DMD2's cycle in one compiled program: a generator update and
`ratio` fake-score updates, the first of them on the images of the generator
update. Students share the teacher and nothing else; they are an axis [K, ...]
of every leaf, mapped by `mesh.map_students`.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from core_jax import accumulate
from core_jax import mesh as mesh_lib
from msd_jax import diffusion
from msd_jax import losses


@struct.dataclass
class Student:
  """What one student learns; in State every leaf has a leading axis K."""

  generator: Any
  generator_opt_state: Any
  fake: Any  # the fake score: a denoiser of the student's own images
  fake_opt_state: Any
  ema: Any  # average of the generator; None where it is not wanted


@struct.dataclass
class State:
  """Arrays only; what computes with them is closed over by the round."""

  step: jax.Array  # int32 []: rounds done
  key: jax.Array  # typed PRNG key []; never changes
  students: Student  # [K, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of one student's round; the defaults are DMD2's at ImageNet-64."""

  batch_size: int  # per student
  ratio: int = 5  # fake-score updates per generator update
  sigma_data: float = 0.5
  sigma_min: float = 0.002
  sigma_max: float = 80.  # of the noise that the generator turns into images
  num_levels: int = 1000
  min_level: int = 20  # of the distribution-matching loss, of num_levels
  max_level: int = 980  # inclusive
  ema_decay: float = 0.  # 0: none
  microbatches: int = 1  # that a batch is worked through in


@dataclasses.dataclass(frozen=True)
class Networks:
  """The three denoisers and the two optimizers of the stage."""

  generator: diffusion.Denoiser
  fake: diffusion.Denoiser
  teacher: diffusion.Denoiser
  generator_tx: optax.GradientTransformation
  fake_tx: optax.GradientTransformation


def generated(
    generator: diffusion.Denoiser,
    params: Any,
    noise: jax.Array,
    labels: jax.Array,
    sigma_max: float | jax.Array,
) -> jax.Array:
  """G(z, y) = D(sigma_max z; sigma_max, y): one step (DMD2, sec. 3).

  noise [B, ...] of unit variance, labels int32 [B] -> images [B, ...].
  """
  sigma = jnp.full(noise.shape[:1], sigma_max, jnp.float32)
  return generator(params, sigma_max * noise, sigma, labels)


def make_init(
    networks: Networks,
    num_students: int,
    *,
    seed: int,
    ema: bool,
) -> Callable[[Any], State]:
  """frozen -> State: K students, each born as a copy of the teacher.

  frozen: 'teacher', params of the teacher, from which the fake score starts;
  'start', params from which the generator starts (the teacher's, or those of
  a smaller network after teacher score matching).
  """

  def student(generator, fake):
    return Student(
        generator=generator,
        generator_opt_state=networks.generator_tx.init(generator),
        fake=fake,
        fake_opt_state=networks.fake_tx.init(fake),
        ema=generator if ema else None)

  def init(frozen):
    one = student(frozen['start'], frozen['teacher'])
    return State(
        step=jnp.int32(0), key=jax.random.key(seed),
        students=jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_students, *jnp.shape(x))), one))

  return init


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What every part of a round reads."""

  networks: Networks
  settings: Settings
  shape: tuple[int, ...]  # of one example
  mesh: jax.sharding.Mesh  # whose 'data' axis splits the batch


def draw(
    recipe: Recipe, key: jax.Array, classes: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Noise [B, ...] and labels [B], uniform over the first `size` classes."""
  noise_key, label_key = jax.random.split(key)
  batch = recipe.settings.batch_size
  noise = jax.random.normal(noise_key, (batch, *recipe.shape))
  labels = classes[jax.random.randint(label_key, (batch,), 0, size)]
  return (mesh_lib.split_rows(noise, recipe.mesh),
          mesh_lib.split_rows(labels, recipe.mesh))


def noised(
    settings: Settings, key: jax.Array, x: jax.Array, low: int, high: int
) -> tuple[jax.Array, jax.Array]:
  """x [B, ...] at random levels low..high, inclusive: (noisy, sigma [B]).

  Levels are Karras's, ascending, as DMD2 counts them.
  """
  level_key, noise_key = jax.random.split(key)
  levels = diffusion.karras_sigmas(
      settings.num_levels, settings.sigma_min, settings.sigma_max)[::-1]
  sigma = levels[jax.random.randint(level_key, x.shape[:1], low, high + 1)]
  noise = jax.random.normal(noise_key, x.shape)
  return x + diffusion.expand(sigma, x) * noise, sigma


def update_generator(
    recipe: Recipe,
    student: Student,
    inputs: tuple[jax.Array, jax.Array],
    key: jax.Array,
    teacher: Any,
) -> tuple[Student, jax.Array, dict[str, jax.Array]]:
  """The generator's turn on (noise, labels); also the images made before it."""
  networks, settings = recipe.networks, recipe.settings

  def loss_fn(params, inputs, key):
    noise, labels = inputs
    x = generated(
        networks.generator, params, noise, labels, settings.sigma_max)
    fixed = jax.lax.stop_gradient(x)
    noisy, sigma = noised(
        settings, key, fixed, settings.min_level, settings.max_level)
    gradient = losses.distribution_matching_gradient(
        fixed, networks.teacher(teacher, noisy, sigma, labels),
        networks.fake(student.fake, noisy, sigma, labels))
    loss = losses.distribution_matching_loss(x, gradient)
    return loss, (fixed, gradient)

  grad_fn = accumulate.value_and_grad(loss_fn, settings.microbatches)
  (_, (x, gradient)), grads = grad_fn(student.generator, inputs, key)
  updates, opt_state = networks.generator_tx.update(
      grads, student.generator_opt_state, student.generator)
  generator = optax.apply_updates(student.generator, updates)
  ema = student.ema
  if ema is not None:
    ema = diffusion.ema(ema, generator, settings.ema_decay)
  student = student.replace(
      generator=generator, generator_opt_state=opt_state, ema=ema)
  return student, x, {
      'dm_gradient_abs': jnp.mean(jnp.abs(gradient)),
      'generator_grad_norm': optax.tree.norm(grads)}


def update_fake(
    recipe: Recipe,
    carry: tuple[Any, Any],
    inputs: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[tuple[Any, Any], jax.Array]:
  """The fake score's turn on the generator's images (DMD2, eq. 6).

  Args:
    recipe: of the round.
    carry: params of the fake score and their optimizer's state.
    inputs: images [B, ...], labels [B], key.

  Returns:
    The new carry, and the loss: EDM's, so 1 is a network that gives zeros.
  """
  networks, settings = recipe.networks, recipe.settings
  fake, opt_state = carry
  x, labels, key = inputs

  def loss_fn(params, inputs, key):
    x, labels = inputs
    noisy, sigma = noised(settings, key, x, 0, settings.num_levels - 1)
    d = networks.fake(params, noisy, sigma, labels)
    return losses.denoising_loss(d, x, sigma, settings.sigma_data), ()

  grad_fn = accumulate.value_and_grad(loss_fn, settings.microbatches)
  (loss, _), grads = grad_fn(fake, (x, labels), key)
  updates, opt_state = networks.fake_tx.update(grads, opt_state, fake)
  return (optax.apply_updates(fake, updates), opt_state), loss


def update_student(
    recipe: Recipe,
    student: Student,
    part: tuple[jax.Array, jax.Array],
    key: jax.Array,
    teacher: Any,
) -> tuple[Student, dict[str, jax.Array]]:
  """One round of one student on its part, (classes int32 [V], size [])."""
  classes, size = part
  chex.assert_rank([classes, size], [1, 0])
  draw_key, dm_key, rest_key, fake_key = jax.random.split(key, 4)
  first = draw(recipe, draw_key, classes, size)
  student, x, metrics = update_generator(
      recipe, student, first, dm_key, teacher)

  def draw_generated(key):
    noise, labels = draw(recipe, key, classes, size)
    return generated(
        recipe.networks.generator, student.generator, noise, labels,
        recipe.settings.sigma_max), labels

  # The fake score learns first from the images of the generator's turn, made
  # before it (DMD2's loop), then from new ones: [ratio, B, ...].
  ratio = recipe.settings.ratio
  new = jax.lax.map(draw_generated, jax.random.split(rest_key, ratio - 1))
  images = jax.tree.map(
      lambda a, b: jnp.concatenate([a[None], b]), (x, first[1]), new)
  (fake, opt_state), fake_losses = jax.lax.scan(
      functools.partial(update_fake, recipe),
      (student.fake, student.fake_opt_state),
      (*images, jax.random.split(fake_key, ratio)))
  metrics['fake_loss'] = fake_losses.mean()
  return student.replace(fake=fake, fake_opt_state=opt_state), metrics


def make_round(
    networks: Networks,
    settings: Settings,
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics), all students a round further.

  frozen: 'teacher', and the partition: 'classes' int32 [K, V], 'sizes' [K]
  (see partition.members). The batch is empty: all is drawn from the key.
  """
  recipe = Recipe(networks, settings, shape, mesh)

  def one(inputs, key, teacher):
    student, index, part = inputs
    return update_student(
        recipe, student, part, jax.random.fold_in(key, index), teacher)

  def round_(state, batch, frozen):
    del batch
    key = jax.random.fold_in(state.key, state.step)
    parts = (frozen['classes'], frozen['sizes'])
    inputs = (state.students, jnp.arange(len(frozen['sizes'])), parts)
    students, metrics = mesh_lib.map_students(one, mesh)(
        inputs, key, frozen['teacher'])
    return state.replace(step=state.step + 1, students=students), {
        name: jnp.mean(x) for name, x in metrics.items()}

  return round_
