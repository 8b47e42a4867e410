"""What a user brings: a model, what regularises it, and its losses."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from stn_jax import regularize
from stn_jax import response as response_lib
from stn_jax import space as space_lib

# The collection that follows a stream, and so is one for each of the streams.
CARRY = 'carry'

Batch = Mapping[str, jax.Array]
Hypers = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
  """A model, what regularises it, and its losses.

  Attributes:
    model: any linen module.
    space: name -> hyperparameter.
    forward: (apply, batch, hypers, key) -> outputs. `apply` is the model's,
      with parameters and response filled in; hypers is name -> values [B] in
      training and None in evaluation, where nothing may be regularised.
      Delta-STN linearises the outputs, not the loss: give what the loss is
      convex in (logits, activations), and square or exponentiate in the loss.
      The model's other collections follow the first call of `apply`: a call
      inside a derivative, as of a Jacobian, comes after a plain one.
    loss: (outputs, batch, hypers) -> nats [B]; hypers as above.
    dropout: path of an `nn.Dropout` in the model -> the hyperparameter that
      is its rate, one for each example.
    weight_decay: the hyperparameter wd of a term wd / 2 ||W||^2 in the
      training loss, of kernels and embeddings; '' for none.
    without_response: paths of modules whose weights shall not answer.
    handlers: how kinds of layers answer.
  """
  model: nn.Module
  space: space_lib.Space
  forward: Callable[..., Any]
  loss: Callable[..., jax.Array]
  dropout: Mapping[str, str] = dataclasses.field(default_factory=dict)
  weight_decay: str = ''
  without_response: tuple[str, ...] = ()
  handlers: Mapping[type[nn.Module], response_lib.Handler] = (
      dataclasses.field(default_factory=lambda: response_lib.HANDLERS))


class _Reader(Mapping):
  """Notes which hyperparameters are read, one by one or all at once."""

  def __init__(self, values):
    self._values, self.read = values, set()

  def __getitem__(self, name):
    value = self._values[name]
    self.read.add(name)
    return value

  def __iter__(self):
    return iter(self._values)

  def __len__(self):
    return len(self._values)


jax.tree_util.register_pytree_node(
    _Reader, lambda reader: (list(reader.values()), tuple(reader)),
    lambda names, values: dict(zip(names, values, strict=True)))


def run_model(
    problem: Problem,
    params: Any,
    response: Any,
    variables: Any,
    batch: Batch,
    hypers: Hypers | None,
    perturbation: response_lib.Perturbation | None,
    key: jax.Array,
) -> tuple[Any, Any]:
  """One forward pass: (outputs, the model's other collections after it)."""
  forward_key, model_key = jax.random.split(key)
  after = variables

  def dropout(next_fun, module, args, kwargs):
    name = problem.dropout.get('/'.join(module.path))
    deterministic = nn.merge_param(
        'deterministic', module.deterministic,
        kwargs.get('deterministic', args[1] if len(args) > 1 else None))
    if name is None or deterministic:
      return next_fun(*args, **kwargs)
    return regularize.dropout(
        module.make_rng(module.rng_collection),
        args[0] if args else kwargs['inputs'], hypers[name],
        shared_axes=module.broadcast_dims)

  def apply(*args, **kwargs):
    nonlocal after
    with nn.intercept_methods(response_lib.interceptor(
        response, perturbation, dropout, problem.handlers)):
      outputs, found = problem.model.apply(
          {'params': params, **variables}, *args,
          rngs={'dropout': model_key}, mutable=list(variables), **kwargs)
    after = found if after is variables else after
    return outputs

  return problem.forward(apply, batch, hypers, forward_key), after


def training_loss(
    problem: Problem, outputs: Any, params: Any, response: Any, batch: Batch,
    hypers: Hypers, perturbation: response_lib.Perturbation | None,
) -> jax.Array:
  """f: the mean over a batch of loss and penalties, nats."""
  losses = problem.loss(outputs, batch, hypers)
  chex.assert_rank(losses, 1)
  if problem.weight_decay:
    losses = losses + 0.5 * hypers[problem.weight_decay] * (
        response_lib.squared_norm(
            params, response, perturbation, losses.shape[0]))
  return jnp.mean(losses)


def constant(problem: Problem, lam: jax.Array, batch_size: int) -> Hypers:
  """The hyperparameters at lam [n] for every example: name -> [B]."""
  return space_lib.constrain(
      problem.space, jnp.broadcast_to(lam, (batch_size, lam.shape[0])))


def num_examples(batch: Batch) -> int:
  """B, of a batch's fields [B, ...]."""
  return jax.tree.leaves(batch)[0].shape[0]


def make_init_variables(
    problem: Problem, example: Batch
) -> Callable[[jax.Array], Any]:
  """key -> the model's variables, from one pass in evaluation."""

  def init_variables(key):
    params_key, dropout_key, forward_key = jax.random.split(key, 3)
    variables = {}

    def apply(*args, **kwargs):
      nonlocal variables
      outputs, found = problem.model.init_with_output(
          {'params': params_key, 'dropout': dropout_key}, *args, **kwargs)
      variables = variables or found
      return outputs

    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    problem.forward(apply, batch, None, forward_key)
    return variables

  return init_variables


def check_all_read(problem: Problem, example: Batch) -> None:
  """Raises SpaceError for a hyperparameter that nothing reads, or for the
  name of one that there is not."""
  for place, name in [
      *problem.dropout.items(), ('weight_decay', problem.weight_decay)]:
    if name and name not in problem.space:
      raise space_lib.SpaceError(
          f'{place}: {name!r} is not in the space {list(problem.space)}')
  dropouts = set()

  def record(next_fun, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      dropouts.add('/'.join(context.module.path))
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(record):
    read = _read(problem, example, training=True)
  absent = sorted(set(problem.dropout) - dropouts)
  if absent:
    raise space_lib.SpaceError(
        f'dropout names {absent}, but the nn.Dropout of the model are '
        f'{sorted(dropouts)}')
  unread = sorted(set(problem.space) - read)
  if unread:
    raise space_lib.SpaceError(
        f'nothing reads {", ".join(unread)}: use it in forward or loss, name '
        'it in dropout or weight_decay, or take it out of the space')


def check_smooth(problem: Problem, example: Batch) -> None:
  """Raises SpaceError where a loss of the outputs of an evaluation, and weight
  decay, do not depend on each tuned hyperparameter smoothly."""
  try:
    read = _read(problem, example, training=False)
  except KeyError as e:
    raise space_lib.SpaceError(
        f"method 'implicit' takes the loss of an evaluation, whose outputs "
        f'have no {e}') from e
  at_rest = [name for name, h in problem.space.items()
             if h.tuned and (h.whole or name not in read)]
  if at_rest:
    raise space_lib.SpaceError(
        "method 'implicit' needs a loss that is smooth in every "
        f'hyperparameter: {", ".join(at_rest)} enters by masks, augmentation '
        'or integers alone. Set tuned=False, or take delta_stn')


def _read(problem, example, training):
  """The hyperparameters that the training loss reads, by tracing alone; of a
  forward pass in training or in evaluation."""
  readers = []

  def traced(key):
    variables = dict(make_init_variables(problem, example)(key))
    params = variables.pop('params')
    if not training and CARRY in variables:
      raise space_lib.SpaceError(
          "method 'implicit' takes examples one by one, but the model carries "
          'a state from batch to batch: take delta_stn')
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    hypers = _Reader(constant(
        problem, jnp.asarray(space_lib.start(problem.space)),
        num_examples(batch)))
    readers.append(hypers)
    outputs, _ = run_model(
        problem, params, {}, variables, batch, hypers if training else None,
        None, key)
    return training_loss(problem, outputs, params, {}, batch, hypers, None)

  jax.eval_shape(traced, jax.random.key(0))
  return readers[0].read
