"""A config's data, problem and optimizers: what all of its runs share."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from stn_jax import checks
from stn_jax import data
from stn_jax import models
from stn_jax import problem as problem_lib
from stn_jax import regularize
from stn_jax import response as response_lib
from stn_jax import space as space_lib
from stn_jax import state as state_lib

Config = ml_collections.ConfigDict

_SPACE_KINDS = {
    'bounded': space_lib.bounded, 'integer': space_lib.integer,
    'positive': space_lib.positive, 'log': space_lib.log,
    'real': space_lib.real}
_AFFINE = ('degrees', 'translate', 'scale', 'shear')
_COLOUR = {
    'brightness': regularize.brightness, 'contrast': regularize.contrast,
    'saturation': regularize.saturation, 'hue': regularize.hue}
_IMAGE_NAMES = {
    *_AFFINE, *_COLOUR, *checks.CUTOUT, 'input_dropout', 'input_scale'}
_LANGUAGE_NAMES = (
    'embedding_dropout', 'weight_dropout', 'alpha', 'beta')


@dataclasses.dataclass(frozen=True)
class Setup:
  """What the runs of a config have in common.

  Attributes:
    config: of the run.
    dataset: in three parts.
    problem: what is tuned.
    measures: (outputs, batch) -> name -> [B]: more than the loss.
  """
  config: Config
  dataset: data.Dataset
  problem: problem_lib.Problem
  measures: Any


def setup(config: Config) -> Setup:
  """Reads the data, builds the problem, and checks the config.

  Raises:
    DataError, SpaceError, ValueError: the first thing that does not fit, by
      name.
  """
  space = make_space(config.space)
  space_lib.check(space)
  checks.check(config)
  dataset = data.load(config)
  if _kind(config) == 'images':
    checks.check_augmentation(
        space, dataset.parts['train']['image'].shape[-1])
  return Setup(
      config, dataset, make_problem(config, dataset.num_classes),
      _MEASURES[_kind(config)])


def make_problem(config: Config, num_classes: int) -> problem_lib.Problem:
  """The problem of a config whose data have so many classes, or words."""
  make = {'language': _language, 'regression': _regression,
          'images': _images}
  return make[_kind(config)](config, num_classes, make_space(config.space))


def _kind(config):
  return checks.MODELS[config.model.kind][0]


def make_space(fields: Mapping[str, Any]) -> space_lib.Space:
  """A config's {name: {'kind': ..., ...}} -> the space.

  Raises:
    SpaceError: a kind or a field that there is not.
  """
  space = {}
  for name, field in fields.items():
    field = dict(field)
    kind = field.pop('kind', None)
    if kind not in _SPACE_KINDS:
      raise space_lib.SpaceError(
          f'space.{name}.kind={kind!r}; there are {", ".join(_SPACE_KINDS)}')
    try:
      space[name] = _SPACE_KINDS[kind](**field)
    except TypeError as e:
      raise space_lib.SpaceError(f'space.{name}: {e}') from e
  return space


def _build(config, num_classes) -> nn.Module:
  """The module of config.model."""
  match config.kind:
    case 'mlp':
      return models.MLP(tuple(config.widths), num_classes)
    case 'simple_cnn':
      return models.SimpleCNN(num_classes, tuple(config.channels))
    case 'resnet18':
      return models.ResNet18(num_classes, config.width)
  return {'alexnet': models.AlexNet, 'vgg16': models.VGG16}[config.kind](
      num_classes)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log p(label), nats [...], of logits [..., C] and labels [...]."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _images(config, num_classes, space):
  """Images with augmentation by the names in the space."""
  mean, std = (np.asarray(x, np.float32).reshape(1, 1, 1, -1)
               for x in config.normalise)
  max_holes = int(space['cutout_holes'].high) - 1 if (
      'cutout_holes' in space) else 0

  def forward(apply, batch, hypers, key):
    images = batch['image']
    keys = dict(zip((*_COLOUR, 'affine', 'cutout', 'input_dropout',
                     'input_scale'), jax.random.split(key, 8), strict=True))
    normalised = lambda x: (x - mean) / std
    if hypers is None:
      return apply(normalised(images), train=False)
    if set(_AFFINE) & set(space):
      none = jnp.zeros(images.shape[0])
      images = regularize.affine(keys['affine'], images, **{
          name: hypers[name] if name in space else none for name in _AFFINE})
    for name, change in _COLOUR.items():
      if name in space:
        images = change(keys[name], images, hypers[name])
    x = normalised(images)
    if max_holes:
      x = regularize.cutout(
          keys['cutout'], x, *(hypers[name] for name in checks.CUTOUT),
          max_holes)
    if 'input_dropout' in space:
      x = regularize.dropout(
          keys['input_dropout'], x, hypers['input_dropout'])
    if 'input_scale' in space:
      x = regularize.input_scale(keys['input_scale'], x, hypers['input_scale'])
    return apply(x, train=True)

  def loss(outputs, batch, hypers):
    del hypers
    return cross_entropy(outputs, batch['label'])

  names = set(space) - _IMAGE_NAMES - {'weight_decay'}
  return problem_lib.Problem(
      _build(config.model, num_classes), space, forward, loss,
      dropout={name: name for name in sorted(names)},
      weight_decay='weight_decay' if 'weight_decay' in space else '')


def _language(config, num_classes, space):
  """A language model with the seven regularisers of STN's experiment."""

  def forward(apply, batch, hypers, key):
    del key
    if hypers is None:
      return apply(batch['tokens'], train=False)
    # One mask of words and of weights holds for the whole batch.
    rate = lambda name: (
        hypers[name][0] if name in space else jnp.float32(0))
    return apply(batch['tokens'], train=True, rates={
        'embedding': rate('embedding_dropout'),
        'weight': rate('weight_dropout')})

  def loss(outputs, batch, hypers):
    losses = jnp.mean(
        cross_entropy(outputs['logits'], batch['targets']), axis=1)
    if hypers is None:
      return losses
    if 'alpha' in space:
      losses += regularize.activation_penalty(
          outputs['dropped'], hypers['alpha'])
    if 'beta' in space:
      losses += regularize.temporal_activation_penalty(
          outputs['hidden'], hypers['beta'])
    return losses

  for name in set(_LANGUAGE_NAMES[:2]) & set(space):
    if not space[name].shared:
      raise space_lib.SpaceError(
          f'{name}: one mask holds for a whole batch, so it needs shared=True')
  names = set(space) - {*_LANGUAGE_NAMES, 'weight_decay'}
  return problem_lib.Problem(
      models.LSTMLanguageModel(
          num_classes, config.model.width, config.model.num_layers),
      space, forward, loss, dropout={name: name for name in sorted(names)},
      weight_decay='weight_decay' if 'weight_decay' in space else '',
      without_response=('decoder',), handlers=models.LANGUAGE_HANDLERS)


