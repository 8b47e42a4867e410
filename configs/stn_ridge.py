"""Self-tuning where the optimum is known: ridge regression, 30 rows of 20.

  python -m stn_jax.main --config=configs/stn_ridge.py

One log weight decay; the optimum is at -2.3675 (weight decay 0.0937,
validation loss 6.6469), where Delta-STN, STN and the implicit function
theorem should end; a minute on two cores. `:dropout` tunes input dropout
instead, equal to a ridge: the optimum is at rate 0.1184, loss 6.3938.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'ridge'
  config.data_path = ''
  config.repeats = 16  # of the 30 rows in a batch

  config.model = ml_collections.ConfigDict(dict(kind='linear'))
  config.space = ml_collections.ConfigDict(
      dict(weight_decay=dict(kind='log', start=2.718)))

  config.methods = ('delta_stn', 'stn', 'implicit')
  config.num_rounds = 6000
  config.updates_per_round = 2
  config.warmup_rounds = 0
  config.batch_size = 480
  config.entropy_weight = 0.0
  config.tune_scales = False
  config.rank = 1  # of each layer's response
  config.implicit_solver = 'cg'  # of method 'implicit', or 'neumann'
  config.implicit_steps = 20
  config.implicit_step_size = 0.05  # of neumann: below 2 / max curvature
  config.unroll = False
  config.diagnose = True
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=0.05, momentum=0.0, clip_norm=0.0, decay=1.0, decay_rounds=()))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='adam', lr=3e-3))

  config.baselines = ('fixed', 'random')
  # Budgets of the searches, in costs of the most expensive method, 'implicit'.
  config.search_times = (1,)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 10

  config.log_every_steps = 200
  config.checkpoint_every_steps = 2000
  config.keep = 2

  if variant == 'dropout':
    config.space = ml_collections.ConfigDict(dict(
        input_dropout=dict(kind='bounded', start=0.5, low=0.0, high=1.0)))
    config.methods = ('delta_stn', 'stn')
    # Of masks: no hypergradient by the implicit function.
    del config.implicit_solver, config.implicit_steps
    del config.implicit_step_size
    config.search_times = (1, 4)
  elif variant == 'tiny':
    config.num_rounds = 4
    config.baselines = ('fixed',)
    config.log_every_steps, config.checkpoint_every_steps = 2, 2
  elif variant:
    raise ValueError(
        f"variant {variant!r} is not known; there are ':dropout' and ':tiny'")
  return config
