"""ENAS on the Penn Treebank, by the settings of ENAS-pytorch.

  python -m nas_jax.main --config=configs/nas_ptb.py \\
      --config.data_path=FOLDER

FOLDER holds Mikolov's ptb.{train,valid,test}.txt, which are checked by their
numbers of tokens. Twelve nodes, hidden size 1,000, 150 epochs of 400 updates
of 146 million shared weights and 2,000 of the controller: for an accelerator,
and not run here. The published cell has a test perplexity of 56.3 after
training at length.

Adam and Lorraine's runs are a fork of ENAS-pytorch. It trains the shared
weights by Adam at a constant rate of 3.5e-4, and not by ENAS' SGD as here:

  --config.optimizer.kind=adam --config.optimizer.lr=3.5e-4 \\
      --config.optimizer.decay=1.0
"""

from configs import nas_markov


def get_config(variant=''):
  config = nas_markov.get_config('tiny' if variant == 'tiny' else '')
  config.dataset = 'ptb'
  config.child.update(state='last', norm='batch')
  if variant == 'tiny':
    return config
  if variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")

  config.space.num_nodes = 12
  config.child.update(hidden_size=1_000, init_scale=0.025)
  config.rates.update(embedding=0.1, input=0.65, output=0.4, weight=0.5)
  config.batch_size, config.valid_batch_size = 64, 64
  config.window_tokens = 35
  config.cells_per_update = 1
  config.num_rounds = 150
  config.shared_updates, config.strategy_updates = 400, 2_000
  config.optimizer.update(
      kind='sgd', lr=20.0, clip_norm=0.25, weight_decay=1e-7, decay=0.96,
      decay_from_round=14)
  config.controller.update(hidden_size=100, lr=3.5e-4)
  config.reward.update(
      scale=80.0, entropy_weight=1e-4, samples_per_update=1)
  config.memory.update(
      pushed_per_round=1_000, store_from_round=5, train_from_round=10)
  config.derive.update(num_cells=100, chunk=10, num_windows=1)
  config.retrain.update(
      num_rounds=150, updates_per_round=415, random_cells=0, norm='none',
      init_scale=0.04)
  config.retrain.rates.update(config.rates)
  config.retrain.optimizer.update(
      kind='sgd', lr=20.0, clip_norm=0.25, weight_decay=1e-7, decay=0.96,
      decay_from_round=14)
  config.log_every_steps, config.checkpoint_every_steps = 1, 5
  return config