def _regression(config, num_classes, space):
  """Linear regression whose optima are known, by one layer or by two.

  Weight decay; input dropout, which equals a ridge; or, for two layers, the
  norm of dy/dx, which equals a ridge on their product (STN, section 3.1).
  """
  del num_classes
  model = models.Linear(tuple(config.model.get('widths', ())))

  def forward(apply, batch, hypers, key):
    x = batch['x']
    if hypers is None:
      return {'y': apply(x)}
    if 'input_dropout' in space:
      x = regularize.dropout(key, x, hypers['input_dropout'])
    outputs = {'y': apply(x)}
    if 'jacobian' in space:
      outputs['jacobian'] = regularize.projected_jacobian(apply, x, key)
    return outputs

  def loss(outputs, batch, hypers):
    losses = 0.5 * jnp.square(outputs['y'][:, 0] - batch['y'])
    if hypers is not None and 'jacobian' in space:
      losses += 0.5 * hypers['jacobian'] * regularize.squared_norm(
          outputs['jacobian'])
    return losses

  return problem_lib.Problem(
      model, space, forward, loss,
      weight_decay='weight_decay' if 'weight_decay' in space else '')


def _image_measures(outputs, batch):
  return {'accuracy': jnp.argmax(outputs, -1) == batch['label']}


def _no_measures(outputs, batch):
  del outputs, batch
  return {}


