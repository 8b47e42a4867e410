"""Fashion-MNIST at 32x32: an ADM U-Net teacher and four students.

  apt-get install dataset-fashion-mnist   # or --config.data_path=FOLDER
  python -m msd_jax.main --config=configs/fashion.py

`data_path` is a folder with the four IDX files, or `tfds:fashion_mnist`; ''
is where Debian's package puts them. docs/msd.md has a run on two CPU cores.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'fashion'
  config.data_path = ''
  config.sigma_data = 0.7  # measured, images in [-1, 1], padding included
  config.sigma_min = 0.002
  config.sigma_max = 80.

  config.num_students = 4
  config.partition = 'consecutive'
  config.baselines = ('equal_batch',)
  config.student_devices = 0
  config.teacher_workdir = ''

  config.log_every_steps = 20
  config.checkpoint_every_steps = 100
  config.keep = 1

  network = dict(
      kind='adm', model_channels=32, channel_mult=(1, 2, 2), num_blocks=1,
      attention_resolutions=(8,), dropout=0.)
  config.teacher = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=1500, batch_size=64, lr=1e-3,
      warmup_steps=50, clip_norm=1., weight_decay=0.,
      ema_half_life_steps=100., sampler_steps=18))
  config.classifier = ml_collections.ConfigDict(dict(
      width=16, num_features=64, num_steps=1500, batch_size=128, lr=1e-3,
      warmup_steps=50, clip_norm=1., weight_decay=1e-4,
      ema_half_life_steps=50.))
  config.score_matching = ml_collections.ConfigDict(dict(
      num_steps=1000, batch_size=64, lr=1e-3, warmup_steps=50, clip_norm=1.,
      weight_decay=0., ema_half_life_steps=100.))
  config.students = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=200, batch_size=32, ratio=5, lr=1e-4,
      fake_lr=1e-4, warmup_steps=10, clip_norm=10., weight_decay=0.01,
      min_level=20, max_level=980, ema_decay=0.95))
  config.evaluation = ml_collections.ConfigDict(dict(num_sets=1))

  if variant == 'tiny':
    for stage in (config.teacher, config.classifier, config.score_matching,
                  config.students):
      stage.num_steps, stage.batch_size = 2, 8
    small = dict(channel_mult=(1, 1), attention_resolutions=(), num_blocks=1)
    config.teacher.network.update(small)
    config.students.network.update(small)
    config.teacher.sampler_steps = 2
    config.log_every_steps, config.checkpoint_every_steps = 1, 2
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")
  return config
