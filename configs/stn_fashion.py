"""Self-tuning on Fashion-MNIST: Delta-STN's SimpleCNN, six hyperparameters.

  python -m stn_jax.main --config=configs/stn_fashion.py

needs Debian's `dataset-fashion-mnist` or --config.data_path. Trains on 2,000
images, where regularisers matter and two cores can compare: an hour of a core
with all searches, a test loss of 0.46 by Delta-STN and of 0.47 by fixed values.
`:full` is the papers' setting: 51,000 images, 200 epochs, for an accelerator.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'fashion'
  config.data_path = ''
  config.train_examples = 2_000
  config.valid_examples = 9_000
  config.normalise = (0.0, 1.0)
  config.flip = False

  config.model = ml_collections.ConfigDict(
      dict(kind='simple_cnn', channels=(16, 32)))
  rate = lambda: dict(kind='bounded', start=0.05, low=0.0, high=0.95)
  config.space = ml_collections.ConfigDict(dict(
      dropout0=rate(), dropout1=rate(), dropout2=rate(), dropout_fc=rate(),
      cutout_holes=dict(kind='integer', start=1, low=0, high=5),
      cutout_length=dict(kind='integer', start=4, low=2, high=24)))

  config.methods = ('delta_stn', 'stn')
  config.num_rounds = 300  # 40 epochs
  config.updates_per_round = 2
  config.warmup_rounds = 15
  config.batch_size = 128
  config.entropy_weight = 1e-3
  config.tune_scales = True
  config.rank = 1  # of each layer's response
  config.unroll = True
  config.diagnose = False
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=0.03, momentum=0.9, clip_norm=0.0, decay=0.2, decay_rounds=()))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='rmsprop', lr=2e-2))

  config.baselines = ('fixed', 'replay', 'final', 'random', 'tpe')
  # Budgets of the searches, in costs of the most expensive method.
  config.search_times = (1, 4)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 10

  config.log_every_steps = 10
  config.checkpoint_every_steps = 100
  config.keep = 2

  if variant == 'full':
    for hyperparameter in config.space.values():
      hyperparameter.sigma = 1.0
    config.train_examples = 0
    config.num_rounds, config.warmup_rounds = 15_920, 398
    config.updates_per_round = 5
    config.optimizer.lr = config.hyper.lr = 0.01
    config.log_every_steps, config.checkpoint_every_steps = 100, 2_000
  elif variant == 'tiny':
    config.model.channels = (2, 2)
    config.num_rounds, config.warmup_rounds, config.batch_size = 2, 1, 16
    config.updates_per_round = 2
    config.train_examples = config.valid_examples = 64
    config.baselines = ('fixed',)
    config.log_every_steps, config.checkpoint_every_steps = 1, 1
  elif variant:
    raise ValueError(
        f"variant {variant!r} is not known; there are ':full' and ':tiny'")
  return config
