"""One student's two turns in DMD2's loop: the generator's, the fake score's.

The generator descends a sum of terms, each switched on by its settings:
distribution matching (DMD), the discriminator's word (DMD2's GAN) and the
regression to pairs of the teacher (DMD). The first two are gradients by the
generated images x, so that their norms can be compared where they meet.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from core_jax import accumulate
from core_jax import mesh as mesh_lib
from msd_jax import diffusion
from msd_jax import discriminator
from msd_jax import losses

Part = tuple[jax.Array, jax.Array]  # classes int32 [V], how many count []
Batch = dict[str, dict[str, jax.Array]]
MATCHED = 'matched'


@struct.dataclass
class Student:
  """What one student learns; in a state every leaf has a leading axis K."""

  generator: Any
  generator_opt_state: Any
  fake: Any  # the fake score: a denoiser of the student's own images
  fake_opt_state: Any  # of (fake, head)
  ema: Any  # average of the generator; None where it is not wanted
  head: Any = None  # of the discriminator; None without one


@dataclasses.dataclass(frozen=True)
class Gan:
  """DMD2's discriminator; the defaults are those of its ImageNet-64."""

  weight: float | str = 3e-3  # of the generator's loss; or MATCHED
  critic_weight: float = 1e-2
  max_level: int = 999  # of the noise that it sees, inclusive; 0: no noise
  backbone: str = 'fake'  # or 'teacher', which does not learn
  match_factor: float = 1.  # norm of d(GAN)/dx by that of d(DM)/dx


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
  gan: Gan | None = None
  regression_weight: float = 0.  # 0: no pairs
  microbatches: int = 1  # that a batch is worked through in


@dataclasses.dataclass(frozen=True)
class Networks:
  """The denoisers and optimizers of the stage, and what its terms need."""

  generator: diffusion.Denoiser
  fake: diffusion.Denoiser
  teacher: diffusion.Denoiser
  generator_tx: optax.GradientTransformation
  fake_tx: optax.GradientTransformation
  features: diffusion.Denoiser | None = None  # of the fake score's encoder
  init_head: Callable[[jax.Array], Any] | None = None  # key -> params
  distance: Callable[[Any], losses.Distance] | None = None  # its params -> it


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What every part of a round reads."""

  networks: Networks
  settings: Settings
  shape: tuple[int, ...]  # of one example
  mesh: jax.sharding.Mesh  # whose 'data' axis splits the batch


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


def draw(
    key: jax.Array, part: Part, batch_size: int, shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Noise [B, ...] and labels [B], uniform over the classes of the part."""
  classes, size = part
  noise_key, label_key = jax.random.split(key)
  noise = jax.random.normal(noise_key, (batch_size, *shape))
  labels = classes[jax.random.randint(label_key, (batch_size,), 0, size)]
  return mesh_lib.split_rows(noise, mesh), mesh_lib.split_rows(labels, mesh)


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


def judged(
    recipe: Recipe, guidance: tuple[Any, Any], teacher: Any, x: jax.Array,
    labels: jax.Array, key: jax.Array,
) -> jax.Array:
  """The discriminator's logits [B] of images [B, ...] under fresh noise.

  Args:
    recipe: of the round.
    guidance: params of the fake score and of the head.
    teacher: its params, for the backbone 'teacher'.
    x: images, real or generated.
    labels: theirs, int32 [B].
    key: of noise levels and noise.
  """
  settings, (fake, head) = recipe.settings, guidance
  noisy, sigma = noised(settings, key, x, 0, settings.gan.max_level)
  if not settings.gan.max_level:
    noisy = x
  backbone = teacher if settings.gan.backbone == 'teacher' else fake
  features = recipe.networks.features(backbone, noisy, sigma, labels)
  return discriminator.logits(head, features)


def matching_gradient(
    recipe: Recipe, student: Student, x: jax.Array, labels: jax.Array,
    key: jax.Array, teacher: Any,
) -> jax.Array:
  """DMD's gradient at x [B, ...], where teacher and fake score disagree."""
  networks, settings = recipe.networks, recipe.settings
  noisy, sigma = noised(
      settings, key, x, settings.min_level, settings.max_level)
  return losses.distribution_matching_gradient(
      x, networks.teacher(teacher, noisy, sigma, labels),
      networks.fake(student.fake, noisy, sigma, labels))


def regression_gradient(
    recipe: Recipe, generator: Any, pairs: dict[str, jax.Array], distance: Any
) -> tuple[jax.Array, Any]:
  """Loss on the teacher's pairs, and its gradient by the generator."""
  networks, settings = recipe.networks, recipe.settings

  def loss_fn(params, pairs, key):
    del key
    x = generated(networks.generator, params, pairs['noise'], pairs['label'],
                  settings.sigma_max)
    return losses.regression_loss(
        x, pairs['image'], networks.distance(distance)), ()

  grad_fn = accumulate.value_and_grad(loss_fn, settings.microbatches)
  (loss, _), grads = grad_fn(generator, pairs, jax.random.key(0))
  return loss, grads