_MEASURES = {
    'images': _image_measures, 'language': _no_measures,
    'regression': _no_measures}


def make_optimizers(config: Config) -> state_lib.Optimizers:
  """SGD with momentum for the weights, Adam or RMSprop for (lam, rho)."""
  s, h = config.optimizer, config.hyper
  lr = s.lr
  if s.decay_rounds:
    lr = optax.piecewise_constant_schedule(
        s.lr, {n * config.updates_per_round: s.decay
               for n in s.decay_rounds})
  def weights():
    clip = [optax.clip_by_global_norm(s.clip_norm)] if s.clip_norm else []
    return optax.chain(*clip, optax.sgd(lr, s.momentum or None))
  hyper = {
      'adam': lambda: optax.adam(h.lr),
      'rmsprop': lambda: optax.rmsprop(h.lr, decay=0.99, eps_in_sqrt=False)}
  if h.optimizer not in hyper:
    raise ValueError(
        f'hyper.optimizer={h.optimizer!r}; there are {", ".join(hyper)}')
  return state_lib.Optimizers(weights(), weights(), hyper[h.optimizer]())


def round_batch(run: Setup):
  """round -> {'train': fields [B, T, ...], 'valid': fields [B, ...]}.

  Flips are drawn here, once for a batch: both passes of Delta-STN see the
  same images.
  """
  config = run.config
  train = run.dataset.batches('train', config.batch_size)
  valid = run.dataset.batches('valid', config.batch_size)
  updates = config.updates_per_round

  def batch(step):
    several = [train(i) for i in range(step * updates, (step + 1) * updates)]
    if config.get('flip', False):
      several = [_flipped(x, (config.seed, step * updates + i))
                 for i, x in enumerate(several)]
    return {
        'train': jax.tree.map(lambda *x: np.stack(x, axis=1), *several),
        'valid': valid(step)}

  return batch


def _flipped(batch, seed):
  """A batch with each image mirrored, or not, by a fair coin."""
  images = batch['image']
  flip = np.random.default_rng(seed).random(len(images)) < 0.5
  return {**batch, 'image': np.where(
      flip[:, None, None, None], images[:, :, ::-1], images)}


def make_evaluate(run: Setup):
  """(weights, part) -> name -> mean over the part.

  `weights` is as a run hands it on: 'params', 'variables' where the model has
  some, and, where the layers shall answer, 'response' and 'lam' [n]. The
  answers are added as in training, since a table that serves two ends, such
  as an embedding that decodes too, answers at one of them alone.

  'loss' in nats; 'perplexity' for text, 'accuracy' for images.
  """
  problem = run.problem

  @jax.jit
  def one(params, answer, variables, batch):
    response, lam = answer
    perturbation = response_lib.Perturbation(jnp.broadcast_to(
        lam, (run.config.batch_size, lam.shape[0]))) if response else None
    outputs, after = problem_lib.run_model(
        problem, params, response, variables, batch, None, perturbation,
        jax.random.key(0))
    if 'tokens' in batch:  # Weighted within a row.
      losses = cross_entropy(outputs['logits'], batch['targets'])
    else:
      losses = problem.loss(outputs, batch, None)
    sums = {'loss': losses} | run.measures(outputs, batch)
    return jax.tree.map(
        lambda x: jnp.sum(x * batch['weight']), sums), after

  def evaluate(weights, part):
    totals, weight = {}, 0.0
    answer = weights.get('response', {}), weights.get('lam')
    # A stream starts from nothing.
    variables = dict(weights.get('variables', {}))
    if problem_lib.CARRY in variables:
      variables[problem_lib.CARRY] = jax.tree.map(
          jnp.zeros_like, variables[problem_lib.CARRY])
    for batch in run.dataset.whole(part, run.config.batch_size):
      sums, after = one(weights['params'], answer, variables, batch)
      if problem_lib.CARRY in variables:
        variables[problem_lib.CARRY] = after[problem_lib.CARRY]
      weight += float(np.sum(batch['weight']))
      for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)
    means = {name: value / weight for name, value in totals.items()}
    if 'tokens' in batch:
      means['perplexity'] = math.exp(min(means['loss'], 700.0))
    return means

  return evaluate
