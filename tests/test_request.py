"""A request is answered, and a check finds no fault, just when the package's own `fit_rows` and pandera itself accept the rows; and they become the same rows"""
import json
from datetime import datetime, timezone

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pandera.errors import SchemaErrors

from mlops_nb.columns import as_columns
from mlops_nb.core import ModelError
from mlops_nb.package import fit_rows
from mlops_nb.request import Asked, Reader, Refused, pack_texts

zone = 'America/New_York'
quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


class Flights(pa.DataFrameModel):
    scheduled: pd.DatetimeTZDtype = pa.Field(dtype_kwargs=dict(unit='us', tz=zone), ge=pd.Timestamp('2013-01-01', tz=zone))
    arrives: int = pa.Field(ge=0, le=2400)
    carrier: str = pa.Field(isin=['AA', 'UA', 'Ä'])
    tailnum: str = pa.Field(nullable=True, str_matches=r'^N\w{0,5}$', str_length=dict(max_value=5))
    dest: str = pa.Field(str_contains='A', ne='LAX')
    distance: float = pa.Field(in_range=dict(min_value=1, max_value=6000, include_max=False))
    seats: float = pa.Field(nullable=True, gt=0)
    stops: int = pa.Field(notin=[3])
    private: bool
    delay: float = pa.Field(nullable=True) # that no request has

    @pa.check('stops', error='is even or 1')
    def even(cls, s): return (s % 2 == 0) | (s == 1)

    @pa.dataframe_check(error='it takes at most nine hours')
    def clocks(cls, df): return (df.arrives//100*60 + df.arrives%100 - df.scheduled.dt.hour*60 - df.scheduled.dt.minute) % 1440 <= 540

    @pa.dataframe_check(error='few seats fly not far')
    def far(cls, df): return df.seats.isna() | (df.distance/df.seats < 1000) | df['private']

    @pa.dataframe_check(error='it had left')
    def left(cls, df): return df.delay.notna()


class Plain(Flights):
    "All of whose rules can be written down"
    def even(cls, s): return s
    stops: int = pa.Field(notin=[3])


kinds = dict(scheduled='datetime', arrives='long', carrier='string', tailnum='string', dest='string', distance='double', seats='double', stops='long', private='boolean')
optional = 'tailnum', 'seats'
about = dict(columns=[dict(name=k, type=v, required=k not in optional) for k, v in kinds.items()])
good = dict(scheduled='2013-07-04T13:00:00Z', arrives=1230, carrier='AA', tailnum='N338', dest='OAK', distance=2475, seats=180, stops=0, private=False)
others = [dict(scheduled='2013-07-05T20:30:00Z', arrives=1800, tailnum=None, seats=None, stops=2, private=True), dict(arrives=1000, carrier='UA', seats=2, distance=10), dict(arrives=1759, distance=187, dest='BNA', stops=1)]
example = fit_rows(about['columns'], [good, *(good | o for o in others)])


def without(schema, *names):
    "A schema for the columns of a request, as pandera would be asked to check them"
    full = schema.to_schema()
    part = full.select_columns(list(kinds))
    part.checks = [o for o in full.checks if o.name != 'left']
    return part


schemas = dict(functions=Flights, written=without(Plain))
schemas['written'].columns['stops'].checks = [o for o in schemas['written'].columns['stops'].checks if o.name == 'notin']
readers = {k: Reader(about, v, example) for k, v in schemas.items()} | dict(none=Reader(about))
truths = dict(functions=without(Flights), written=schemas['written'], none=None)


def test_the_quick_way_is_taken():
    assert readers['written'].quick(good) and readers['none'].quick(good) and not readers['functions'].quick(good)
    assert [bool(o.text) for o in readers['written'].contract.across] == [True, True]


def truth(rows, schema):
    "What `fit_rows` makes of rows, if that and pandera are content; else None"
    rows = [dict.fromkeys(optional) | o | ({'scheduled': pd.Timestamp(o['scheduled'])} if 'scheduled' in o else {}) for o in rows] # pandas wants all texts alike
    try: df = fit_rows(about['columns'], pd.DataFrame(rows))
    except (ModelError, ValueError, OverflowError): return None
    if any(isinstance(o.get(k), float) and abs(o[k]) >= 2**63 for o in rows for k in ('arrives', 'stops')): return None # no whole number of 64 bits
    if not np.isfinite(df.distance).all() or np.isinf(df.seats.astype(float)).any(): return None # pandera alone lets infinity through
    if schema is None: return df
    seen = df.assign(scheduled=df.scheduled.dt.tz_localize('UTC').dt.tz_convert(zone).astype(f'datetime64[us, {zone}]'), seats=df.seats.astype(float),
        **{k: df[k].astype('str') for k in ('carrier', 'tailnum', 'dest')})
    try: schema.validate(seen, lazy=True)
    except SchemaErrors: return None
    return df


def assert_same(asked, df):
    "The same values, in columns of the same kind"
    rows = as_columns(df)
    assert asked.n == len(df) and list(asked.rows) == list(rows)
    for k in rows:
        a, b = asked.rows[k], rows[k]
        assert a.dtype.kind == b.dtype.kind or pd.isna(df[k]).all(), (k, a.dtype, b.dtype)
        assert [None if pd.isna(o) else o for o in a.tolist()] == [None if pd.isna(o) else o for o in b.tolist()], k


def assert_as_truth(answer, rows, schema):
    "Rows are answered just when they should be; a refusal says which and why"
    df = truth(rows, schema)
    try: asked = answer()
    except Refused as e:
        assert e.status == 422 and e.errors and all(0 <= o['row'] < len(rows) and o['reason'] for o in e.errors)
        assert df is None, e
    else:
        assert df is not None, 'it was answered'
        assert_same(asked, df)


moments = st.datetimes(datetime(2012, 12, 31), datetime(2014, 1, 1), timezones=st.sampled_from([timezone.utc])).map(lambda o: o.isoformat())
words = st.one_of(st.sampled_from(['AA', 'UA', 'Ä', 'N1', 'N٣', 'N\n', 'N1\n', 'LAX', 'OAK', '', 'N123456', 'Aß']), st.text(max_size=6))
whole = st.one_of(st.integers(-5, 2500), st.sampled_from([2**53+1, -2**63, 2**63-1]))
numbers = st.one_of(whole, st.floats(-10, 7000), st.sampled_from([1e308, 5e-324, 3.0, -0.0, 6000, 6000.0]))
strange = st.one_of(st.none(), st.booleans(), words, numbers, st.just([]), st.just({}))
fine = dict(scheduled=moments, arrives=st.one_of(st.integers(0, 2400), whole), carrier=words, tailnum=st.one_of(st.none(), words), dest=words, distance=numbers, seats=st.one_of(st.none(), numbers),
    stops=st.one_of(st.integers(0, 6), st.sampled_from([2.0, 3.5])), private=st.booleans())


@st.composite
def a_row(draw):
    "The good row with some other values, some strange ones, some missing"
    row = good | {k: draw(fine[k]) for k in draw(st.sets(st.sampled_from(list(kinds)), max_size=3))}
    if draw(st.integers(0, 9)) == 0: row[draw(st.sampled_from([k for k in kinds if k != 'scheduled']))] = draw(strange)
    if draw(st.integers(0, 19)) == 0: row.pop(draw(st.sampled_from(list(kinds))))
    return row


def as_json(o): return json.dumps(o, allow_nan=True).encode()


@pytest.mark.parametrize('kind', ['functions', 'written', 'none'])
@quick
@given(row=a_row())
def test_one_row(kind, row):
    assert_as_truth(lambda: readers[kind].json(as_json(row)), [row], truths[kind])


@pytest.mark.parametrize('kind', ['functions', 'written', 'none'])
@quick
@given(rows=st.lists(a_row(), min_size=1, max_size=4))
def test_rows(kind, rows):
    assert_as_truth(lambda: readers[kind].json(as_json(rows)), rows, truths[kind])


@pytest.mark.parametrize('kind', ['functions', 'written', 'none'])
@quick
@given(rows=st.lists(a_row().map(lambda o: dict.fromkeys(optional) | o), min_size=1, max_size=4))
def test_a_check_finds_fault_just_where_a_request_is_refused(kind, rows):
    "`package.check` asks the same contract: of rows as Python has them, and of a table"
    wrong,df = readers[kind].contract.wrong(rows), truth(rows, truths[kind])
    assert bool(wrong) is (df is None), wrong
    assert all(0 <= i < len(rows) and why for i, _, why in wrong)
    if df is not None: assert readers[kind].contract.wrong(df) == []


@quick
@given(row=a_row())
def test_the_protocol(row):
    "The same by the Open Inference Protocol"
    inputs = [dict(name=k, datatype='BYTES', shape=[1], data=[v]) for k, v in row.items() if not isinstance(v, (list, dict))]
    if len(inputs) < len(row): return
    assert_as_truth(lambda: readers['written'].v2(as_json(dict(inputs=inputs))), [row], truths['written'])


json_values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)), lambda o: st.one_of(st.lists(o, max_size=4),
    st.dictionaries(st.one_of(st.sampled_from([*kinds, 'rows', 'keys', 'inputs', 'outputs', 'name', 'shape', 'datatype', 'data', 'parameters', 'id']), st.text(max_size=5)), o, max_size=5)), max_leaves=12)


