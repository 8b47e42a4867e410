"""The gating theorem's setting: two linear layers, the norm of dy/dx.

  python -m stn_jax.main --config=configs/stn_linear.py

STN's argument for its structured response (section 3.1): for y = s' Q x with
a penalty of the Jacobian, the best response gates the hidden units. The
penalty of Q' s is a ridge on the product, so the optimum is the one of
configs/stn_ridge.py: weight 0.0937, validation loss 6.6469.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'ridge'
  config.data_path = ''
  config.repeats = 16  # of the 30 rows in a batch

  config.model = ml_collections.ConfigDict(dict(kind='linear', widths=(20,)))
  config.space = ml_collections.ConfigDict(
      dict(jacobian=dict(kind='log', start=2.718)))

  config.methods = ('delta_stn', 'stn')
  config.num_rounds = 6000
  config.updates_per_round = 2
  config.warmup_rounds = 0
  config.batch_size = 480
  config.entropy_weight = 0.0
  config.tune_scales = False
  config.rank = 1  # of each layer's response
  config.unroll = False
  config.diagnose = True
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=0.01, momentum=0.0, clip_norm=0.0, decay=1.0, decay_rounds=()))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='adam', lr=3e-3))

  config.baselines = ('fixed', 'random')
  # Budgets of the searches, in costs of the most expensive method.
  config.search_times = (1, 4)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 10

  config.log_every_steps = 200
  config.checkpoint_every_steps = 2000
  config.keep = 2

  if variant == 'tiny':
    config.num_rounds = 4
    config.baselines = ('fixed',)
    config.log_every_steps, config.checkpoint_every_steps = 2, 2
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")
  return config
