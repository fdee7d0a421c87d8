"""Gates and promotions: a worse model is refused, two promotions at once, a kill in the middle, back again"""
import json, os, subprocess, sys

import pytest

from scratch import Project, code

gates = '''#| gate Better than the naive forecast
record(gain=0.1*quality)
assert quality > 0, f"{quality=} is no better than nothing"''', '''#| gate Small
size_mb = 3
assert size_mb < 9
f"{size_mb} MB"''', '''#| gate Sane
assert quality != 13, nonsense'''


@pytest.mark.parametrize('engine', ['snapshot', 'papermill'])
def test_a_gate_that_refuses_ends_nothing(tmp_path, engine):
    p = Project(tmp_path/'p', settings=f'[DEFAULT]\nengine = {engine}\n')
    p.stage('01_evaluate', 'quality: int = 1\ndone: Out = "data/done.txt"', *gates, 'open(done, "w").write("to the end"); record(last=1)')
    assert [o['ok'] for o in p.ok().json['gates']] == [True]*3
    done = p.ok('-p', 'quality=-1')
    assert done.statuses == {'01_evaluate': 'completed'} and (p.data/'done.txt').read_text() == 'to the end'
    bad, small, sane = p.rows()[-1]['gates']
    assert (bad['name'], bad['ok'], bad['text'], bad['rule'], bad['figures'], bad['cell']) == ('Better than the naive forecast', False, 'quality=-1 is no better than nothing', 'quality > 0', {'gain': -.1}, 3)
    assert small['ok'] and small['value'] == "'3 MB'" and sane['ok']
    assert p.rows()[-1]['metrics'] == {'gain': -.1, 'last': 1}
    assert [o['ok'] for o in p.ok('-p', 'quality=13').json['gates']] == [True, True, False] and 'NameError' in p.rows()[-1]['gates'][2]['text']
    again = p.ok('-p', 'quality=-1')
    assert again.statuses == {'01_evaluate': 'cached'} and again.json['gates'] == done.json['gates']
    said = p.cli('run', 'demo', '-p', 'quality=-1').text
    assert 'REFUSES  Better than the naive forecast: quality=-1' in said and 'holds  Small' in p.cli('show').text
    assert p.quiet() == []


def test_what_stands_above_a_gate_may_not_fail(tmp_path):
    p = Project(tmp_path/'p')
    p.stage('01_evaluate', 'quality: int = 1', 'assert quality > 1, "no gate"', gates[0])
    assert p.run().code == 1
    row, = p.rows()
    assert row['status'] == 'failed' and [(o['ok'], o['text']) for o in row['gates']] == [(False, 'the notebook ended before it')]