@quick
@given(o=json_values)
def test_whatever_json_is_refused_in_order(o):
    for ask in (readers['written'].json, readers['written'].v2):
        try: assert isinstance(ask(as_json(o)), Asked)
        except Refused as e: assert e.status in (400, 413, 422) and json.dumps(e.errors)


@quick
@given(body=st.binary(max_size=60), start=st.sampled_from([b'', b'PAR1', b'ARROW1\0\0', b'\xff\xff\xff\xff', b'scheduled,arrives\n', b'{"inputs":[{"name":"arrives","datatype":"INT64","shape":[1],"parameters":{"binary_data_size":8}}]}']), length=st.integers(0, 130))
def test_whatever_bytes_are_refused_in_order(body, start, length):
    r = readers['written']
    asks = [lambda: r.json(start+body), lambda: r.v2(start+body, length)] + [lambda t=t: r.table(start+body, t) for t in ('text/csv', 'application/vnd.apache.parquet', 'application/vnd.apache.arrow.stream', 'application/vnd.apache.arrow.file')]
    for ask in asks:
        with pytest.raises(Refused) as e: ask()
        assert e.value.status in (400, 413, 422)


@quick
@given(texts=st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_texts_in_bytes(texts):
    data = pack_texts(texts)
    head = as_json(dict(inputs=[dict(name='x', datatype='BYTES', shape=[len(texts)], parameters=dict(binary_data_size=len(data)))]))
    r = Reader(dict(columns=[dict(name='x', type='string', required=True)]))
    assert r.v2(head+data, len(head)).rows.x.tolist() == texts
