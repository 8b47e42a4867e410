"""What a self-tuning run is told, and what it holds."""

import dataclasses
from typing import Any
from typing import NamedTuple

from flax import struct
import jax
import optax

from stn_jax import problem as problem_lib

METHODS = ('delta_stn', 'stn', 'implicit')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a run goes about it.

  Attributes:
    method: 'delta_stn', 'stn', or 'implicit' to compare with: weights without
      a response, hypergradients by the implicit function theorem.
    warmup_rounds: rounds before the hyperparameters start to move.
    entropy_weight: tau, of the perturbations' entropy; 0 lets sigma fall.
    tune_scales: whether sigma is tuned; if not, the hypergradient is taken
      at lam itself.
    rank: terms of each layer's response; the papers have one.
    unroll: writes the training updates of a round out one after the other.
      XLA on CPU is slow at a convolution's gradient in a loop; a long round
      of matrix products compiles faster as a loop.
    diagnose: measures how well the response predicts; costs a tangent and a
      forward pass in each round.
  """
  method: str = 'delta_stn'
  warmup_rounds: int = 0
  entropy_weight: float = 1e-3
  tune_scales: bool = True
  rank: int = 1
  unroll: bool = False
  diagnose: bool = True

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(
          f'method={self.method!r}; there are {", ".join(METHODS)}')
    for name, least in (
        ('rank', 1), ('entropy_weight', 0), ('warmup_rounds', 0)):
      if not getattr(self, name) >= least:
        raise ValueError(
            f'{name}={getattr(self, name)}: give {least} or more')


class Optimizers(NamedTuple):
  """Of the weights, of the response, and of (lam, rho).

  STN trains weights and response with the first, as one.
  """
  params: optax.GradientTransformation
  response: optax.GradientTransformation
  hyper: optax.GradientTransformation


@struct.dataclass
class State:
  """Arrays only.

  Attributes:
    step: rounds done, int32 [].
    key: never changes; draws come from fold_in(key, step).
    params: of the model, as it has them.
    response: of its layers.
    lam, rho: float32 [n].
    opt_params, opt_response, opt_hyper: of the optimizers.
    variables: the model's other collections, such as batch_stats.
    valid_carry: the validation stream's own carry, or {}.
    history: lam of each round so far, float32 [rounds, n].
  """
  step: jax.Array
  key: jax.Array
  params: Any
  response: Any
  lam: jax.Array
  rho: jax.Array
  opt_params: Any
  opt_response: Any
  opt_hyper: Any
  variables: Any
  valid_carry: Any
  history: jax.Array


def check_batch(state: State, batch: problem_lib.Batch) -> None:
  """Raises ValueError for a batch that a round cannot use; shapes alone."""
  train, valid = (
      problem_lib.num_examples(batch[part]) for part in ('train', 'valid'))
  if not train or not valid:
    raise ValueError(
        f"batch['train'] has {train} examples and batch['valid'] {valid}: "
        'weights and hyperparameters need some each')
  streams = {x.shape[0] for x in jax.tree.leaves(
      state.variables.get(problem_lib.CARRY, {})) if x.ndim}
  if streams and {train, valid} != streams:
    raise ValueError(
        f"the model's carry is of {sorted(streams)} streams, but "
        f"batch['train'] has {train} rows and batch['valid'] {valid}: give "
        'the same number in both, and in the example')
