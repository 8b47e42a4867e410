"""Fashion-MNIST at 32x32: a teacher and four students.

  apt-get install dataset-fashion-mnist   # or --config.data_path=FOLDER
  python -m msd_jax.main --config=configs/fashion.py

`data_path` is a folder with the four IDX files, or `tfds:fashion_mnist`; ''
is where Debian's package puts them. The network is a residual MLP, which two
CPU cores train in under an hour: docs/msd.md has such a run. `:adm` has a
small ADM U-Net instead, for an accelerator.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'fashion'
  config.data_path = ''
  config.sigma_data = 0.65  # measured, images in [-1, 1]
  config.sigma_min = 0.002
  config.sigma_max = 80.

  config.num_students = 4
  config.partition = 'consecutive'
  config.baselines = ('equal_batch',)
  config.student_devices = 0
  config.teacher_workdir = ''
  config.compute = ml_collections.ConfigDict(dict(
      dtype='float32', remat=False, fsdp=False, microbatches=1))

  # Stages of the students, joined by +: dm, adm, consistency, post.
  config.student_stages = 'dm'

  config.log_every_steps = 50
  config.checkpoint_every_steps = 250
  config.keep = 1

  network = dict(kind='mlp', width=640, depth=4, pixel_skip=True)
  if variant == 'adm':
    network = dict(
        kind='adm', model_channels=64, channel_mult=(1, 2, 2), num_blocks=2,
        attention_resolutions=(16, 8), dropout=0.)
  config.teacher = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=4000, batch_size=128, lr=1e-3,
      warmup_steps=100, clip_norm=1., weight_decay=0.,
      ema_half_life_steps=250., sampler_steps=18))
  config.classifier = ml_collections.ConfigDict(dict(
      width=16, num_features=64, num_steps=1000, batch_size=128, lr=1e-3,
      warmup_steps=50, clip_norm=1., weight_decay=1e-4,
      ema_half_life_steps=50.))
  config.score_matching = ml_collections.ConfigDict(dict(
      num_steps=2000, batch_size=128, lr=5e-4, warmup_steps=100, clip_norm=1.,
      weight_decay=0., ema_half_life_steps=250.))
  config.students = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=200, batch_size=128, ratio=5, lr=2e-4,
      fake_lr=2e-4, warmup_steps=20, clip_norm=10., weight_decay=0.01,
      min_level=20, max_level=980, ema_decay=0.98,
      fake_network='teacher'))  # or 'student'
  # What 'adm' has other than 'students'.
  config.adm = ml_collections.ConfigDict(dict(
      num_steps=200, lr=2e-4, fake_lr=2e-4, warmup_steps=20,
      gan_weight=ml_collections.FieldReference(3e-3, object),  # or 'matched'
      match_factor=1., critic_weight=1e-2, gan_max_level=999,
      backbone='fake', filter_real=True))
  # Joins 'dm' where its weight is above 0; pairs: of msd_jax.make_pairs.
  config.regression = ml_collections.ConfigDict(dict(
      weight=0., pairs='', filter_pairs=False, distance='features'))
  config.consistency = ml_collections.ConfigDict(dict(
      num_steps=800, batch_size=128, lr=2e-4, warmup_steps=20,
      clip_norm=10., weight_decay=0., num_levels=18, target_decay=0.95,
      ema_decay=0.98, distance='l2'))
  config.post = ml_collections.ConfigDict(dict(
      workdir='', num_steps=800, batch_size=128, lr=2e-4,
      warmup_steps=20, clip_norm=10., weight_decay=0., ema_decay=0.98,
      distance='l2'))
  config.lpips_vgg_path = config.lpips_linear_path = ''
  # Deviations of the real images' brightness that call for a warning.
  config.brightness_alarm = 1.
  config.evaluation = ml_collections.ConfigDict(dict(num_sets=1))

  if variant == 'tiny':
    for stage in (config.teacher, config.classifier, config.score_matching,
                  config.students, config.consistency, config.post):
      stage.num_steps, stage.batch_size = 2, 8
    config.adm.num_steps = 2
    config.teacher.network.width = config.students.network.width = 16
    config.teacher.sampler_steps = 2
    config.num_students, config.baselines = 2, ()
    config.log_every_steps, config.checkpoint_every_steps = 1, 2
  elif variant not in ('', 'adm'):
    raise ValueError(
        f"variant {variant!r} is not known; there are ':adm' and ':tiny'")
  return config
