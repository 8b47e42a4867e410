"""K students that each descend one regression loss.

Consistency distillation (Song et al., arXiv 2303.01469), MSD's second base
method, and post-distillation, which MSD compares its small students with. Each
is a loss of one student; the update around it is the same.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from core_jax import accumulate
from msd_jax import diffusion
from msd_jax import losses
from msd_jax import students
from msd_jax import turns

# (params, target, part, batch, own, key, shared) -> (loss, images [B, ...]).
Loss = Callable[..., tuple[jax.Array, jax.Array]]


@struct.dataclass
class Student:
  """What one student learns; in a state every leaf has a leading axis K."""

  generator: Any
  opt_state: Any
  target: Any  # slow generator that the loss looks up to; None without one
  ema: Any  # average that the stage hands on; None: the generator itself


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of both; the decays are of averages over updates, 0 for none."""

  target_decay: float = 0.
  ema_decay: float = 0.
  microbatches: int = 1  # that a batch is worked through in


def make_init(
    tx: optax.GradientTransformation, settings: Settings, num_students: int,
    *, key: jax.Array,
) -> Callable[[Any], students.State]:
  """frozen -> State; its arguments are as in `students.make_init`."""

  def init(frozen):
    generators = students.starting_generators(frozen, num_students)
    return students.State(
        step=jnp.int32(0), key=key,
        students=Student(
            generator=generators, opt_state=jax.vmap(tx.init)(generators),
            target=generators if settings.target_decay else None,
            ema=generators if settings.ema_decay else None))

  return init


def make_step(
    loss_fn: Loss, tx: optax.GradientTransformation, settings: Settings,
    mesh: jax.sharding.Mesh,
) -> Callable[..., Any]:
  """(state, batch, frozen) -> (state, metrics): an update of every student."""

  def update(student, part, batch, own, key, shared):
    grad_fn = accumulate.value_and_grad(
        lambda params, batch, key: loss_fn(
            params, student.target, part, batch, own, key, shared),
        settings.microbatches)
    (loss, x), grads = grad_fn(student.generator, batch, key)
    updates, opt_state = tx.update(
        grads, student.opt_state, student.generator)
    generator = optax.apply_updates(student.generator, updates)
    average = lambda slow, decay: None if slow is None else diffusion.ema(
        slow, generator, decay)
    metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads),
               **turns.brightness(x)}
    return student.replace(
        generator=generator, opt_state=opt_state,
        target=average(student.target, settings.target_decay),
        ema=average(student.ema, settings.ema_decay)), metrics

  return students.make_step(update, mesh)


def heun_step(
    denoised: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array, sigma: jax.Array, lower: jax.Array,
) -> jax.Array:
  """One step of the probability-flow ODE, dx/dsigma = (x - D) / sigma.

  Args:
    denoised: (x [B, ...], sigma [B]) -> D.
    x: at `sigma`, [B, ...].
    sigma: [B].
    lower: where to, [B], above 0.
  """
  width = diffusion.expand(lower - sigma, x)
  slope = lambda x, sigma: (x - denoised(x, sigma)) / diffusion.expand(sigma, x)
  d = slope(x, sigma)
  return x + width * (d + slope(x + width * d, lower)) / 2


def make_consistency_loss(
    student: diffusion.Denoiser, teacher: diffusion.Denoiser,
    distance: Callable[[Any], losses.Distance], levels: jax.Array,
) -> Loss:
  """Consistency distillation (algorithm 2), the teacher's ODE by Heun's method.

  Without a slow target the student looks up to itself, by no gradient
  (theta^- = theta, decay 0).

  Args:
    student: f(x, sigma), which is x at the lowest level.
    teacher: its D.
    distance: params -> distance.
    levels: of noise, ascending, [N].
  """

  def loss_fn(params, target, part, batch, own, key, shared):
    del part, own
    images, labels = batch['clean']['image'], batch['clean']['label']
    level_key, noise_key = jax.random.split(key)
    n = jax.random.randint(level_key, labels.shape, 0, len(levels) - 1)
    sigma, lower = levels[n + 1], levels[n]
    noise = jax.random.normal(noise_key, images.shape)
    x = images + diffusion.expand(sigma, images) * noise
    x_lower = heun_step(
        lambda x, sigma: teacher(shared['teacher'], x, sigma, labels),
        x, sigma, lower)
    found = student(params, x, sigma, labels)
    slow = params if target is None else target
    wanted = student(slow, x_lower, lower, labels)
    return losses.regression_loss(
        found, wanted, distance(shared.get('distance'))), found

  return loss_fn


def make_post_loss(
    student: diffusion.Denoiser, large: diffusion.Denoiser,
    distance: Callable[[Any], losses.Distance],
    draw: Callable[[jax.Array, turns.Part], tuple[jax.Array, jax.Array]],
    sigma_max: float,
) -> Loss:
  """Post-distillation: G(z) of a small student to that of a large one.

  Args:
    student: the small one's D.
    large: the large one's; own['large'] are its params.
    distance: params -> distance.
    draw: (key, part) -> noise, labels.
    sigma_max: of the noise that both take.
  """

  def loss_fn(params, target, part, batch, own, key, shared):
    del target, batch
    noise, labels = draw(key, part)
    x = turns.generated(student, params, noise, labels, sigma_max)
    wanted = turns.generated(large, own['large'], noise, labels, sigma_max)
    return losses.regression_loss(
        x, wanted, distance(shared.get('distance'))), x

  return loss_fn
