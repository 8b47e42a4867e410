"""Weights: every format gives the same params, and what is wrong is named."""

import json

import chex
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

from link_jax import weights
from tests import link_models
from tests.link_models import STATEMENTS
from tests.link_models import byte_level_bpe
from tests.link_models import torch_model


@pytest.fixture(scope='module', params=['gpt2', 'llama'])
def folder(request, tmp_path_factory):
  """A folder as transformers saves it; the model in torch stands beside it."""
  path = tmp_path_factory.mktemp(request.param)
  return path, link_models.save(path, request.param)


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  path = tmp_path_factory.mktemp('llama')
  link_models.save(path, 'llama')
  return path


def write_gguf(path, model, tokenizer):
  """The file of llama.cpp's converter: rows of q and k in pairs, 2 i, 2 i + 1.
  """
  config = model.config
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(config.num_hidden_layers)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(500.)
  writer.add_vocab_size(config.vocab_size)
  saved = json.loads(tokenizer.to_str())
  words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(words)
  writer.add_token_types([3 if word in ('<s>', '</s>') else 1
                          for word in words])
  writer.add_token_merges([' '.join(m) for m in saved['model']['merges']])
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(1)
  names = gguf.get_tensor_name_map(
      gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
  for name, tensor in model.state_dict().items():
    x = tensor.numpy()
    for part, heads in (('q_proj', config.num_attention_heads),
                        ('k_proj', config.num_key_value_heads)):
      if part in name:
        x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    writer.add_tensor(
        names.get_name(name, ('.weight',)), np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_a_gguf_file_gives_the_params_of_the_folder(llama, tmp_path):
  tokenizer = byte_level_bpe()
  write_gguf(tmp_path / 'tiny.gguf',
             torch_model('llama', tokenizer.get_vocab_size()), tokenizer)
  a, b = weights.load(llama), weights.load(tmp_path / 'tiny.gguf')
  chex.assert_trees_all_equal(a.params, b.params)
  assert a.config.rope_base == b.config.rope_base == 500
  assert (a.stop_tokens, a.fingerprint == b.fingerprint) == ((1,), False)
  for text in STATEMENTS:
    assert a.tokenizer.encode(text).ids == b.tokenizer.encode(text).ids


def test_bfloat16_and_bare_names_are_read(folder, tmp_path):
  path = broken(folder[0], tmp_path)
  for file in path.glob('*.safetensors'):
    safetensors.torch.save_file({
        name.removeprefix('transformer.').removeprefix('model.'): x.bfloat16()
        for name, x in safetensors.torch.load_file(file).items()}, file)
  rounded = jax.tree.map(
      lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32),
      weights.load(folder[0]).params)
  chex.assert_trees_all_equal(weights.load(path).params, rounded)


def broken(path, tmp_path, **config):
  """A copy of a folder with other fields in its config."""
  for file in path.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  saved = json.loads((path / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(saved | config))
  return tmp_path


@pytest.mark.parametrize(('config', 'word'), [
    ({'model_type': 'bert'}, "model_type='bert'"),
    ({'hidden_act': 'relu'}, "hidden_act='relu'"),
    ({'rope_parameters': {'rope_type': 'llama3'}}, "rope_type='llama3'"),
    ({'num_hidden_layers': 3}, 'lacks 9 of .*layers.2.input_layernorm.weight'),
    ({'intermediate_size': 40}, 'gate_proj.weight.*is of shape'),
    ({'vocab_size': 9}, 'the tokenizer has 3')])
def test_a_config_that_does_not_fit_is_named(llama, tmp_path, config, word):
  with pytest.raises(ValueError, match=word):
    weights.load(broken(llama, tmp_path, **config))


def test_missing_tensors_are_named(folder, tmp_path):
  path = broken(folder[0], tmp_path)
  file = sorted(path.glob('*.safetensors'))[-1]
  tensors = safetensors.numpy.load_file(file)
  gone = sorted(name for name in tensors if '.1.' in name)[-1]
  del tensors[gone]
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(ValueError, match='lacks 1 of') as e:
    weights.load(path)
  assert gone.removeprefix('transformer.').removeprefix('model.') in str(e)


def test_files_that_are_missing_or_damaged_are_named(llama, tmp_path):
  with pytest.raises(ValueError, match='No language model at'):
    weights.load(tmp_path / 'nowhere')
  (tmp_path / 'x.gguf').write_bytes(b'GGUF and nothing')
  with pytest.raises(ValueError, match='x.gguf is not a readable GGUF'):
    weights.load(tmp_path / 'x.gguf')
  path = broken(llama, tmp_path)
  (path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='tokenizer.json cannot be read'):
    weights.load(path)
  (path / 'tokenizer.json').write_bytes((llama / 'tokenizer.json').read_bytes())
  for file in path.glob('*.safetensors'):
    file.rename(file.with_suffix('.bin'))
  with pytest.raises(ValueError, match='has no \\*.safetensors'):
    weights.load(path)
