"""ENAS' strategy: a controller trained by REINFORCE, with or without memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nas_jax import controller as controller_lib
from nas_jax import keys
from nas_jax import memory as memory_lib
from nas_jax import strategies

State, Metrics = strategies.State, strategies.Metrics


@dataclasses.dataclass(frozen=True)
class Reward:
  """R = scale / perplexity ** power, and what REINFORCE does with it.

  Attributes:
    scale: c of ENAS, 80 on the Penn Treebank.
    power: 1, or 2 as in 'Neural Architecture Search' (2017).
    max_loss: nats; a loss above it, or none that is finite, is rewarded 0.
    baseline_decay: of the moving mean that is subtracted.
    entropy_weight: of the entropy of a cell's decisions.
    samples_per_update: M, cells in one update of the controller.
    entropy_in_reward: see `controller.reinforce_loss`.
  """
  scale: float = 80.0
  power: float = 1.0
  max_loss: float = 20.0
  baseline_decay: float = 0.95
  entropy_weight: float = 1e-4
  samples_per_update: int = 1
  entropy_in_reward: bool = False

  def __post_init__(self):
    if self.samples_per_update < 1:
      raise ValueError(f'reward.samples_per_update={self.samples_per_update} '
                       'must be at least 1')
    if not 0 <= self.baseline_decay < 1:
      raise ValueError(
          f'reward.baseline_decay={self.baseline_decay} is not in [0, 1)')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of the strategy; `tx` optimizes controller and memory heads."""
  controller: controller_lib.Controller
  memory: memory_lib.Memory
  reward: Reward
  tx: optax.GradientTransformation


def strategy(settings: Settings) -> strategies.Strategy:
  """ENAS.

  The state has 'params' {'policy', 'heads' where the memory has any},
  'opt_state', 'baseline' [], 'updates' [], 'round' [] and, with a memory,
  'buffer'.
  """
  return strategies.Strategy(*[
      functools.partial(f, settings) for f in (init, sample, update, begin)])


def reward(settings: Reward, loss: jax.Array) -> jax.Array:
  """Loss in nats -> reward; 0 where the perplexity would overflow."""
  good = loss <= settings.max_loss  # False for NaN
  perplexity = jnp.exp(jnp.where(good, loss, 0.0))
  return jnp.where(good, settings.scale / perplexity**settings.power, 0.0)


def init(settings: Settings, key: jax.Array) -> State:
  """key -> state; the policy starts as it does without a memory."""
  controller, memory = settings.controller, settings.memory
  params = {'policy': controller_lib.init_params(controller, key)}
  state = {'baseline': jnp.float32(0), 'updates': jnp.int32(0),
           'round': jnp.int32(0)}
  if memory.on:
    heads = memory_lib.init_heads(
        memory.kind, controller, keys.part(key, 'heads'))
    params |= {'heads': heads} if heads else {}
    state['buffer'] = memory_lib.init_buffer(
        memory.capacity, controller.space.num_decisions)
  return state | {'params': params, 'opt_state': settings.tx.init(params)}


def sample(
    settings: Settings, state: State, key: jax.Array, num: int
) -> jax.Array:
  """Tokens [num, S] of the policy's own cells."""
  return controller_lib.sample(
      settings.controller, state['params']['policy'], key, num).tokens


def begin(
    settings: Settings, state: State, key: jax.Array, round_: jax.Array
) -> State:
  """Before the steps of a round: the memory takes cells in, where it is due."""
  memory = settings.memory
  state = state | {'round': round_.astype(jnp.int32)}
  if not memory.on:
    return state
  pushed = memory_lib.push(
      state['buffer'], sample(settings, state, key, memory.pushed_per_round))
  due = round_ >= memory.store_from_round
  return state | {'buffer': jax.tree.map(
      lambda new, old: jnp.where(due, new, old), pushed, state['buffer'])}


def memory_loss(
    settings: Settings, params: Any, state: State, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """([], nats a decision; its weight in this round)."""
  memory = settings.memory
  tokens = memory_lib.draw(
      state['buffer'], jax.random.fold_in(key, 2), memory.batch_size)
  loss = memory_lib.loss(
      memory, settings.controller, params['policy'], params.get('heads', {}),
      tokens)
  due = state['round'] >= memory.train_from_round
  return loss, jnp.where(due, memory.weight, 0.0)


def update(
    settings: Settings, state: State, key: jax.Array,
    supernet: strategies.Supernet,
) -> tuple[State, Metrics]:
  """One step of REINFORCE on cells that the policy draws."""
  fields = settings.reward
  draw_key, loss_key = jax.random.split(key)
  tokens = sample(settings, state, draw_key, fields.samples_per_update)
  losses = supernet.losses(tokens, loss_key)
  rewards = reward(fields, losses)
  baseline = jnp.where(
      state['updates'] == 0, rewards.mean(), state['baseline'])

  def loss_fn(params):
    decisions = controller_lib.score(
        settings.controller, params['policy'], tokens)
    loss = controller_lib.reinforce_loss(
        decisions, rewards - baseline, fields.entropy_weight,
        fields.entropy_in_reward)
    metrics = {'entropy_nats': decisions.entropy.sum(-1).mean()}
    if settings.memory.on:
      metrics['memory_loss'], weight = memory_loss(
          settings, params, state, key)
      loss += weight * metrics['memory_loss']
    return loss, metrics

  grads, metrics = jax.grad(loss_fn, has_aux=True)(state['params'])
  updates, opt_state = settings.tx.update(
      grads, state['opt_state'], state['params'])
  decay = fields.baseline_decay
  return state | {
      'params': optax.apply_updates(state['params'], updates),
      'opt_state': opt_state, 'updates': state['updates'] + 1,
      'baseline': decay * baseline + (1 - decay) * rewards.mean(),
  }, metrics | {
      'reward': rewards.mean(), 'zero_rewards': jnp.mean(rewards == 0),
      'valid_loss': strategies.finite_mean(losses)}
