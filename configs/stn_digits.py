"""Self-tuning on digits, the embedded default: scikit-learn's 8x8 digits.

  python -m stn_jax.main

tunes seven regularisers of a small network with Delta-STN and STN, replays
the schedules, and searches the same space at random and with fixed values: a
few minutes on two cores, a test loss of 0.06 by Delta-STN, 0.02 by STN and 0.12
by fixed values.
`:tiny` is for tests.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'digits'
  config.data_path = ''
  config.train_examples = 300  # 0: all that are not held out
  config.valid_examples = 600
  config.normalise = (0.3, 0.38)  # mean and deviation of the pixels
  config.flip = False

  config.model = ml_collections.ConfigDict(
      dict(kind='mlp', widths=(256, 256)))
  rate = lambda **more: dict(
      kind='bounded', start=0.05, low=0.0, high=0.95, **more)
  config.space = ml_collections.ConfigDict(dict(
      dropout0=rate(), dropout1=rate(), dropout2=rate(),
      degrees=dict(kind='bounded', start=5.0, low=0.0, high=45.0),
      translate=dict(kind='bounded', start=0.05, low=0.0, high=0.5),
      scale=dict(kind='bounded', start=0.05, low=0.0, high=0.5),
      weight_decay=dict(kind='log', start=1e-4)))

  config.methods = ('delta_stn', 'stn')
  config.num_rounds = 2000
  config.updates_per_round = 2  # of the weights, for one of the space
  config.warmup_rounds = 100
  config.batch_size = 128
  config.entropy_weight = 1e-3
  config.tune_scales = True
  config.rank = 1  # of each layer's response
  config.unroll = False  # see stn_jax.Settings
  config.diagnose = True
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=0.03, momentum=0.9, clip_norm=0.0, decay=0.2,
      decay_rounds=(1200, 1600)))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='adam', lr=1e-2))

  config.baselines = ('fixed', 'replay', 'final', 'random')
  # Budgets of the searches, in costs of the most expensive method.
  config.search_times = (1, 4)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 10

  config.log_every_steps = 50
  config.checkpoint_every_steps = 500
  config.keep = 2

  if variant == 'tiny':
    config.model.widths = (16,)
    del config.space.dropout2
    config.num_rounds, config.warmup_rounds, config.batch_size = 4, 1, 16
    config.train_examples = config.valid_examples = 64
    config.optimizer.decay_rounds = (2,)
    config.search_times = (1,)
    config.log_every_steps, config.checkpoint_every_steps = 2, 2
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")
  return config