def update_generator(
    recipe: Recipe,
    student: Student,
    inputs: tuple[jax.Array, jax.Array],
    pairs: dict[str, jax.Array] | None,
    key: jax.Array,
    frozen: Any,
) -> tuple[Student, jax.Array, dict[str, jax.Array]]:
  """The generator's turn on (noise, labels); also the images made before it."""
  networks, settings = recipe.networks, recipe.settings

  def loss_fn(params, inputs, key):
    noise, labels = inputs
    x = generated(
        networks.generator, params, noise, labels, settings.sigma_max)
    fixed = jax.lax.stop_gradient(x)
    dx, found = image_gradient(
        recipe, student, fixed, labels, key, frozen['teacher'])
    return jnp.sum(x * dx), (fixed, found)  # its gradient by x is dx

  grad_fn = accumulate.value_and_grad(loss_fn, settings.microbatches)
  (_, (x, metrics)), grads = grad_fn(student.generator, inputs, key)
  if settings.regression_weight:
    loss, more = regression_gradient(
        recipe, student.generator, pairs, frozen.get('distance'))
    grads = jax.tree.map(
        lambda a, b: a + settings.regression_weight * b, grads, more)
    metrics['regression_loss'] = loss
  metrics['generator_grad_norm'] = optax.tree.norm(grads)
  updates, opt_state = networks.generator_tx.update(
      grads, student.generator_opt_state, student.generator)
  generator = optax.apply_updates(student.generator, updates)
  ema = student.ema
  if ema is not None:
    ema = diffusion.ema(ema, generator, settings.ema_decay)
  student = student.replace(
      generator=generator, generator_opt_state=opt_state, ema=ema)
  return student, x, metrics


def image_gradient(
    recipe: Recipe, student: Student, x: jax.Array, labels: jax.Array,
    key: jax.Array, teacher: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Gradient of the terms of DM and GAN by the images x [B, ...]; metrics."""
  dm_key, gan_key = jax.random.split(key)
  gradient, not_finite = losses.without_not_finite(
      matching_gradient(recipe, student, x, labels, dm_key, teacher))
  dx = jax.grad(losses.distribution_matching_loss)(x, gradient)
  metrics = {'dm_gradient_abs': jnp.mean(jnp.abs(gradient)),
             'dm_x_grad_norm': optax.tree.norm(dx),
             'dm_not_finite': not_finite, **brightness(x)}
  if recipe.settings.gan:
    gan_dx, of_gan = _gan_gradient(
        recipe, student, x, labels, gan_key, teacher, dx)
    dx += gan_dx
    metrics |= of_gan
  return dx, metrics


def _gan_gradient(recipe, student, x, labels, key, teacher, dm_dx):
  """weight * d(GAN)/dx, [B, ...], and metrics."""
  gan = recipe.settings.gan
  guidance = (student.fake, student.head)
  loss, dx = jax.value_and_grad(lambda x: losses.generator_gan_loss(
      judged(recipe, guidance, teacher, x, labels, key)))(x)
  weight = losses.matching_weight(dm_dx, dx, gan.match_factor) if (
      gan.weight == MATCHED) else jnp.float32(gan.weight)
  return weight * dx, {
      'gan_loss': loss, 'gan_x_grad_norm': optax.tree.norm(dx),
      'gan_weight': weight}


def brightness(x: jax.Array) -> dict[str, jax.Array]:
  """Mean and deviation of all pixels: what oscillates where DM goes wrong."""
  return {'brightness': jnp.mean(x), 'contrast': jnp.std(x)}


def update_fake(
    recipe: Recipe,
    teacher: Any,
    carry: tuple[Any, Any],
    inputs: tuple[jax.Array, jax.Array, Any, jax.Array],
) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
  """The turn of fake score and discriminator (DMD2, eq. 6, sec. 4.3).

  Args:
    recipe: of the round.
    teacher: its params, for the backbone 'teacher'.
    carry: (params of the fake score, of the head), and the state of their
      optimizer.
    inputs: generated images [B, ...], their labels [B], real ones with theirs
      ('image', 'label'; None without a discriminator), key.

  Returns:
    The new carry, and losses: the fake score's is EDM's, so 1 is a network
    that gives zeros; the critic's is 2 ln 2 where it cannot tell.
  """
  networks, settings = recipe.networks, recipe.settings
  guidance, opt_state = carry
  *rows, key = inputs

  def loss_fn(guidance, rows, key):
    x, labels, real = rows
    key, real_key, fake_key = jax.random.split(key, 3)
    noisy, sigma = noised(settings, key, x, 0, settings.num_levels - 1)
    d = networks.fake(guidance[0], noisy, sigma, labels)
    loss = losses.denoising_loss(d, x, sigma, settings.sigma_data)
    found = {'fake_loss': loss}
    if settings.gan:
      critic = losses.critic_loss(
          judged(recipe, guidance, teacher, real['image'], real['label'],
                 real_key),
          judged(recipe, guidance, teacher, x, labels, fake_key))
      loss += settings.gan.critic_weight * critic
      found['critic_loss'] = critic
    return loss, found

  grad_fn = accumulate.value_and_grad(loss_fn, settings.microbatches)
  (_, found), grads = grad_fn(guidance, tuple(rows), key)
  found['fake_grad_norm'] = optax.tree.norm(grads)
  updates, opt_state = networks.fake_tx.update(grads, opt_state, guidance)
  return (optax.apply_updates(guidance, updates), opt_state), found
