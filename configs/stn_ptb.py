"""Self-tuning of an LSTM on the Penn Treebank: STN's experiment.

  python -m stn_jax.main --config=configs/stn_ptb.py \\
      --config.data_path=FOLDER

reads Mikolov's ptb.train.txt, ptb.valid.txt and ptb.test.txt. Two layers of
650, seven regularisers. The paper reports perplexity 70.3 on valid and 67.7
on test (from memory, not checked against its text). It has not been run here:
the data are not free. Its learning rate falls when validation stalls; here
the rounds of that are fixed beforehand. Delta-STN's settings here are not
known; it runs with STN's.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'ptb'
  config.data_path = ''
  config.window_tokens = 70

  config.model = ml_collections.ConfigDict(
      dict(kind='lstm', width=650, num_layers=2))
  sigma = 1.0  # Of all perturbations, and it stays.
  rate = lambda **more: dict(
      kind='bounded', start=0.05, low=0.0, high=1.0, sigma=sigma, **more)
  config.space = ml_collections.ConfigDict(dict(
      input_dropout=rate(), hidden_dropout1=rate(), output_dropout=rate(),
      embedding_dropout=rate(shared=True), weight_dropout=rate(shared=True),
      alpha=dict(kind='positive', start=0.05, sigma=sigma),
      beta=dict(kind='positive', start=0.05, sigma=sigma)))

  config.methods = ('delta_stn', 'stn')
  config.num_rounds = 12_450  # 75 epochs
  config.updates_per_round = 2
  config.warmup_rounds = 166
  config.batch_size = 40
  config.entropy_weight = 0.0
  config.tune_scales = False
  config.rank = 1  # of each layer's response
  config.unroll = False
  config.diagnose = False
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=30.0, momentum=0.0, clip_norm=0.25, decay=0.25,
      decay_rounds=(9_130, 10_790)))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='adam', lr=1e-2))

  config.baselines = ('fixed', 'replay', 'final')
  # Budgets of the searches, in costs of the most expensive method.
  config.search_times = (1, 4)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 10

  config.log_every_steps = 50
  config.checkpoint_every_steps = 500
  config.keep = 2

  if variant == 'tiny':
    config.model.width = 8
    config.window_tokens, config.batch_size = 4, 8
    config.num_rounds, config.warmup_rounds = 2, 1
    config.optimizer.decay_rounds = ()
    config.baselines = ('fixed',)
    config.log_every_steps, config.checkpoint_every_steps = 1, 1
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")
  return config
