"""One network trained on one loss: the teacher, a smaller copy, features."""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from core_jax import accumulate
from msd_jax import diffusion
from msd_jax import losses
from msd_jax import pixels

Loss = Callable[[Any, dict[str, jax.Array], jax.Array, Any], jax.Array]


@struct.dataclass
class State:
  """Arrays only; what computes with them is closed over by the step."""

  step: jax.Array  # int32 []
  key: jax.Array  # typed PRNG key []; never changes
  params: Any
  ema: Any  # like params
  opt_state: Any


def make_optimizer(
    *, lr: float, warmup_steps: int, clip_norm: float, weight_decay: float = 0.
) -> optax.GradientTransformation:
  """AdamW (0.9, 0.999) after a clip of the global norm; decays all weights.

  The random frequencies of NCSN++, which nothing trains, are no weights.
  """
  weights = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: getattr(path[-1], 'key', '') != 'freqs', params)
  # Optax takes a warm-up of no steps for one that never ends.
  schedule = optax.schedules.warmup_constant_schedule(
      0., lr, warmup_steps) if warmup_steps else lr
  return optax.chain(
      optax.clip_by_global_norm(clip_norm),
      optax.adamw(schedule, weight_decay=weight_decay, mask=weights))


def make_init(
    init_params: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    key: jax.Array,
) -> Callable[[Any], State]:
  """frozen -> State at step 0; the key is the stage's."""

  def init(frozen):
    del frozen
    init_key, step_key = jax.random.split(key)
    params = init_params(init_key)
    return State(
        step=jnp.int32(0), key=step_key, params=params, ema=params,
        opt_state=tx.init(params))

  return init


def make_step(
    loss_fn: Loss,
    tx: optax.GradientTransformation,
    ema_half_life_steps: float,
    microbatches: int = 1,
) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
  """(state, batch, frozen) -> (state, metrics): one update of params.

  Args:
    loss_fn: (params, batch, key, frozen) -> scalar; the batch's images are in
      [-1, 1].
    tx: optimizer.
    ema_half_life_steps: of the averaged params that the stage hands on.
    microbatches: that a batch is worked through in.
  """

  def step(state, batch, frozen):
    key = jax.random.fold_in(state.key, state.step)
    batch = {**batch, 'image': pixels.to_unit_range(batch['image'])}
    grad_fn = accumulate.value_and_grad(
        lambda *args: (loss_fn(*args, frozen), ()), microbatches)
    (loss, _), grads = grad_fn(state.params, batch, key)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = diffusion.warmed_up_decay(state.step, ema_half_life_steps)
    metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads)}
    return state.replace(
        step=state.step + 1, params=params, opt_state=opt_state,
        ema=diffusion.ema(state.ema, params, decay)), metrics

  return step


def make_denoising(
    denoised: diffusion.Denoiser,
    sigma_data: float,
    teacher: diffusion.Denoiser | None = None,
) -> Loss:
  """The loss of a denoiser at EDM's noise levels.

  Args:
    denoised: of the network that learns; takes `dropout_key`.
    sigma_data: deviation of the data.
    teacher: None learns from the clean images (EDM, eq. 2). Otherwise from
      the teacher's D on the same noisy ones, frozen['teacher'] its params:
      MSD's teacher score matching, for students smaller than the teacher.
  """

  def loss_fn(params, batch, key, frozen):
    sigma_key, noise_key, dropout_key = jax.random.split(key, 3)
    images, labels = batch['image'], batch['label']
    sigma = diffusion.training_sigma(sigma_key, images.shape[0])
    noise = jax.random.normal(noise_key, images.shape)
    noisy = images + diffusion.expand(sigma, images) * noise
    target = images if teacher is None else teacher(
        frozen['teacher'], noisy, sigma, labels)
    d = denoised(params, noisy, sigma, labels, dropout_key=dropout_key)
    return losses.denoising_loss(d, target, sigma, sigma_data)

  return loss_fn
