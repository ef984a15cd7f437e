"""Cases that take turns by the date: each comes, as often as its mark says."""

import datetime
import pathlib
import types

import conftest
import pytest


def items(name, days, cases):
  test = types.SimpleNamespace(__name__=name)
  marks = lambda _: [pytest.mark.drawn(days).mark] * (days > 1)
  one = lambda i: types.SimpleNamespace(
    path=pathlib.Path('test_x.py'), function=test, iter_markers=marks, case=i
  )
  return [one(i) for i in range(cases)]


def on(date, found):
  hook = types.SimpleNamespace(pytest_deselected=lambda items: None)
  config = types.SimpleNamespace(getoption=lambda _: date, hook=hook)
  conftest.pytest_collection_modifyitems(config, found)
  return [item.case for item in found]


@pytest.mark.parametrize('days, cases', [(7, 1), (7, 4), (4, 7), (3, 3), (1, 2)])
@pytest.mark.parametrize('name', ['test_a', 'test_b'])
def test_every_case_comes_once_in_so_many_days(name, days, cases):
  week = [datetime.date(2026, 12, 28) + datetime.timedelta(i) for i in range(days)]
  drawn = [on(date, items(name, days, cases)) for date in week]
  assert sorted(sum(drawn, [])) == list(range(cases))
  assert max(map(len, drawn)) <= -(-cases // days)


def test_without_a_date_all_come():
  assert on(None, items('test_a', 7, 3)) == [0, 1, 2]
