"""Self-tuning on CIFAR-10: the networks of both papers.

  python -m stn_jax.main --config=configs/stn_cifar10.py:alexnet18 \\
      --config.data_path=cifar-10-batches-bin

reads the binary batches. `:alexnet15` is STN's set of hyperparameters, and the
default; `:alexnet18`, `:vgg16` (26) and `:resnet18` are Delta-STN's, the last
with norms and one dropout after each block, as where the paper has them is
not known. 40,000 images train, 10,000 tune. For an accelerator; none of them
has been run to the end here.
"""

import ml_collections

_ROUNDS_PER_EPOCH = 62  # of 5 updates of 128


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'cifar10'
  config.data_path = ''
  config.normalise = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))

  network = variant or 'alexnet15'
  rate = lambda high=0.95: dict(
      kind='bounded', start=0.05, low=0.0, high=high)
  colour = dict(brightness=rate(1.0), contrast=rate(1.0),
                saturation=rate(1.0), hue=rate(0.5))
  affine = dict(
      degrees=dict(kind='bounded', start=5.0, low=0.0, high=45.0),
      shear=dict(kind='bounded', start=5.0, low=0.0, high=45.0),
      scale=rate(0.5), translate=rate(0.5))
  cutout = lambda low, lengths, holes: dict(
      cutout_length=dict(kind='integer', start=4, low=low, high=lengths),
      cutout_holes=dict(kind='integer', start=1, low=0, high=holes))
  dropouts = lambda first, last, high=0.95: {
      f'dropout{i}': rate(high) for i in range(first, last)}
  fc = lambda high=0.95: {'fcdropout0': rate(high), 'fcdropout1': rate(high)}
  spaces = {
      'alexnet15': dropouts(0, 5, 0.9) | fc(0.9) | colour | cutout(0, 24, 4)
                   | dict(input_dropout=rate(1.0), input_scale=rate(0.3)),
      'alexnet18': dropouts(0, 5) | fc() | colour | affine | cutout(2, 24, 5)
                   | dict(input_dropout=rate()),
      'vgg16': dropouts(0, 14) | fc() | colour | affine | cutout(2, 24, 5),
      'resnet18': dropouts(0, 8) | colour | affine | cutout(2, 24, 5)}
  tiny = network == 'tiny'
  if network not in spaces and not tiny:
    raise ValueError(
        f'variant {variant!r} is not known; there are '
        + ', '.join(f':{name}' for name in (*spaces, 'tiny')))
  name = 'resnet18' if tiny else network
  if name != 'alexnet15':  # Of Delta-STN: perturbations start wider.
    for hyperparameter in spaces[name].values():
      hyperparameter['sigma'] = 1.0
  config.space = ml_collections.ConfigDict(spaces[name])
  kind = 'alexnet' if name.startswith('alexnet') else name
  config.model = ml_collections.ConfigDict(
      dict(kind=kind) | (dict(width=64) if kind == 'resnet18' else {}))
  config.flip = network != 'alexnet15'

  config.methods = ('stn',) if network == 'alexnet15' else ('delta_stn',)
  config.updates_per_round = 5
  config.num_rounds = 200 * _ROUNDS_PER_EPOCH
  config.warmup_rounds = 5 * _ROUNDS_PER_EPOCH
  config.batch_size = 128
  config.entropy_weight = 1e-3
  config.tune_scales = True
  config.rank = 1  # of each layer's response
  config.unroll = True
  config.diagnose = False
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=0.03, momentum=0.9, clip_norm=0.0, decay=0.2,
      decay_rounds=tuple(n * _ROUNDS_PER_EPOCH for n in (60, 120, 180))))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='rmsprop', lr=1e-2))

  config.baselines = ('fixed', 'replay', 'final')
  # Budgets of the searches, in costs of the most expensive method.
  config.search_times = (1, 4)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 10

  config.log_every_steps = 50
  config.checkpoint_every_steps = 500
  config.keep = 2

  if network == 'alexnet15':
    config.updates_per_round = 2
    config.num_rounds, config.warmup_rounds = 31_200, 780
    config.optimizer.lr, config.optimizer.decay = 0.01, 0.1
    config.optimizer.decay_rounds = (18_720, 24_960)
    config.hyper = ml_collections.ConfigDict(dict(optimizer='adam', lr=3e-3))
  if tiny:
    config.model.width = 2
    config.num_rounds, config.warmup_rounds, config.batch_size = 2, 1, 8
    config.updates_per_round = 2
    config.baselines = ()
    config.log_every_steps, config.checkpoint_every_steps = 1, 1
  return config
