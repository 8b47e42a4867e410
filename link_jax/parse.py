"""Values out of a knowledge model's reply."""

from collections.abc import Sequence
import json
import re

_LONGEST = 64  # characters


def published(reply: str) -> list[str]:
  """As LINK's code reads a numbered list: 'N. value.', a line each.

  A line that does not end in a period is lost there, and is here.
  """
  return _lines([line for line in reply.splitlines()
                 if line.strip().endswith('.') and '.' in line.strip()[:-1]])


def tolerant(reply: str) -> list[str]:
  """A JSON list of strings if there is one, else the numbered or bulleted
  lines, else all lines if there are several; a final period is optional."""
  if (found := _json_list(reply)) is not None:
    return _clean(found)
  lines = [line.strip() for line in reply.splitlines() if line.strip()]
  listed = [line for line in lines if re.match(r'(\d+\s*[.):]|[-*•])\s*', line)]
  if listed:
    return _lines([re.sub(r'^(\d+\s*[.):]|[-*•])\s*', '1. ', line)
                   for line in listed])
  return _lines([f'1. {line}' for line in lines]) if len(lines) > 1 else []


PARSERS = {'published': published, 'tolerant': tolerant}


def _json_list(reply):
  start, end = reply.find('['), reply.rfind(']')
  if start < 0 or end < start:
    return None
  try:
    found = json.loads(reply[start:end + 1])
  except ValueError:
    return None
  return [x for x in found if isinstance(x, str)]


def _lines(lines: Sequence[str]) -> list[str]:
  """Values of lines 'N. value[.]'."""
  return _clean([
      line.strip().partition('.')[2].strip().removesuffix('.')
      for line in lines])


def _clean(values):
  """What can be a value, each once, in order."""
  found = {}
  for value in values:
    value = value.strip().removesuffix('.')
    if ('/' in value or value.count(',') > 1 or len(value) > _LONGEST
        or '. ' in value):
      continue
    value = re.sub(r'\([^)]*\)', '', value.split(',')[0], count=1)
    value = value.rpartition(': ')[2].rpartition(' - ')[2]
    value = ' '.join(value.replace('_', ' ').split())
    if value:
      found[value] = None
  return list(found)
