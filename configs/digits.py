"""Digits, the embedded default: scikit-learn's 8x8 handwritten digits.

  python -m msd_jax.main

trains a teacher, K = 4 one-step students and the single-student baselines at
equal batch per student and at equal total compute; two CPU cores take about
five minutes. Over three seeds the Fréchet distance of four students is 0.148 ±
0.003, that of the teacher 0.135, of real digits 0.103 (docs/msd.md). `:tiny` is
for tests: seconds, and nothing to look at.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'digits'
  config.data_path = ''
  config.sigma_data = 0.75  # measured, images in [-1, 1]
  config.sigma_min = 0.002
  config.sigma_max = 30.  # 40 deviations of the data

  config.num_students = 4
  config.partition = 'consecutive'
  config.baselines = ('equal_batch', 'equal_compute')
  config.student_devices = 0  # of the mesh's 'student' axis; 0: as many as fit
  config.teacher_workdir = ''  # take teacher and classifier from this run
  config.compute = ml_collections.ConfigDict(dict(
      dtype='float32', remat=False, fsdp=False, microbatches=1))

  # Stages of the students, joined by +: dm, adm, consistency, post.
  config.student_stages = 'dm'

  config.log_every_steps = 100
  config.checkpoint_every_steps = 400
  config.keep = 2

  network = dict(kind='mlp', width=128, depth=4)
  config.teacher = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=4000, batch_size=256, lr=1e-3,
      warmup_steps=100, clip_norm=1., weight_decay=0.,
      ema_half_life_steps=300., sampler_steps=18))
  config.classifier = ml_collections.ConfigDict(dict(
      width=16, num_features=32, num_steps=300, batch_size=64, lr=3e-3,
      warmup_steps=50, clip_norm=1., weight_decay=1e-4,
      ema_half_life_steps=50.))
  # Only where the students' network is not the teacher's.
  config.score_matching = ml_collections.ConfigDict(dict(
      num_steps=2000, batch_size=256, lr=1e-3, warmup_steps=100, clip_norm=1.,
      weight_decay=0., ema_half_life_steps=300.))
  config.students = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=500, batch_size=128, ratio=5, lr=3e-4,
      fake_lr=3e-4, warmup_steps=20, clip_norm=10., weight_decay=0.01,
      min_level=20, max_level=980, ema_decay=0.98,
      fake_network='teacher'))  # or 'student'
  # What 'adm' has other than 'students'.
  config.adm = ml_collections.ConfigDict(dict(
      num_steps=300, lr=3e-4, fake_lr=3e-4, warmup_steps=20,
      gan_weight=ml_collections.FieldReference(3e-3, object),  # or 'matched'
      match_factor=1., critic_weight=1e-2, gan_max_level=999,
      backbone='fake', filter_real=True))
  # Joins 'dm' where its weight is above 0; pairs: of msd_jax.make_pairs.
  config.regression = ml_collections.ConfigDict(dict(
      weight=0., pairs='', filter_pairs=False, distance='features'))
  config.consistency = ml_collections.ConfigDict(dict(
      num_steps=1200, batch_size=128, lr=3e-4, warmup_steps=20,
      clip_norm=10., weight_decay=0., num_levels=18, target_decay=0.95,
      ema_decay=0.98, distance='l2'))
  config.post = ml_collections.ConfigDict(dict(
      workdir='', num_steps=1200, batch_size=128, lr=3e-4,
      warmup_steps=20, clip_norm=10., weight_decay=0., ema_decay=0.98,
      distance='l2'))
  config.lpips_vgg_path = config.lpips_linear_path = ''
  # Deviations of the real images' brightness that call for a warning.
  config.brightness_alarm = 1.
  config.evaluation = ml_collections.ConfigDict(dict(num_sets=10))

  if variant == 'tiny':
    for stage in (config.teacher, config.classifier, config.score_matching,
                  config.students, config.consistency, config.post):
      stage.num_steps, stage.batch_size = 4, 16
    config.adm.num_steps = 4
    config.teacher.network.width = config.students.network.width = 32
    config.teacher.sampler_steps = 4
    config.log_every_steps, config.checkpoint_every_steps = 2, 2
    config.evaluation.num_sets = 1
  elif variant:
    raise ValueError(f"variant {variant!r} is not known; there is ':tiny'")
  return config
