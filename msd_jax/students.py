"""The distribution-matching stage of DMD2 for K students at once.

One round is DMD2's cycle in one compiled program: a generator update and
`ratio` fake-score updates, the first of them on the images of the generator
update. Students share the teacher and nothing else; they are an axis [K, ...]
of every leaf, mapped by `mesh.map_students`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

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


def make_update(
    networks: Networks,
    settings: Settings,
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[Student, dict[str, jax.Array]]]:
  """One round of one student; `make_round` maps it over all.

  Args:
    networks: denoisers and optimizers.
    settings: of the round.
    shape: of one example.
    mesh: whose 'data' axis splits the batch.

  Returns:
    (student, classes int32 [V], size int32 [], key, teacher) -> (student,
    metrics); labels are drawn from the first `size` classes, uniformly.
  """
  batch = settings.batch_size
  # Ascending, as DMD2 counts its levels.
  levels = diffusion.karras_sigmas(
      settings.num_levels, settings.sigma_min, settings.sigma_max)[::-1]

  def draw(key, classes, size):
    """Noise [B, ...] and labels [B] of the student's part of the classes."""
    noise_key, label_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (batch, *shape))
    labels = classes[jax.random.randint(label_key, (batch,), 0, size)]
    return (mesh_lib.split_rows(noise, mesh),
            mesh_lib.split_rows(labels, mesh))

  def noised(key, x, low, high):
    """x at a random level between low and high: (noisy, sigma [B])."""
    level_key, noise_key = jax.random.split(key)
    sigma = levels[jax.random.randint(level_key, (batch,), low, high + 1)]
    noise = jax.random.normal(noise_key, x.shape)
    return x + diffusion.expand(sigma, x) * noise, sigma

  def generate(params, noise, labels):
    return generated(
        networks.generator, params, noise, labels, settings.sigma_max)

  def update_generator(student, noise, labels, key, teacher):
    """The generator's turn; also returns the images made before it."""

    def loss_fn(params):
      x = generate(params, noise, labels)
      noisy, sigma = noised(
          key, jax.lax.stop_gradient(x), settings.min_level,
          settings.max_level)
      real = networks.teacher(teacher, noisy, sigma, labels)
      fake = networks.fake(student.fake, noisy, sigma, labels)
      gradient = losses.distribution_matching_gradient(
          jax.lax.stop_gradient(x), real, fake)
      loss = losses.distribution_matching_loss(x, gradient)
      return loss, (x, gradient)

    (_, (x, gradient)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        student.generator)
    updates, opt_state = networks.generator_tx.update(
        grads, student.generator_opt_state, student.generator)
    generator = optax.apply_updates(student.generator, updates)
    ema = student.ema
    if ema is not None:
      ema = diffusion.ema(ema, generator, settings.ema_decay)
    metrics = {
        'dm_gradient_abs': jnp.mean(jnp.abs(gradient)),
        'generator_grad_norm': optax.tree.norm(grads)}
    return student.replace(
        generator=generator, generator_opt_state=opt_state, ema=ema
    ), jax.lax.stop_gradient(x), metrics

  def update_fake(carry, inputs):
    """A fake-score update on the generator's images x (DMD2, eq. 6)."""
    fake, opt_state = carry
    x, labels, key = inputs
    noisy, sigma = noised(key, x, 0, settings.num_levels - 1)

    def loss_fn(params):
      d = networks.fake(params, noisy, sigma, labels)
      return losses.denoising_loss(d, x, sigma, settings.sigma_data)

    loss, grads = jax.value_and_grad(loss_fn)(fake)
    updates, opt_state = networks.fake_tx.update(grads, opt_state, fake)
    return (optax.apply_updates(fake, updates), opt_state), loss

  def update(student, classes, size, key, teacher):
    chex.assert_rank([classes, size], [1, 0])
    draw_key, dm_key, rest_key, fake_key = jax.random.split(key, 4)
    noise, labels = draw(draw_key, classes, size)
    student, x, metrics = update_generator(
        student, noise, labels, dm_key, teacher)

    def draw_generated(key):
      noise, labels = draw(key, classes, size)
      return generate(student.generator, noise, labels), labels

    # The fake score learns first from the images of the generator's turn,
    # made before it (DMD2's loop), then from new ones: [ratio, B, ...].
    new_x, new_labels = jax.lax.map(
        draw_generated, jax.random.split(rest_key, settings.ratio - 1))
    images = (jnp.concatenate([x[None], new_x]),
              jnp.concatenate([labels[None], new_labels]))
    (fake, opt_state), fake_losses = jax.lax.scan(
        update_fake, (student.fake, student.fake_opt_state),
        (*images, jax.random.split(fake_key, settings.ratio)))
    metrics['fake_loss'] = fake_losses.mean()
    return student.replace(fake=fake, fake_opt_state=opt_state), metrics

  return update


def make_round(
    networks: Networks,
    settings: Settings,
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics), all students a round further.

  frozen: 'teacher', and the partition: 'classes' int32 [K, V], 'sizes' [K].
  The batch is empty: all is drawn from the key.
  """
  update = make_update(networks, settings, shape, mesh)

  def one(inputs, key, teacher):
    student, index, classes, size = inputs
    return update(
        student, classes, size, jax.random.fold_in(key, index), teacher)

  def round_(state, batch, frozen):
    del batch
    key = jax.random.fold_in(state.key, state.step)
    classes, sizes = frozen['classes'], frozen['sizes']
    inputs = (state.students, jnp.arange(len(sizes)), classes, sizes)
    students, metrics = mesh_lib.map_students(one, mesh)(
        inputs, key, frozen['teacher'])
    return state.replace(step=state.step + 1, students=students), {
        name: jnp.mean(x) for name, x in metrics.items()}

  return round_
