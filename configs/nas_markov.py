"""Architecture search on a source of known entropy: no data, no network.

  python -m nas_jax.main

ENAS with and without memory against random search, all over shared weights,
on text whose next symbol depends on the last two: 3 minutes on two cores.
Over five seeds the cells found have test perplexities of 5.415 ± 0.079 (ENAS)
and 5.500 ± 0.074 (random search); the floor is 3.903 (docs/nas.md).
`:help` reads Python's own help instead, some 60,000 words of English;
`:small` has three nodes, of which every cell is known by training it alone
(see nas_jax.tabular).
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'markov'
  config.data_path = ''
  config.markov = ml_collections.ConfigDict(dict(
      vocab_size=20, order=2, concentration=0.1, num_train=100_000,
      num_valid=20_000, seed=0))

  config.space = ml_collections.ConfigDict(dict(kind='enas', num_nodes=6))
  config.child = ml_collections.ConfigDict(dict(
      hidden_size=32, sharing='edge', state='mean', output='leaves',
      norm='none', input_bias=True, max_norm=25.0, init_scale=0.1))
  config.rates = ml_collections.ConfigDict(
      dict(embedding=0.0, input=0.0, output=0.0, weight=0.0))

  config.reset_rate = 0.0  # of a stream's state, in training

  config.methods = ('enas', 'enas_reconstruct', 'uniform')
  config.num_rounds = 40
  config.shared_updates = 100
  config.strategy_updates = 50
  config.batch_size = 32
  config.valid_batch_size = 32
  config.window_tokens = 20
  config.cells_per_update = 4
  config.optimizer = ml_collections.ConfigDict(dict(
      kind='adam', lr=3e-3, clip_norm=0.25, weight_decay=0.0, decay=0.96,
      decay_from_round=20))
  config.controller = ml_collections.ConfigDict(dict(
      hidden_size=64, temperature=5.0, tanh_constant=2.5, heads='per_step',
      lr=1e-3))
  config.reward = ml_collections.ConfigDict(dict(
      scale=20.0, power=1.0, max_loss=20.0, baseline_decay=0.95,
      entropy_weight=1e-3, entropy_in_reward=False, samples_per_update=4))
  config.memory = ml_collections.ConfigDict(dict(
      weight=1.0, capacity=10_000, batch_size=100, pushed_per_round=500,
      store_from_round=1, train_from_round=3))
  # Candidates of random search, which has evaluated none before: as many as
  # the cells that a controller evaluates in all.
  config.uniform = ml_collections.ConfigDict(dict(num_cells=1100))
  config.evolution = ml_collections.ConfigDict(
      dict(population=64, tournament=8))
  config.halving = ml_collections.ConfigDict(dict(num_cells=128))
  config.darts = ml_collections.ConfigDict(dict(lr=3e-3, weight_decay=1e-3))

  config.derive = ml_collections.ConfigDict(dict(
      num_cells=100, chunk=10, num_windows=8))
  config.retrain = ml_collections.ConfigDict(dict(
      num_rounds=10, updates_per_round=150, num_seeds=1, random_cells=6,
      cells=(), lstm=True, norm='none', init_scale=0.1,
      rates=config.rates.copy_and_resolve_references(),
      optimizer=config.optimizer.copy_and_resolve_references()))
  config.retrain.optimizer.decay = 0.7
  config.retrain.optimizer.decay_from_round = 5
  config.analysis = ml_collections.ConfigDict(dict(
      num_cells=100, num_permutations=999, tsne_perplexity=10.0,
      authors_measures=False))  # some 20 ms a pair of cells

  config.log_every_steps = 5
  config.checkpoint_every_steps = 20
  config.keep = 2

  if variant == 'help':
    config.dataset = 'help'
    config.child.hidden_size = 64
    config.rates.input = config.rates.output = 0.3
    config.retrain.rates.update(config.rates)
    config.reward.scale = 200.0
  elif variant == 'small':
    config.space.num_nodes = 3
    config.retrain.update(num_rounds=10, updates_per_round=100)
  elif variant == 'tiny':
    config.markov.update(vocab_size=6, num_train=2_000, num_valid=1_000)
    config.space.num_nodes = 3
    config.child.hidden_size = 8
    config.controller.hidden_size = 8
    config.batch_size = config.valid_batch_size = 8
    config.num_rounds, config.shared_updates = 4, 3
    config.strategy_updates, config.window_tokens = 2, 5
    config.memory.update(
        capacity=16, batch_size=4, pushed_per_round=4, store_from_round=0,
        train_from_round=1)
    config.evolution.update(population=8, tournament=2)
    config.halving.num_cells = 8
    config.uniform.num_cells = 12
    config.derive.update(num_cells=8, chunk=4, num_windows=2)
    config.retrain.update(num_rounds=2, updates_per_round=4, random_cells=1)
    config.analysis.update(
        num_cells=12, num_permutations=19, tsne_perplexity=3.0)
    config.log_every_steps = config.checkpoint_every_steps = 1
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there are ':help', "
                     "':small' and ':tiny'")
  return config
