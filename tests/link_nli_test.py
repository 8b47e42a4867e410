"""The critic of inference: a classifier of transformers, read and run here."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers

from core_jax import mesh as mesh_lib
from link_jax import calibrate
from link_jax import critic
from link_jax import facts
from link_jax import nli
from link_jax import tools
from tests.link_critic_test import claim
from tests.link_models import byte_level_bpe

PAIRS = [('An almond is a nut.', 'It is so.'),
         ('paella: a dish of rice and prawn', 'prawn is in paella.'),
         ('A pad thai, and tea; and a soup of the day: ' * 3, 'It is so.'),
         ('x', 'x')]
PAD = 2  # '!', which is in no text here
LABELS = {0: 'CONTRADICTION', 1: 'NEUTRAL', 2: 'ENTAILMENT'}


def save(path, family):
  """Random weights, large enough for answers far from even."""
  tokenizer = byte_level_bpe()
  ends = ('</s>', 1), ('<s>', 0)
  tokenizer.post_processor = (
      tokenizers.processors.BertProcessing(*ends) if family == 'bert' else
      tokenizers.processors.RobertaProcessing(*ends))
  config = dict(
      vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_labels=3,
      num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
      max_position_embeddings=80, id2label=LABELS, pad_token_id=PAD)
  torch.manual_seed(0)
  if family == 'bert':
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**config))
  else:
    model = transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**config, type_vocab_size=1))
  with torch.no_grad():
    for p in model.parameters():
      p.add_(torch.randn(p.shape) * .25)
  model.eval().save_pretrained(path)
  tokenizer.save(str(path / 'tokenizer.json'))
  return model, tokenizer


def probabilities(model, tokenizer, pairs):
  """[pairs, labels], by transformers, one pair at a time."""
  found = []
  for pair in pairs:
    e = tokenizer.encode(*pair)
    segments = e.type_ids if model.config.type_vocab_size > 1 else None
    with torch.no_grad():
      logits = model(
          input_ids=torch.tensor([e.ids]),
          token_type_ids=segments and torch.tensor([segments])).logits
    found.append(logits.softmax(-1)[0].numpy())
  return np.array(found)


@pytest.fixture(scope='module', params=['bert', 'roberta'])
def folder(request, tmp_path_factory):
  path = tmp_path_factory.mktemp(request.param)
  return path, *save(path, request.param)


def one_device():
  return mesh_lib.make_mesh(devices=jax.devices()[:1])


def test_probabilities_are_those_of_transformers(folder):
  path, model, tokenizer = folder
  ours = nli.Entailment(nli.load(path), one_device())
  wanted = probabilities(model, tokenizer, PAIRS)[:, 2]
  assert wanted.std() > 0.05
  np.testing.assert_allclose(ours(PAIRS), wanted, atol=1e-5)
  # Neither their order nor what is beside them matters, nor 8 devices.
  np.testing.assert_allclose(ours(PAIRS[::-1])[::-1], wanted, atol=1e-5)
  everywhere = nli.Entailment(nli.load(path))
  np.testing.assert_allclose(everywhere(PAIRS), wanted, atol=1e-5)


def test_of_a_pair_that_is_too_long_the_premise_is_cut(folder):
  path, model, tokenizer = folder
  long = ('It is so. ' * 40, 'It is so.')
  found = nli.Entailment(nli.load(path), one_device())([long])
  tokenizer.enable_truncation(
      nli.load(path).config.context, strategy='only_first')
  np.testing.assert_allclose(
      found, probabilities(model, tokenizer, [long])[:, 2], atol=1e-5)
  tokenizer.no_truncation()


def changed(path, tmp_path, **config):
  for file in path.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  saved = json.loads((path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(saved | config))
  return tmp_path


@pytest.mark.parametrize('config, message', [
    ({'id2label': {'0': 'yes', '1': 'no', '2': 'open'}},
     "id2label has no 'entailment' but .'no', 'open', 'yes'"),
    ({'id2label': {'0': 'entailment'}}, 'of shape.*by its config it must be'),
    ({'model_type': 'bart'}, "model_type='bart'; 'bert', 'roberta'"),
    ({'hidden_act': 'relu'}, "hidden_act='relu'"),
    ({'num_hidden_layers': 3}, 'lacks 16 of .*layer.2.attention')])
def test_a_folder_of_something_else_is_refused(
    folder, tmp_path, config, message):
  with pytest.raises(ValueError, match=message):
    nli.load(changed(folder[0], tmp_path, **config))


def test_names_of_older_files_are_read(folder, tmp_path):
  path = changed(folder[0], tmp_path)
  file, = path.glob('*.safetensors')
  safetensors.numpy.save_file({
      name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
          'LayerNorm.bias', 'LayerNorm.beta'): x
      for name, x in safetensors.numpy.load_file(file).items()}, file)
  assert nli.load(path).config == nli.load(folder[0]).config


def entails(pairs):
  return [0.9 if 'decapod' in premise else 0.2 for premise, _ in pairs]


def test_a_definition_is_the_premise_and_without_one_it_abstains():
  judge = nli.NliCritic(entails, 'test', '0').judge
  sure, unsure, open_ = judge([
      claim('prawn', 'shellfish'), claim('paella', 'shellfish'),
      claim('flogiston', 'phlogisticon')])
  assert (sure.p, unsure.p, open_.p) == (0.9, 0.2, None)
  assert 'prawn: ' in sure.evidence[0] and 'paella: ' in unsure.evidence[0]
  kind = critic.Claim('paella is a dish', None, 'paella', 'dish')
  assert nli.definitions(kind).count(':') == 1
  assert judge([]) == []


def test_a_run_takes_it_by_the_name_of_its_folder(folder):
  critic_ = tools.critic_of(_config(('facts', f'nli:{folder[0]}')))
  verdict, = critic_.judge([claim('paella', 'crab', '')])
  assert 0 < verdict.p < 1 and critic_.name.endswith(folder[0].name)
  claims, labels = calibrate.labelled(
      facts.embedded(), 'kind_of', '[X] is one type of [Y]', 8, 0)
  found = calibrate.report(
      tools.critic_of(_config((f'nli:{folder[0]}',))), claims, labels)
  assert found['abstained'] == 0. and 0 <= found['auc'] <= 1


def _config(kinds):
  from configs import link_default
  config = link_default.get_config('tiny')
  config.critic.kinds = kinds
  return config
