"""CIFAR-10: four one-step students of EDM's conditional teacher.

  python -m msd_jax.convert edm-cifar10-32x32-cond-vp.pkl teacher
  python -m msd_jax.main --config=configs/cifar10.py \\
      --config.data_path=cifar-10-batches-py --config.teacher_workdir=teacher

The network is DDPM++; learning rate, batch and weight of the GAN are those of
FastGen's DMD2, since MSD reports no CIFAR-10; its discriminator has heads on
features of three sizes, ours one on 8x8, and an optimizer of its own, ours that
of the fake score, with DMD2's weight of 0.01. Not run to the end: it is for an
accelerator. `:single` is one student at the compute of four, `:tiny` is for
tests; `:single+tiny` is both.
"""

import ml_collections


def get_config(variant=''):
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dataset = 'cifar10'
  config.data_path = ''
  config.declared = ml_collections.ConfigDict(dict(
      shape=(32, 32, 3), num_classes=10, num_train=50_000))
  config.sigma_data = 0.5
  config.sigma_min = 0.002
  config.sigma_max = 80.

  config.num_students = 4
  config.partition = 'consecutive'
  config.baselines = ()
  config.student_devices = 0
  config.teacher_workdir = ''
  config.compute = ml_collections.ConfigDict(dict(
      dtype='bfloat16', remat=False, fsdp=False, microbatches=1))

  config.student_stages = 'dm+adm'

  config.log_every_steps = 100
  config.checkpoint_every_steps = 500
  config.keep = 2

  network = dict(
      kind='ddpmpp', model_channels=128, channel_mult=(2, 2, 2), num_blocks=4,
      attention_resolutions=(16,), dropout=0.13, augment_dim=9)
  # EDM's training, but for its augmentation: 200 million images.
  config.teacher = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=390_625, batch_size=512, lr=1e-3,
      warmup_steps=19_531, clip_norm=1e6, weight_decay=0.,
      ema_half_life_steps=977., sampler_steps=18))
  config.classifier = None  # FID: python -m msd_jax.measure
  config.score_matching = ml_collections.ConfigDict(dict(
      num_steps=50_000, batch_size=512, lr=1e-3, warmup_steps=1_000,
      clip_norm=1e6, weight_decay=0., ema_half_life_steps=977.))
  config.students = ml_collections.ConfigDict(dict(
      network=dict(network), num_steps=10_000, batch_size=2048, ratio=5,
      lr=1e-4, fake_lr=1e-4, warmup_steps=100, clip_norm=10.,
      weight_decay=0.01, min_level=20, max_level=980, ema_decay=0.999,
      fake_network='teacher'))  # or 'student'
  # FastGen has the GAN from the start, for 100,000 updates of any kind.
  config.adm = ml_collections.ConfigDict(dict(
      num_steps=10_000, lr=1e-4, fake_lr=1e-4, warmup_steps=100,
      gan_weight=ml_collections.FieldReference(1e-3, object),  # or 'matched'
      match_factor=1., critic_weight=1e-2, gan_max_level=999,
      backbone='fake', filter_real=True))
  # DMD: 0.25, LPIPS, 100,000 pairs, lr 5e-5.
  config.regression = ml_collections.ConfigDict(dict(
      weight=0., pairs='', filter_pairs=False, distance='lpips'))
  # After Song et al. (2023), from memory; MSD names no settings.
  config.consistency = ml_collections.ConfigDict(dict(
      num_steps=800_000, batch_size=512, lr=4e-4, warmup_steps=100,
      clip_norm=1e6, weight_decay=0., num_levels=18, target_decay=0.,
      ema_decay=0.9999, distance='lpips'))
  # MSD names none of post-distillation either; these were not tried.
  config.post = ml_collections.ConfigDict(dict(
      workdir='', num_steps=20_000, batch_size=128, lr=1e-5, warmup_steps=100,
      clip_norm=10., weight_decay=0., ema_decay=0.999, distance='lpips'))
  config.lpips_vgg_path = config.lpips_linear_path = ''
  config.brightness_alarm = 1.

  for name in variant.split('+') if variant else ():
    _change(config, name)
  return config


def _change(config, variant):
  if variant == 'single':
    for stage in (config.students, config.adm, config.consistency, config.post):
      stage.num_steps *= config.num_students
    config.num_students = 1
  elif variant == 'tiny':
    _make_tiny(config)
  else:
    raise ValueError(
        f"variant {variant!r} is not known; there are ':single' and ':tiny', "
        'joined by +')


def _make_tiny(config):
  small = dict(
      model_channels=8, channel_mult=(1,), num_blocks=1,
      attention_resolutions=())
  config.teacher.network.update(small)
  config.students.network.update(small)
  for stage in (config.teacher, config.score_matching, config.students,
                config.consistency, config.post):
    stage.num_steps, stage.batch_size = 2, 8
  config.students.ratio = config.adm.num_steps = 2
  config.teacher.sampler_steps = 2
  config.num_students = min(config.num_students, 2)
  config.log_every_steps, config.checkpoint_every_steps = 1, 2
